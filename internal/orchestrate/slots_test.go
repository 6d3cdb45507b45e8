package orchestrate_test

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// startFirst makes a service that starts first, goes on after failures, and restarts a task so often at once.
func startFirst(attempts uint64) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) {
		delay := time.Duration(0)
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: &delay, MaxAttempts: &attempts}
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Order: swarm.UpdateOrderStartFirst, FailureAction: swarm.UpdateFailureActionContinue}
	}
}

// failing lets every task of an image fail that is meant to run, until the swarm rests; it returns how many did.
func (w *world) failing(id model.ServiceID, image string) (n int) {
	w.t.Helper()
	for range 200 {
		before := n
		w.plan()
		for _, t := range w.live(id) {
			if tpl := w.snap.Template(t.Template); t.Desired == model.StateRunning && !t.State.Terminal() && t.State >= model.StateAssigned && tpl.Task.Typed.ContainerSpec.Image == image {
				w.report(t, model.StateFailed)
				n++
			}
		}
		w.obey()
		w.plan()
		if n == before && w.planned == 0 {
			if w.next == 0 || w.now+model.Time(10*time.Minute) < w.next {
				return n
			}
			w.now = w.next
		}
	}
	w.t.Fatal("the slot is tried again without end")
	return n
}

// TestAttemptsCountWhileAnOlderTaskStays: the restarts of a slot are remembered while an older task stays in it, in a
// rollout that starts first and on a node that is drained.
func TestAttemptsCountWhileAnOlderTaskStays(t *testing.T) {
	const attempts = 3
	w := newWorld(t, 2)
	id := w.service(0, startFirst(attempts))
	w.settle()
	old := w.running(id)[0]
	w.image(id, "bad")
	if n := w.failing(id, "bad"); n != 1+attempts {
		t.Errorf("%d tasks failed, wanted are the first and %d restarts", n, attempts)
	}
	if r := w.running(id); len(r) != 1 || r[0].ID != old.ID {
		t.Errorf("the old task does not run on: %v", r)
	}
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateCompleted {
		t.Errorf("%+v", u)
	}
	w.image(id, "good")
	w.settle()
	if r := w.running(id); len(r) != 1 || r[0].ID == old.ID {
		t.Errorf("another update does not replace it: %v", r)
	}
	// Who brings a template back gives it its attempts anew.
	w.image(id, "bad")
	if n := w.failing(id, "bad"); n != 1+attempts {
		t.Errorf("the second time %d tasks failed", n)
	}

	w = newWorld(t, 3)
	id = w.service(0, startFirst(attempts))
	w.settle()
	old = w.running(id)[0]
	w.drain(old.Node)
	failed := 0
	for range 50 {
		w.plan()
		for _, x := range w.live(id) {
			if x.Node != old.Node && x.Desired == model.StateRunning {
				w.report(x, model.StateFailed)
				failed++
			}
		}
		w.obey()
		w.now = max(w.now+second, w.next)
	}
	if failed != attempts {
		t.Errorf("%d successors of a task on a drained node failed, wanted are %d restarts", failed, attempts)
	}
}

// TestHistoryKeepsTheAttempts: however short the history is, it does not forget how often a slot was restarted.
func TestHistoryKeepsTheAttempts(t *testing.T) {
	w := newWorld(t, 1)
	w.history(new(int64))
	id := w.service(0, startFirst(2))
	w.settle()
	w.image(id, "bad")
	if n := w.failing(id, "bad"); n != 3 {
		t.Errorf("%d tasks failed, wanted are the first and two restarts", n)
	}
}

// TestHeldTaskIsNotLetGoBesideAnother: a drain is taken back, and a new revision overtakes the task that stays and
// the one that was prepared.
func TestHeldTaskIsNotLetGoBesideAnother(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, replicas(2))
	w.service(id, func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Monitor: time.Second} })
	w.settle()
	var on model.NodeID
	for _, x := range w.live(id) {
		on = x.Node // the second slot's: the rollout begins with the first
	}
	w.drain(on)
	w.plan()
	w.setNode(on, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
	w.image(id, "img:2")
	for range 30 {
		w.plan()
		wants := map[uint32]int{}
		for _, x := range w.live(id) {
			if x.Desired == model.StateRunning && !x.State.Terminal() {
				wants[x.Slot]++
			}
		}
		for slot, n := range wants {
			if n > 1 {
				t.Fatalf("%d tasks are meant to run in slot %d", n, slot)
			}
		}
		w.agentStep(seeded(1), 1<<30)
		w.now += second
	}
	w.settle()
	if n := w.countRunning(id); n != 2 {
		t.Errorf("%d run", n)
	}
}

// TestDrainedSlotThatStartsFirstHasNoThird: both tasks of a slot have to leave their nodes.
func TestDrainedSlotThatStartsFirstHasNoThird(t *testing.T) {
	w := newWorld(t, 4)
	id := w.service(0, startFirst(0))
	w.settle()
	first := w.running(id)[0]
	w.image(id, "img:2")
	w.plan()
	for _, x := range w.live(id) {
		if x.ID != first.ID {
			w.report(x, model.StateRunning)
			w.drain(x.Node)
		}
	}
	w.drain(first.Node)
	w.image(id, "img:3") // both are overtaken now
	for range 40 {
		w.plan()
		n := 0
		for _, x := range w.live(id) {
			if x.Desired == model.StateRunning && !x.State.Terminal() {
				n++
			}
		}
		if n > 2 || n == 0 {
			t.Fatalf("%d tasks are meant to run in the slot", n)
		}
		w.agentStep(seeded(1), 1<<30)
		w.now += second
	}
	w.settle()
	if n := w.countRunning(id); n != 1 {
		t.Errorf("%d run", n)
	}
}
