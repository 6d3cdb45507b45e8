package dispatch

import (
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

const (
	// fenceLimit is how long a withdrawal may take; nodes wait for a shorter time (agent.withdrawalWait).
	fenceLimit = 5 * time.Second
	// maxWithdrawals bounds those that are open; when there are more, the oldest ends before its time.
	maxWithdrawals = 1000
)

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
	// left are the nodes that are not yet past it, each with the fence that says that it is: 0 while none has been sent.
	left map[model.NodeID]uint64
	tell map[model.NodeID]struct{} // have such tasks
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
	now := time.Now()
	w := &withdrawal{index: index, until: now.Add(fenceLimit), left: make(map[model.NodeID]uint64, len(s.sessions)), tell: tell}
	for id, n := range s.sessions {
		w.left[id] = 0
		_, stops := tell[id]
		n.mark(func() {
			n.fence = index
			if stops {
				n.withdrawal = index
			}
		})
	}
	s.withdrawals.open = append(s.withdrawals.open, w)
	s.finish(now)
}

// fenced notes that a node is sent a fence: it stands for all that the node has not been asked about yet.
func (o *withdrawals) fenced(node model.NodeID, fence uint64) {
	for i := len(o.open) - 1; fence != 0 && i >= 0; i-- {
		w := o.open[i]
		if by, ok := w.left[node]; ok && by == 0 {
			w.left[node] = fence
		}
	}
}

// lose takes a node off all that is waited for.
func (o *withdrawals) lose(node model.NodeID) {
	for _, w := range o.open {
		delete(w.left, node)
	}
}

// passed notes that a node has passed a fence. Another one before it may take longer: it is about other networks.
func (s *Server) passed(n *session, fence uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[n.node] != n {
		return
	}
	for _, w := range s.withdrawals.open {
		if by, ok := w.left[n.node]; ok && by == fence && by != 0 {
			delete(w.left, n.node)
		}
	}
	s.finish(time.Now())
}

// finish ends the withdrawals that nobody is waited for any more or whose time is over, and tells who waited. s.mu is held.
func (s *Server) finish(now time.Time) {
	open := s.withdrawals.open
	rest := open[:0]
	for i, w := range open {
		if len(w.left) > 0 && now.Before(w.until) && i >= len(open)-maxWithdrawals {
			rest = append(rest, w)
			continue
		}
		for id := range w.tell {
			if n := s.sessions[id]; n != nil {
				n.push(&pb.ToAgent{Kind: &pb.ToAgent_Withdrawn{Withdrawn: &pb.Withdrawn{Index: w.index}}})
			}
		}
	}
	clear(open[len(rest):])
	s.withdrawals.open = rest
}
