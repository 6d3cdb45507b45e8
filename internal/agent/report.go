package agent

import (
	"sync"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// reporter holds which tasks' statuses the managers do not know yet. It keeps no statuses: what is sent is what is true when it
// is sent, so that a burst of states becomes one report. One batch is under way at a time; it counts as said when it is acknowledged,
// and a session that ends leaves everything unsaid. Safe for concurrent use.
type reporter struct {
	a    *Agent
	wake chan struct{} // holds a token when there is something to send

	mu    sync.Mutex
	dirty map[model.TaskID]struct{}
	order []model.TaskID            // of dirty, oldest first
	sent  map[model.TaskID]struct{} // in the batch under way; nil when there is none
	seq   uint64
}

func newReporter(a *Agent) *reporter {
	return &reporter{a: a, wake: make(chan struct{}, 1), dirty: map[model.TaskID]struct{}{}}
}

// mark notes that a task has something to say.
func (r *reporter) mark(id model.TaskID) {
	r.mu.Lock()
	if _, ok := r.dirty[id]; !ok {
		r.dirty[id] = struct{}{}
		r.order = append(r.order, id)
	}
	r.mu.Unlock()
	r.nudge()
}

func (r *reporter) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// drop forgets a task.
func (r *reporter) drop(id model.TaskID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.dirty, id)
	delete(r.sent, id)
}

// reset begins a session: what was under way is unsaid.
func (r *reporter) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.sent {
		if _, ok := r.dirty[id]; !ok {
			r.dirty[id] = struct{}{}
			r.order = append(r.order, id)
		}
	}
	r.sent, r.seq = nil, 0
	r.nudgeIf(len(r.dirty) > 0)
}

func (r *reporter) nudgeIf(yes bool) {
	if yes {
		r.nudge()
	}
}

// pending is how many tasks have something to say.
func (r *reporter) pending() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.dirty) + len(r.sent)
}

// due reports whether a batch could be sent now.
func (r *reporter) due() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent == nil && len(r.dirty) > 0
}

// next makes the next batch, or returns nil when there is none to send now.
func (r *reporter) next(session uint64) *pb.Reports {
	r.mu.Lock()
	if r.sent != nil || len(r.dirty) == 0 {
		r.mu.Unlock()
		return nil
	}
	var ids []model.TaskID
	for len(r.order) > 0 && len(ids) < wire.MaxReportTasks {
		id := r.order[0]
		r.order = r.order[1:]
		if _, ok := r.dirty[id]; ok {
			delete(r.dirty, id)
			ids = append(ids, id)
		}
	}
	r.sent = make(map[model.TaskID]struct{}, len(ids))
	for _, id := range ids {
		r.sent[id] = struct{}{}
	}
	r.mu.Unlock()
	m := &pb.Reports{Session: session}
	for _, id := range ids {
		// What changes from here on is marked again.
		if rep, ok := r.a.reportOf(id); ok {
			m.Tasks = append(m.Tasks, wire.Report(rep))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(m.Tasks) == 0 {
		r.sent = nil
		r.nudgeIf(len(r.dirty) > 0)
		return nil
	}
	r.seq++
	m.Seq = r.seq
	return m
}

// ack ends the batch under way.
func (r *reporter) ack(seq uint64) {
	r.mu.Lock()
	if seq == r.seq {
		r.sent = nil
	}
	more := r.sent == nil && len(r.dirty) > 0
	r.mu.Unlock()
	r.nudgeIf(more)
}

// reportOf is what the node says of a task now; false when there is nothing to say.
func (a *Agent) reportOf(id model.TaskID) (model.TaskReport, bool) {
	a.mu.Lock()
	t := a.byID[id]
	a.mu.Unlock()
	if t == nil || t.leaves() { // nobody asks about what disappears
		return model.TaskReport{}, false
	}
	_, _, st := t.snapshot()
	if st.State < model.StateAccepted || st.State > model.StateRejected {
		return model.TaskReport{}, false
	}
	return model.TaskReport{Task: id, State: st.State, Message: st.Message, Err: st.Err, PID: st.PID,
		ExitCode: st.ExitCode, HostPorts: st.HostPorts, Health: st.health()}, true
}
