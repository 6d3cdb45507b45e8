package orchestrate_test

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
)

// This file is about what is changed, and changed back, in the middle of a rollout.

// TestDrainTakenBackAfterItsTasksFailed: tasks that failed to come up for a drain are no turns of the rollout.
func TestDrainTakenBackAfterItsTasksFailed(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(8)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionContinue}
	})
	w.settle()
	w.image(id, "img:2")
	w.plan() // slot 1
	on := w.live(id)[7].Node
	w.drain(on)
	w.plan()
	for _, x := range w.live(id) { // their preparation fails, once
		if x.Template == w.snap.Service(id).Template && x.Slot != 1 && x.State == model.StateAssigned {
			w.report(x, model.StateRejected)
		}
	}
	w.plan()
	if n := w.out(id, 8); n > 1 {
		t.Fatalf("before: %d", n)
	}
	w.setNode(on, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
	for range 30 {
		w.plan()
		if n := w.out(id, 8); n > 1 {
			t.Fatalf("%d slots out of service, parallelism 1", n)
		}
		w.obey()
		w.now += second
	}
}

// TestDrainTakenBackWithOneAttempt: a drain that is taken back leaves the slots to the rollout, whatever attempts its
// tasks used up.
func TestDrainTakenBackWithOneAttempt(t *testing.T) {
	w := newWorld(t, 2)
	one := uint64(1)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(4)(s)
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{MaxAttempts: &one}
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1}
	})
	w.settle()
	w.image(id, "img:2")
	w.plan()
	on := w.live(id)[3].Node
	w.drain(on)
	w.plan()
	w.setNode(on, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
	w.settle()
	if n := w.updated(id); n != 4 {
		t.Errorf("%d of 4 are updated, none failed: %+v", n, w.snap.Service(id).Update)
	}
}

// TestConstraintTakenBack: a slot whose new task has to leave its node and then need not is under way until its
// successor runs.
func TestConstraintTakenBack(t *testing.T) {
	w := newWorld(t, 4)
	id := w.service(0, oneByOne(4))
	w.settle()
	w.image(id, "img:2")
	for w.updated(id) == 0 {
		w.plan()
		w.obey()
		w.now += second / 10
	}
	var done *model.Task
	for _, x := range w.running(id) {
		if x.Template == w.snap.Service(id).Template {
			done = x
		}
	}
	constrain := func(c ...string) {
		w.now += second / 10
		w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.Placement = &swarm.Placement{Constraints: c} })
	}
	constrain("node.hostname!=" + w.snap.Node(done.Node).Description.Hostname)
	for w.snap.Task(done.ID).Desired == model.StateRunning { // it is moved when it is its turn
		w.plan()
		if n := w.out(id, 4); n > 1 {
			t.Fatalf("before: %d", n)
		}
		if w.snap.Task(done.ID).Desired == model.StateRunning {
			w.obey()
		}
		w.now += second / 10
	}
	constrain()
	w.plan()
	if n := w.out(id, 4); n > 1 {
		t.Errorf("%d slots out of service, parallelism 1", n)
	}
}

// TestRevisionTakenBack: a new task that an earlier rollout began to bring up is under way in the next one to the same revision.
func TestRevisionTakenBack(t *testing.T) {
	w := newWorld(t, 3)
	id := w.service(0, oneByOne(4))
	w.settle()
	old := w.snap.Service(id).Spec().TaskTemplate.ContainerSpec.Image
	w.image(id, "new")
	w.plan()
	w.now += second
	w.image(id, old)
	w.now += second
	w.image(id, "new")
	for range 5 {
		w.plan()
		w.now += second
		if n := w.out(id, 4); n > 1 {
			t.Fatalf("%d slots out of service, parallelism 1", n)
		}
	}
	w.settle()
	if n := w.updated(id); n != 4 {
		t.Errorf("%d of 4 are updated", n)
	}
}

// TestPausedRollbackKeepsItsOrder: a rollback that starts first, of an update that stops first, does so while it is paused too: who
// follows a new task that failed is not dropped for the one that runs.
func TestPausedRollbackKeepsItsOrder(t *testing.T) {
	w := newWorld(t, 3)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(2)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Order: swarm.UpdateOrderStopFirst}
		s.RollbackConfig = &swarm.UpdateConfig{Parallelism: 1, Order: swarm.UpdateOrderStartFirst, FailureAction: swarm.UpdateFailureActionPause}
	})
	w.settle()
	w.image(id, "img:2")
	w.settle()
	w.now += second
	w.do(model.Change{NewRevision: orchestrate.Rollback(w.snap.Service(id), orchestrate.ManualRollback, w.now)})
	w.plan()
	w.report(newest(w.live(id)), model.StateFailed)
	w.plan()
	heir := newest(w.live(id))
	if heir.Template != w.snap.Service(id).Template {
		t.Fatal("nobody follows the one that failed")
	}
	for range 30 {
		w.plan()
		w.now += second
	}
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateRollbackPaused {
		t.Fatalf("%+v", u)
	}
	if x := newest(w.live(id)); x.ID != heir.ID || x.Desired != model.StateRunning || w.out(id, 2) != 0 {
		t.Errorf("the successor %d is %s, the newest is %d; %d slots are out", heir.ID.Num, w.snap.Task(heir.ID).Desired, x.ID.Num, w.out(id, 2))
	}
}
