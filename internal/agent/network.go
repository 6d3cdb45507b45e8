package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/skep-swarm/skep/internal/keeper/ports"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

const (
	holdAgain   = 10 * time.Second // a port that another program has may become free
	networkWait = 30 * time.Second // until a task's step gives up and says why
)

// network is what the node's networks should be: tasks with an address, published ports, who holds which port of the host,
// and overlay networks. One goroutine (run) brings the world in line with it. Safe for concurrent use.
type network struct {
	cfg   Config
	wake  chan struct{} // holds a token when something changed
	ready chan struct{} // closed after the first full pass

	// gate is held for reading while one task's network is made, for writing during a full pass, which takes away
	// what nobody asked for.
	gate sync.RWMutex
	// holding orders what is asked of the keeper about ports.
	holding sync.Mutex

	mu       sync.Mutex
	tablesAt place
	draft    map[netplan.PortKey]netplan.Port // a complete table whose parts are arriving
	node     netplan.Node
	known    bool                             // node has its blocks
	full     bool                             // a full pass is due
	rows     map[netplan.PortKey]netplan.Port // of the tables: ingress mode
	added    map[model.TaskID]netplan.Task
	claims   map[model.TaskID]*claim
	owners   map[netplan.PortKey]model.TaskID // the zero TaskID is ingress
	held     map[netplan.PortKey]bool
	applied  map[netplan.PortKey]netplan.Port
	clashes  map[netplan.PortKey]model.PortClash
	progress progress

	nets   *overlays
	watch  *overlayWatch
	layers map[model.NetworkID]*layer
	dying  map[model.NetworkID]bool // gone for the managers, and to be taken away here
	lost   bool                     // a task's namespace could not be mended, and no layer says so
	again  bool                     // what could not be done is to be tried once more
}

func newNetwork(cfg Config) *network {
	return &network{cfg: cfg, wake: make(chan struct{}, 1), ready: make(chan struct{}), full: true,
		rows: map[netplan.PortKey]netplan.Port{}, added: map[model.TaskID]netplan.Task{}, claims: map[model.TaskID]*claim{},
		owners: map[netplan.PortKey]model.TaskID{}, held: map[netplan.PortKey]bool{},
		applied: map[netplan.PortKey]netplan.Port{}, clashes: map[netplan.PortKey]model.PortClash{}, progress: newProgress(),
		layers: map[model.NetworkID]*layer{}, dying: map[model.NetworkID]bool{}}
}

// change edits under the lock and wakes run.
func (n *network) change(f func()) {
	n.mu.Lock()
	f()
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// setNode takes the node's part of the gateway network from what the managers say.
func (n *network) setNode(m *pb.NodeInfo) error {
	node := n.cfg.Node
	var err4, err6, errP4, errP6 error
	node.Blocks4, err4 = wire.Prefixes(m.GatewayBlocks)
	node.Pool4, errP4 = wire.Prefix(m.GatewayPool)
	if node.Link6.IsValid() {
		node.Block6, err6 = wire.Prefix(m.Gateway6)
		node.Pool6, errP6 = wire.Prefix(m.GatewayUla)
	}
	if err := errors.Join(err4, err6, errP4, errP6); err != nil {
		return fmt.Errorf("the node's part of the gateway network: %w", err)
	}
	if !node.Block6.IsValid() {
		node.Link6, node.Pool6 = netip.Prefix{}, netip.Prefix{}
	}
	n.change(func() {
		same := n.known && slices.Equal(n.node.Blocks4, node.Blocks4) && n.node.Pool4 == node.Pool4 && n.node.Block6 == node.Block6 && n.node.Pool6 == node.Pool6
		if n.known = len(node.Blocks4) > 0; n.known && !same {
			n.node, n.full = node, true
		}
	})
	return nil
}

// wait returns when tasks can be given a network.
func (n *network) wait(ctx context.Context) error {
	select {
	case <-n.ready:
		return nil
	default:
	}
	timer := time.NewTimer(networkWait)
	defer timer.Stop()
	select {
	case <-n.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if why := n.progress.why; why != nil {
		return fmt.Errorf("the node's gateway network is not up: %w", why)
	}
	return errors.New("the managers have not given this node a part of the gateway network yet")
}

// ip6 reports whether tasks here have IPv6.
func (n *network) ip6() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node.IPv6()
}

// addTask gives a task its network namespace.
func (n *network) addTask(ctx context.Context, id model.TaskID, t netplan.Task) (string, error) {
	n.gate.RLock()
	defer n.gate.RUnlock()
	if !n.ip6() {
		t.Addr6 = netip.Addr{}
	}
	t = n.plain(t)
	n.mu.Lock()
	before, again := n.added[id]
	if t.DNS == (netplan.DNSPorts{}) {
		t.DNS = before.DNS
	}
	n.added[id] = t
	n.mu.Unlock()
	path, err := n.cfg.Network.AddTask(ctx, t)
	if err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		if again {
			n.added[id] = before // what it has, it keeps: a process may run in it
		} else {
			delete(n.added, id)
		}
	}
	return path, err
}

// tasks are those with a network.
func (n *network) tasks() map[model.TaskID]netplan.Task {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.added)
}

// started tells that a task's process runs: its ports in host mode are published, and its process keeps its namespace.
func (n *network) started(id model.TaskID, pid int) {
	n.mu.Lock()
	if t, ok := n.added[id]; ok {
		t.PID = pid
		n.added[id] = t
	}
	c := n.claims[id]
	n.mu.Unlock()
	if c != nil {
		n.change(func() { c.live = true })
	}
}

// drop takes a task's network and host ports away.
func (n *network) drop(ctx context.Context, id model.TaskID, container string) error {
	n.mu.Lock()
	c, claimed := n.claims[id]
	_, added := n.added[id]
	n.mu.Unlock()
	if claimed {
		n.change(func() {
			delete(n.claims, id)
			for _, p := range c.ports {
				delete(n.owners, p.key)
			}
		})
	}
	if !added {
		return nil
	}
	n.gate.RLock()
	defer n.gate.RUnlock()
	select {
	case <-n.ready:
		if err := n.cfg.Network.RemoveTask(ctx, container); err != nil {
			return err
		}
	default:
		// The first full pass takes away what is not in its list.
	}
	n.change(func() { delete(n.added, id) }) // a network may go with its last task
	return nil
}

// adopt takes over what a task of an earlier process had.
func (n *network) adopt(id model.TaskID, t netplan.Task, st status) {
	n.change(func() {
		if t.Addr4.IsValid() {
			t.PID = int(st.PID)
			n.added[id] = n.plain(t)
			n.full = true // what of it is left in the kernel is not known
		}
		c := newClaim(t, st.HostPorts)
		if len(c.ports) == 0 {
			return
		}
		c.live = st.State >= model.StateRunning
		n.claims[id] = c
		for _, p := range c.ports {
			n.owners[p.key] = id
		}
	})
}

// releaseAll gives every port of the host back, for a node that leaves.
func (n *network) releaseAll(ctx context.Context) error {
	n.mu.Lock()
	var list []ports.Port
	for k := range n.held {
		list = append(list, keeperPort(k))
	}
	clear(n.held)
	clear(n.owners)
	clear(n.rows)
	n.mu.Unlock()
	return n.cfg.Keeper.Release(ctx, list)
}
