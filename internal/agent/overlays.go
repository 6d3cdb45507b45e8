package agent

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
)

// Bounds of what a node takes in of one network.
const (
	maxOverlays     = 4096
	maxOverlayRows  = 1 << 17
	maxOverlayNames = 64 // aliases of one row
)

// overlay is what the node knows of one overlay network in which it has tasks.
type overlay struct {
	num       model.NetworkID
	at        place
	info      overlayInfo
	endpoints map[model.ServiceID]overlayEndpoint
	tasks     map[model.TaskID]overlayTask
	draftOps  []op // for the store, of a table whose parts are arriving
}

// overlayInfo is the network itself. It does not change while the network lives.
type overlayInfo struct {
	id, name   string
	vni        uint32
	subnets    []netip.Prefix // IPv4 first, at most one of IPv6
	gateways   []netip.Addr   // of each subnet; the zero Addr where there is none
	internal   bool
	ipv6       bool
	attachable bool
	options    map[string]string
}

// overlayEndpoint is a service in the network: its names mean its virtual addresses, or, without vip, those of its serving
// tasks in turn.
type overlayEndpoint struct {
	name       string
	aliases    []string
	vip        bool
	vip4, vip6 netip.Addr // the zero Addr while the service has none
}

// overlayTask is a task in the network, wherever it runs. It stays as long as it has its addresses.
type overlayTask struct {
	node         model.NodeID
	addr4, addr6 netip.Addr
	name         string   // web.1.xyz…
	aliases      []string // that only this task has
	serving      bool     // takes new connections and is answered for
}

// overlays are the networks of the node's tasks, as the managers told of them last. Safe for concurrent use.
type overlays struct {
	mu      sync.Mutex
	nets    map[model.NetworkID]*overlay
	drafts  map[model.NetworkID]*overlay // complete tables whose parts are arriving
	watches []*overlayWatch
	// back is where each network's tables were when they last took back something that new connections were led to.
	back map[model.NetworkID]place
}

func newOverlays() *overlays {
	return &overlays{nets: map[model.NetworkID]*overlay{}, drafts: map[model.NetworkID]*overlay{}, back: map[model.NetworkID]place{}}
}

// read calls f with a network, nil when the node knows nothing of it. f must not keep or change what it is given, nor call
// the overlays.
func (o *overlays) read(id model.NetworkID, f func(*overlay)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f(o.nets[id])
}

// serves reports whether a task takes new connections in one of the networks.
func (o *overlays) serves(id model.TaskID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, ov := range o.nets {
		if ov.tasks[id].serving {
			return true
		}
	}
	return false
}

// name is what users call a network.
func (o *overlays) name(id model.NetworkID) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := o.nets[id]; n != nil {
		return n.info.name
	}
	return strconv.FormatUint(uint64(id), 10)
}

// takenBack is which networks took something back since the last call, and where their tables were then.
func (o *overlays) takenBack() map[model.NetworkID]place {
	o.mu.Lock()
	defer o.mu.Unlock()
	back := o.back
	o.back = map[model.NetworkID]place{}
	return back
}

// places is where the tables of some networks are.
func (o *overlays) places(nets []netplan.Attachment) map[model.NetworkID]place {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := map[model.NetworkID]place{}
	for _, a := range nets {
		if n := o.nets[model.NetworkID(a.Network)]; n != nil {
			out[n.num] = n.at
		}
	}
	return out
}

// replaceable reports whether a task takes new connections in one of the networks, and another one of its service does so too.
func (o *overlays) replaceable(id model.TaskID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, ov := range o.nets {
		if !ov.tasks[id].serving {
			continue
		}
		for t, row := range ov.tasks {
			if row.serving && t != id && t.Service == id.Service {
				return true
			}
		}
	}
	return false
}

// list is the numbers of the networks, in order.
func (o *overlays) list() []model.NetworkID {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(maps.Keys(o.nets))
}

// applied is the newest place that a network is at.
func (o *overlays) applied() place {
	o.mu.Lock()
	defer o.mu.Unlock()
	var p place
	for _, n := range o.nets {
		if p.before(n.at) {
			p = n.at
		}
	}
	return p
}

// overlayWatch is how one consumer follows the networks: wake holds a token when there is something to take. Changes that
// come before it takes are merged, so a slow consumer costs no memory and sees the newest.
type overlayWatch struct {
	wake chan struct{}
	o    *overlays
	due  map[model.NetworkID]*overlayChange
}

// overlayChange is what changed of a network. whole means all of it, or that it is gone: ask with read.
type overlayChange struct {
	whole     bool
	endpoints map[model.ServiceID]struct{}
	tasks     map[model.TaskID]struct{}
}

// watch makes a consumer, which begins with everything that is known.
func (o *overlays) watch() *overlayWatch {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := &overlayWatch{wake: make(chan struct{}, 1), o: o, due: map[model.NetworkID]*overlayChange{}}
	o.watches = append(o.watches, w)
	for id := range o.nets {
		w.note(id, &overlayChange{whole: true})
	}
	return w
}

// take returns what changed since the last call, nil for nothing.
func (w *overlayWatch) take() map[model.NetworkID]*overlayChange {
	w.o.mu.Lock()
	defer w.o.mu.Unlock()
	due := w.due
	if len(due) == 0 {
		return nil
	}
	w.due = map[model.NetworkID]*overlayChange{}
	return due
}

// again gives back what was taken and could not be made use of.
func (w *overlayWatch) again(due map[model.NetworkID]*overlayChange) {
	w.o.mu.Lock()
	defer w.o.mu.Unlock()
	for id, c := range due {
		w.note(id, c)
	}
}

// note merges a change in and wakes the consumer; o.mu is held.
func (w *overlayWatch) note(id model.NetworkID, c *overlayChange) {
	have := w.due[id]
	switch {
	case have == nil:
		w.due[id] = &overlayChange{c.whole, maps.Clone(c.endpoints), maps.Clone(c.tasks)}
	case c.whole:
		*have = overlayChange{whole: true}
	case !have.whole:
		if have.endpoints == nil {
			have.endpoints = map[model.ServiceID]struct{}{}
		}
		if have.tasks == nil {
			have.tasks = map[model.TaskID]struct{}{}
		}
		maps.Copy(have.endpoints, c.endpoints)
		maps.Copy(have.tasks, c.tasks)
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// tell notes a change with every consumer; o.mu is held.
func (o *overlays) tell(id model.NetworkID, c *overlayChange) {
	for _, w := range o.watches {
		w.note(id, c)
	}
}
