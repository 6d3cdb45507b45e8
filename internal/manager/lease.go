package manager

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// leaseEvent is a node that came or went.
type leaseEvent struct {
	node    model.NodeID
	up      bool
	addr    string
	message string
}

// NodeUp and NodeDown tell the loop what the node sessions see. They do not block; on a member
// that does not lead they are dropped when its leadership begins anew and sessions repeat them.
func (m *Manager) NodeUp(node model.NodeID, addr string) {
	m.tell(leaseEvent{node: node, up: true, addr: addr})
}

// NodeDown says that a node's lease ran out.
func (m *Manager) NodeDown(node model.NodeID, message string) {
	m.tell(leaseEvent{node: node, message: message})
}

func (m *Manager) tell(e leaseEvent) {
	select {
	case m.leases <- e:
	default: // the loop will find out by the node's next session
	}
}

// nodeStates is what a leader knows of nodes' liveness. A new leader knows nothing yet: until a
// node was seen or a whole lease has passed, it stays what the state says.
type nodeStates struct {
	seen     map[model.NodeID]leaseEvent
	deadline map[model.NodeID]time.Time
	first    time.Time // no deadline is before it
}

func newNodeStates(s *state.Snapshot, now time.Time, lease time.Duration) *nodeStates {
	n := &nodeStates{seen: map[model.NodeID]leaseEvent{}, deadline: map[model.NodeID]time.Time{}, first: now.Add(lease)}
	for node := range s.Nodes() {
		n.deadline[node.ID] = now.Add(lease)
	}
	return n
}

func (n *nodeStates) event(e leaseEvent) {
	n.seen[e.node] = e
	delete(n.deadline, e.node)
}

// expire turns nodes that were not heard of for a whole lease into nodes that are down, and returns them.
func (n *nodeStates) expire(now time.Time) (down []model.NodeID) {
	if now.Before(n.first) {
		return nil
	}
	for id, at := range n.deadline {
		if !now.Before(at) {
			n.event(leaseEvent{node: id, message: "heartbeat failure: node was not heard of since this manager began to lead"})
			down = append(down, id)
		}
	}
	return down
}

// next is when expire has something to do, zero for never.
func (n *nodeStates) next() (at time.Time) {
	for _, d := range n.deadline {
		if at.IsZero() || d.Before(at) {
			at = d
		}
	}
	return at
}

// txns are the changes that make the state say what was seen of these nodes.
func (n *nodeStates) txns(s *state.Snapshot, ids []model.NodeID) []model.Txn {
	var out []model.Txn
	for _, id := range ids {
		node, e, ok := s.Node(id), leaseEvent{}, false
		if node != nil {
			e, ok = n.seen[id]
		}
		if !ok {
			continue
		}
		want := swarm.NodeStateDown
		if e.up {
			want = swarm.NodeStateReady
		}
		if node.State == want && node.Message == e.message && (e.addr == "" || node.Addr == e.addr) {
			continue
		}
		out = append(out, model.Txn{
			Guards:  []model.Guard{{Key: model.NodeKey(id), Group: model.GroupStatus, Version: node.StateVer}},
			Changes: []model.Change{{SetNodeState: &model.NodeStateSet{Node: id, State: want, Message: e.message, Addr: e.addr}}},
		})
	}
	return out
}
