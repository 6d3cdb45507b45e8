package sim

import (
	"fmt"
	"net/netip"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// setUp makes the swarm: its first entry of the log, members, nodes.
func (w *world) setUp() {
	w.net = network{w: w, cut: map[link]bool{}}
	c := &model.Cluster{IDKey: [16]byte{1}, Incarnation: 1, GatewayPool: netip.MustParsePrefix("10.96.0.0/12"), GatewayULA: netip.MustParsePrefix("fd00:1:2::/48"),
		DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/24")}, SubnetSize: 27}
	if w.cfg.smallBlocks {
		c.GatewayPool = netip.MustParsePrefix("10.96.0.0/22")
	}
	spec, err := model.MakeSpec(&swarm.Spec{})
	if err != nil {
		w.fail("set up: %v", err)
		return
	}
	c.Spec = spec
	w.lives = c.Incarnation
	w.commitNow("init", model.Change{PutCluster: c})
	for i := range w.cfg.members {
		m := newMember(w, i+1)
		w.members = append(w.members, m)
	}
	for _, m := range w.members {
		m.start()
	}
	for range w.cfg.nodes {
		w.join()
	}
	w.members[0].lead()
}

// commitNow writes an entry without asking anybody.
func (w *world) commitNow(reason string, changes ...model.Change) {
	data, err := state.EncodeBatch(&model.Batch{Actor: "setup", Reason: reason, Time: epoch + model.Time(w.now), Txns: []model.Txn{{Changes: changes}}})
	if err != nil {
		w.fail("set up: %v", err)
		return
	}
	w.log.commit(data)
}

// join adds a node to the swarm and starts it.
func (w *world) join() {
	id := w.log.truth.LastNode() + 1
	n := &model.Node{ID: id, State: swarm.NodeStateUnknown, Addr: fmt.Sprintf("192.0.2.%d", id), Gateway6: netip.MustParsePrefix(fmt.Sprintf("fd00:1:2:%x::/64", uint64(id)))}
	n.Spec.Availability, n.Spec.Role = swarm.NodeAvailabilityActive, swarm.NodeRoleWorker
	n.Spec.Labels = map[string]string{"zone": fmt.Sprint(uint64(id) % 2)}
	n.Description.Hostname = fmt.Sprintf("node-%d", id)
	n.Description.Platform = swarm.Platform{Architecture: "x86_64", OS: "linux"}
	n.Description.Resources = swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 1 << 30}
	n.Description.Resources.GenericResources = w.generics()
	if w.cfg.smallBlocks {
		n.Blocks = w.smallBlock()
	}
	w.commitNow("join", model.Change{PutNode: n})
	host := newNode(w, len(w.nodes)+1, id)
	w.nodes = append(w.nodes, host)
	host.start()
}

// host is the one that is a node of the swarm; nil when there is none.
func (w *world) host(id model.NodeID) *node {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// smallBlock is a free block of few addresses, or nothing when there is none left.
func (w *world) smallBlock() []netip.Prefix {
next:
	for i := range 64 {
		b := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96, byte(i % 4), byte(i / 4 * 16)}), w.cfg.blockBits)
		for o := range w.log.truth.Nodes() {
			for _, have := range o.Blocks {
				if have.Overlaps(b) {
					continue next
				}
			}
		}
		return []netip.Prefix{b}
	}
	return nil
}
