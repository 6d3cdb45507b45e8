package sim

import (
	"context"
	"errors"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/agent"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

// Behaviours of images: what their containers do.
const (
	imageGood     = "good"     // runs until it is stopped
	imageChecked  = "checked"  // the same, with a health check
	imageSlow     = "slow"     // takes long to pull
	imageCrash    = "crash"    // runs for a while, then fails
	imageExit     = "exit"     // runs for a while, then has done its work
	imageFlaky    = "flaky"    // fails now and then
	imageBad      = "bad"      // cannot be pulled
	imageBadStart = "badstart" // cannot be started
)

func behaviour(image string) string {
	name, _, _ := strings.Cut(image, ":")
	return name
}

// task is a task on its node: the real task machine with a container that the simulator makes up.
type task struct {
	n       *node
	id      model.TaskID
	order   order
	desired model.TaskState
	st      agent.Status
	removed bool
	heir    *order // what comes when this one has disappeared
	// prepared is of the daemon's life, the container of the host's.
	prepared bool
	busy     bool // a step is under way
	gen      uint64

	running bool
	exited  bool
	exit    runtime.Exit
}

func newTask(n *node, o order) *task {
	return &task{n: n, id: o.id, order: o, desired: o.desired, st: agent.Status{State: o.state}}
}

// want sets the desired state; a step that it makes pointless is broken off.
func (t *task) want(desired model.TaskState) {
	if desired == t.desired {
		return
	}
	t.desired = desired
	if desired >= model.StateShutdown {
		t.gen++
		t.busy = false
	}
	t.drive()
}

func (t *task) remove() {
	t.heir = nil
	if !t.removed {
		t.removed = true
		t.gen++
		t.busy = false
		t.drive()
	}
}

// drive begins the task's next step, if there is one to take.
func (t *task) drive() {
	if t.busy || !t.n.alive {
		return
	}
	d, ok := t.next()
	if !ok {
		return
	}
	w := t.n.w
	t.busy = true
	t.gen++
	gen, life := t.gen, t.n.life
	w.after(t.n.sender(), d, func() {
		if t.gen != gen || t.n.life != life {
			return
		}
		t.busy = false
		t.step()
	})
}

// next is how long the next step takes; false when there is none until something changes.
func (t *task) next() (int64, bool) {
	w, s := t.n.w, t.st.State
	switch {
	case t.removed, t.desired >= model.StateShutdown && !s.Terminal():
		if !t.running {
			return w.between(ms, 20*ms), true
		}
		if w.fault(w.cfg.slowStop) {
			return t.order.stop, true
		}
		return w.between(5*ms, 500*ms), true
	case s.Terminal():
		return 0, false
	case s < model.StatePreparing:
		return w.between(ms/10, 2*ms), true
	case s < model.StateReady, s < model.StateRunning && !t.prepared:
		if behaviour(t.order.image) == imageSlow && !w.healing {
			return w.between(5*second, 40*second), true
		}
		return w.between(10*ms, 400*ms), true
	case s < model.StateStarting:
		return ms, t.desired >= model.StateRunning
	case s < model.StateRunning:
		return w.between(5*ms, 200*ms), true
	}
	return ms, t.exited || !t.running // an end that was not noticed yet
}

func (t *task) step() {
	n := t.n
	if t.removed {
		t.running = false
		delete(n.tasks, t.id)
		if t.heir != nil {
			n.assign(*t.heir)
		}
		return
	}
	before := t.st
	next, err := agent.Step(t.context(), t.st, t.desired, t.prepared, t)
	switch {
	case errors.Is(err, agent.ErrPark):
		return
	case err != nil:
		n.w.after(n.sender(), 100*ms, t.drive)
		return
	}
	if next.State < before.State || before.State.Terminal() && next.State != before.State {
		n.w.fail("law: a state never goes back: node %d took %s from %s to %s", n.id, short(t.id), before.State, next.State)
	}
	if next.State >= model.StateReady {
		t.prepared = true
	}
	t.st = next
	n.w.note("t%d.%d is %d", uint64(t.id.Service), t.id.Num, uint64(next.State))
	n.mark(t.id)
	t.drive()
}

func (t *task) context() context.Context { return context.Background() }

// Prepare, Start, Wait, Ended and Stop are what the task machine does to the container.
func (t *task) Prepare(context.Context) ([]swarm.PortConfig, error) {
	if behaviour(t.order.image) == imageBad {
		return nil, runtime.Invalid("no such image")
	}
	t.prepared = true
	return nil, nil
}

func (t *task) Start(context.Context) (int, error) {
	w := t.n.w
	if t.running {
		return int(t.id.Num), nil // it was started in the daemon's former life
	}
	switch b := behaviour(t.order.image); {
	case b == imageBadStart, b == imageFlaky && w.fault(.3):
		return 0, errors.New("no such command")
	}
	t.running, t.exited = true, false
	w.note("t%d.%d: container starts on node %d", uint64(t.id.Service), t.id.Num, uint64(t.n.id))
	w.judge.started(t)
	t.check()
	switch b := behaviour(t.order.image); {
	case b == imageCrash, b == imageFlaky && w.fault(.5):
		t.endAfter(w.between(100*ms, 20*second), 1)
	case b == imageExit:
		t.endAfter(w.between(100*ms, 10*second), 0)
	}
	return int(t.id.Num), nil
}

func (t *task) endAfter(d int64, code int) {
	t.n.w.after(t.n.sender(), d, func() {
		if t.running {
			t.end(runtime.Exit{Code: code})
		}
	})
}

func (t *task) end(e runtime.Exit) {
	t.running, t.exited, t.exit = false, true, e
	if t.n.alive && !t.busy {
		t.drive()
	}
}

// kill is the end of a container without anybody's will.
func (t *task) kill(why string) {
	if t.running {
		t.end(runtime.Exit{Code: 255, Err: why})
	}
}

func (t *task) Wait(context.Context) (runtime.Exit, error) {
	if !t.exited {
		return runtime.Exit{}, runtime.ErrNotFound
	}
	return t.exit, nil
}

func (t *task) Ended(context.Context) (runtime.Exit, bool) { return t.exit, t.exited }

func (t *task) Stop(context.Context) error {
	t.running = false
	return nil
}

var _ agent.Actions = (*task)(nil)
