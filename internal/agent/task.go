package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// ContainerID is the ID of a task's container, derived from the task's (external) ID so that making it again is idempotent.
func ContainerID(taskID string) string { return model.ContainerID(taskID) }

// doer is a task's actions with what comes after its end.
type doer interface {
	actions
	// Release gives back what only a running task needs: network, host ports, the open log.
	Release(ctx context.Context) error
	// Remove makes everything of the task disappear.
	Remove(ctx context.Context) error
}

// task is one task's life on this node: one goroutine that takes steps, and a desired state that others set.
type task struct {
	a         *Agent
	id        model.TaskID
	container string
	do        doer
	wake      chan struct{} // holds a token when something changed
	ended     chan struct{} // closed when the task has ended and its log is complete
	endOnce   sync.Once

	mu      sync.Mutex
	msg     *pb.Task
	tpl     *template
	desired model.TaskState
	removed bool
	// next is the managers' word on a task of the same name that comes once this one has disappeared: a swarm that was
	// taken up again from an older state may not know this one, and give its name anew. Agent.mu guards it.
	next *pb.Task
	// withdrawal is the index of the managers' word to wait for before the task is stopped; 0 for none.
	withdrawal uint64
	st         status
	prepared   bool               // in this process
	interrupt  context.CancelFunc // of the step under way
	health     *health            // nil until its container's check is known, or when it has none
}

func newTask(a *Agent, m *pb.Task, tpl *template, st status) *task {
	t := &task{a: a, id: taskID(m), container: ContainerID(m.Id), msg: m, tpl: tpl, desired: model.TaskState(m.Desired), st: st,
		wake: make(chan struct{}, 1), ended: make(chan struct{})}
	t.do = &controller{a: a, t: t}
	return t
}

// assign sets what the managers want; a desired state never goes back.
func (t *task) assign(m *pb.Task, withdrawal uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.desired < model.StateShutdown {
		t.withdrawal = withdrawal
	}
	t.desired = max(t.desired, model.TaskState(m.Desired))
	t.msg = m
	// Another one's last word (orphaned): this node must not go on with it.
	if theirs := model.TaskState(m.State); theirs.Terminal() && !t.st.State.Terminal() {
		t.desired = max(t.desired, model.StateShutdown)
	}
	t.nudge()
}

// remove makes the task disappear from the node; Agent.mu is held.
func (t *task) remove() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removed, t.next = true, nil
	t.nudge()
}

// nudge wakes the goroutine and ends a step that the task no longer wants; t.mu is held.
func (t *task) nudge() {
	if t.interrupt != nil && (t.removed || t.desired >= model.StateShutdown) {
		t.interrupt()
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// begin makes the context of a step, or tells that the task is to be removed.
func (t *task) begin(ctx context.Context) (octx context.Context, done func(), st status, desired model.TaskState, prepared, removed bool) {
	octx, cancel := context.WithCancel(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	// A stop under way is what a task with that desired state wants: it is interrupted only to be removed.
	t.interrupt = cancel
	if t.desired >= model.StateShutdown {
		t.interrupt = nil
	}
	done = func() {
		t.mu.Lock()
		t.interrupt = nil
		t.mu.Unlock()
		cancel()
	}
	return octx, done, t.st, t.desired, t.prepared, t.removed
}

// run takes steps until the task is removed or ctx ends.
func (t *task) run(ctx context.Context) {
	// What an ended task of the last process still had, the full pass at start takes away.
	_, _, st := t.snapshot()
	released := st.State.Terminal()
	if released {
		t.finish()
	}
	wait := firstBackoff
	for ctx.Err() == nil {
		octx, done, st, desired, prepared, removed := t.begin(ctx)
		var err error
		switch {
		case removed:
			if st.State >= model.StateStarting && !st.State.Terminal() {
				err = t.do.Stop(ctx)
			}
			if err == nil {
				err = t.do.Remove(ctx)
			}
			if err == nil {
				done()
				t.finish()
				t.a.forget(t)
				return
			}
		case st.State.Terminal() && !released:
			if err = t.do.Release(ctx); err == nil {
				released = true
				t.finish()
			}
		default:
			var next status
			if next, err = step(octx, st, desired, prepared, t.do); err == nil {
				t.advance(next)
			}
		}
		interrupted := octx.Err() != nil
		done()
		switch {
		case err == nil:
			wait = firstBackoff
		case errors.Is(err, errPark):
			t.sleep(ctx, 0)
		case interrupted:
			// Another state is wanted now.
		default:
			m, _, _ := t.snapshot()
			t.a.cfg.Log.Warn("a task's step has to be repeated", "task", m.Id, "state", st.State.String(), "err", err)
			t.sleep(ctx, wait+rand.N(wait/2))
			wait = min(2*wait, maxBackoff)
		}
	}
}

// sleep waits for a change, at most d when d is not 0.
func (t *task) sleep(ctx context.Context, d time.Duration) {
	var timer <-chan time.Time
	if d > 0 {
		tm := time.NewTimer(d)
		defer tm.Stop()
		timer = tm.C
	}
	select {
	case <-t.wake:
	case <-timer:
	case <-ctx.Done():
	}
}

func (t *task) finish() { t.endOnce.Do(func() { close(t.ended) }) }

// advance takes the next status, writes it down and lets it be reported. A state never goes back.
func (t *task) advance(next status) {
	t.mu.Lock()
	if next.State < t.st.State || t.st.State.Terminal() {
		t.mu.Unlock()
		return
	}
	if next.State >= model.StateReady {
		t.prepared = true
	}
	next.Health, next.Left = t.st.Health, t.st.Left && !next.State.Terminal()
	t.st = next
	t.mu.Unlock()
	t.a.saveStatus(t.id, next)
	t.a.rep.mark(t.id)
}

// setHealth takes what the health check says, writes it down and lets it be reported.
func (t *task) setHealth(h model.Health) {
	t.mu.Lock()
	if t.st.Health == h || t.st.State.Terminal() {
		t.mu.Unlock()
		return
	}
	before := t.st.Health
	t.st.Health = h
	st := t.st
	t.mu.Unlock()
	if was, is := apiHealth(before), apiHealth(h); t.a.cfg.OnHealth != nil && was != is && h != model.HealthStarting {
		t.a.cfg.OnHealth(t.container, is)
	}
	t.a.saveStatus(t.id, st)
	t.a.rep.mark(t.id)
}

// setLeft takes the task out of what clients are led to, or back in, and lets it be reported. It returns false when there is nothing
// to do: the task does not run, or it is so already.
func (t *task) setLeft(left bool) bool {
	t.mu.Lock()
	if t.st.State != model.StateRunning || t.st.Left == left {
		t.mu.Unlock()
		return false
	}
	t.st.Left = left
	st := t.st
	t.mu.Unlock()
	t.a.saveStatus(t.id, st)
	t.a.rep.mark(t.id)
	return true
}

func (t *task) leaves() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.removed
}

func (t *task) snapshot() (*pb.Task, *template, status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.msg, t.tpl, t.st
}

func (t *task) info() TaskInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := TaskInfo{ID: t.id, ExternalID: t.msg.Id, ContainerID: t.container, Desired: t.desired, State: t.st.State, Message: t.st.Message,
		Err: t.st.Err, PID: t.st.PID, ExitCode: t.st.ExitCode, HostPorts: t.st.HostPorts, Health: t.health.report()}
	if t.tpl != nil {
		i.ServiceName = t.tpl.msg.ServiceName
	}
	return i
}
