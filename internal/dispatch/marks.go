package dispatch

import (
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

const maxOutbox = maxPending // asks and streams waiting to be sent to one node

// marks are what is due to a node. What is to be sent is not a queue but marks, so that a slow node costs no memory and gets the
// newest when it reads again. session.mu guards them.
type marks struct {
	complete  bool // the complete set of tasks is due
	tablesDue bool
	nodeDue   bool
	netsDue   bool
	tasksDue  map[model.TaskID]struct{}
	beats     uint64 // number of the heartbeat to answer
	beatDue   bool
	acks      uint64 // sequence number to acknowledge
	ackDue    bool
	outbox    []*pb.ToAgent
	fence     uint64 // to be sent after all else that is due; 0 for none
	// withdrawal is the index of the last one that concerns tasks of this node; every set of tasks names it.
	withdrawal uint64
}

// newMarks are those of a session that begins.
func newMarks() marks {
	return marks{complete: true, tablesDue: true, tasksDue: map[model.TaskID]struct{}{}}
}

// take returns the marks and clears them.
func (m *marks) take() marks {
	due := *m
	*m = marks{tasksDue: m.tasksDue, withdrawal: m.withdrawal}
	if len(due.tasksDue) > 0 {
		m.tasksDue = map[model.TaskID]struct{}{}
	} else {
		due.tasksDue = nil // the map stays the marks', for others to write
	}
	return due
}

// mark notes that something is due and wakes the sender.
func (n *session) mark(f func()) {
	n.mu.Lock()
	f()
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// push queues a message that is no state; false when the node does not read.
func (n *session) push(m *pb.ToAgent) (ok bool) {
	n.mark(func() {
		if ok = len(n.outbox) < maxOutbox; ok {
			n.outbox = append(n.outbox, m)
		}
	})
	return ok
}

// send sends what is due until the session ends. Everything that a position says has been sent is sent before it.
func (n *session) send(stream pb.Dispatch_SessionServer) error {
	for {
		select {
		case <-n.wake:
		case <-n.ctx.Done():
			return nil
		}
		for _, m := range n.due() {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
	}
}

// due takes the marks and makes the messages.
func (n *session) due() []*pb.ToAgent {
	// All marks of a step of the state at once: what goes from one task to the next in it is not taken away in between.
	n.srv.mu.Lock()
	snap := n.srv.snap
	n.mu.Lock()
	m := n.marks.take()
	n.mu.Unlock()
	n.srv.withdrawals.fenced(n.node, m.fence)
	n.srv.mu.Unlock()
	if m.complete {
		// The node may know more than the sessions have been marked for.
		snap = n.srv.cfg.State.Snapshot()
	}
	if n.view.snap != nil && snap.Index() < n.view.snap.Index() {
		snap = n.view.snap
	}
	n.view.snap = snap
	var msgs []*pb.ToAgent
	if m.ackDue {
		msgs = append(msgs, &pb.ToAgent{Kind: &pb.ToAgent_ReportsAck{ReportsAck: &pb.ReportsAck{Session: n.num, Seq: m.acks}}})
	}
	if m.tablesDue {
		var parts [][]byte
		parts, n.view.tables = n.srv.tables.since(n.view.tables, n.floor)
		for _, b := range parts {
			msgs = append(msgs, &pb.ToAgent{Kind: &pb.ToAgent_Tables{Tables: b}})
		}
	}
	var sets []*pb.Assignments
	if m.complete {
		n.leaveNets()
		n.view.reset()
		sets = n.view.complete(snap, n.node)
	} else if m.nodeDue || len(m.tasksDue) > 0 {
		sets = n.view.changed(snap, n.node, m.tasksDue, m.nodeDue)
	}
	var gone []*pb.ToAgent
	if len(sets) > 0 || m.netsDue || len(m.tasksDue) > 0 {
		var tables []*pb.ToAgent
		tables, gone = n.dueNets()
		msgs = append(msgs, tables...)
	}
	for _, a := range sets {
		a.Withdrawal = m.withdrawal
		msgs = append(msgs, &pb.ToAgent{Kind: &pb.ToAgent_Assignments{Assignments: a}})
	}
	msgs = append(msgs, gone...)
	msgs = append(msgs, m.outbox...)
	if m.fence != 0 {
		msgs = append(msgs, &pb.ToAgent{Kind: &pb.ToAgent_Fence{Fence: &pb.Fence{Index: m.fence}}})
	}
	if m.beatDue {
		msgs = append(msgs, &pb.ToAgent{Kind: &pb.ToAgent_Beat{Beat: &pb.Beat{At: at(snap), Number: m.beats, HeartbeatPeriodMs: jittered(n.period)}}})
	}
	return msgs
}
