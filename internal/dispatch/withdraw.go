package dispatch

import (
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// fenceLimit is how long a withdrawal may take; nodes wait for a shorter time (agent.withdrawalWait).
const fenceLimit = 5 * time.Second

// withdrawals follow tasks that are told to stop: nobody may send them new clients when they get their stop signal. Every node that
// leads clients to them is sent the new tables and then a fence; when all have passed it, the nodes of those tasks are told. A
// node whose session ends is not waited for: it has no way to hear of it, nor has this manager. Guarded by the Server's mutex.
type withdrawals struct {
	open []*withdrawal // by index
}

// withdrawal is one step of the state in which tasks were told to stop.
type withdrawal struct {
	index uint64
	until time.Time
	left  map[model.NodeID]struct{} // not yet past the fence
	tell  map[model.NodeID]struct{} // have such tasks
}

// stopping lists the nodes with tasks that others may have led clients to, and that were told to stop in a step.
func stopping(before, after *state.Snapshot, touched map[model.Key]struct{}) map[model.NodeID]struct{} {
	var out map[model.NodeID]struct{}
	for k := range touched {
		if k.Kind != model.KindTask {
			continue
		}
		old, now := before.Task(k.Task()), after.Task(k.Task())
		if !canServe(old) || now == nil || now.State != model.StateRunning || canServe(now) {
			continue
		}
		// Of a service that is gone, the tables have said so already.
		svc := before.Service(now.ID.Service)
		if len(now.Nets) == 0 && (svc == nil || len(ingressPorts(svc)) == 0) {
			continue
		}
		if out == nil {
			out = map[model.NodeID]struct{}{}
		}
		out[now.Node] = struct{}{}
	}
	return out
}

// withdraw begins a withdrawal: every session is fenced after what it is due now. s.mu is held, and the sessions' tables are marked.
func (s *Server) withdraw(index uint64, tell map[model.NodeID]struct{}) {
	w := &withdrawal{index: index, until: time.Now().Add(fenceLimit), left: map[model.NodeID]struct{}{}, tell: tell}
	for id, n := range s.sessions {
		w.left[id] = struct{}{}
		_, stops := tell[id]
		n.mark(func() {
			n.fence = index
			if stops {
				n.withdrawal = index
			}
		})
	}
	s.withdrawals.open = append(s.withdrawals.open, w)
}

// passed notes that a node has passed all fences up to an index.
func (s *Server) passed(n *session, index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[n.node] == n {
		s.leave(n.node, index)
	}
}

// leave takes a node off what is waited for up to an index, and tells who waited. s.mu is held.
func (s *Server) leave(node model.NodeID, index uint64) {
	now := time.Now()
	rest := s.withdrawals.open[:0]
	for _, w := range s.withdrawals.open {
		if w.index <= index {
			delete(w.left, node)
		}
		if len(w.left) > 0 && now.Before(w.until) {
			rest = append(rest, w)
			continue
		}
		for id := range w.tell {
			if n := s.sessions[id]; n != nil {
				n.push(&pb.ToAgent{Kind: &pb.ToAgent_Withdrawn{Withdrawn: &pb.Withdrawn{Index: w.index}}})
			}
		}
	}
	clear(s.withdrawals.open[len(rest):])
	s.withdrawals.open = rest
}
