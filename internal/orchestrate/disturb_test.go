package orchestrate_test

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
)

// This file is about what users and nodes do in the middle of a rollout.

// out counts slots that have no task that is observed running and meant to run.
func (w *world) out(id model.ServiceID, n int) int {
	up := map[uint32]bool{}
	for x := range w.snap.Tasks(id) {
		if x.State == model.StateRunning && x.Desired == model.StateRunning {
			up[x.Slot] = true
		}
	}
	return n - len(up)
}

// TestDrainTakenBackDuringARollout: a drain that is taken back stops nothing: old tasks whose successors were not let go
// yet stay, and the rollout goes on at its own pace.
func TestDrainTakenBackDuringARollout(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, oneByOne(8))
	w.settle()
	w.image(id, "img:2")
	w.plan() // slot 1
	on := w.live(id)[7].Node
	w.drain(on)
	w.plan() // successors are assigned, and fetch their image
	if n := w.out(id, 8); n > 1 {
		t.Fatalf("before: %d", n)
	}
	w.setNode(on, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
	w.plan()
	if n := w.out(id, 8); n > 1 {
		t.Errorf("%d slots out of service, parallelism 1", n)
	}
}

// TestOrderChangedDuringARollout: a service that started all its new tasks first, and is to stop first now, keeps the
// old ones until the new ones run.
func TestOrderChangedDuringARollout(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(4)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 0, Order: swarm.UpdateOrderStartFirst}
	})
	w.settle()
	w.image(id, "img:2")
	w.plan()
	w.service(id, func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1} })
	w.plan()
	if n := w.out(id, 4); n > 1 {
		t.Errorf("%d out", n)
	}
}

// TestConstraintDuringARollout: a constraint that comes while a slot is under way does not make the rollout forget that
// slot.
func TestConstraintDuringARollout(t *testing.T) {
	w := newWorld(t, 3)
	id := w.service(0, oneByOne(3))
	w.settle()
	w.image(id, "img:2")
	w.plan()
	w.obey() // the old one of the first slot has stopped, the new one is prepared
	w.service(id, func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role==worker"}} // all match
	})
	w.plan()
	if n := w.out(id, 3); n > 1 {
		t.Errorf("%d slots out of service, parallelism 1", n)
	}
}

// TestLateEndOfALostTaskIsNoFailure: a new task was lost with its node and has a successor; that the node is back and
// tells of its end is no failure of the update.
func TestLateEndOfALostTaskIsNoFailure(t *testing.T) {
	w := newWorld(t, 5)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(4)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Delay: time.Minute, FailureAction: swarm.UpdateFailureActionRollback}
	})
	w.settle()
	w.image(id, "img:2")
	w.plan()
	w.obey()
	w.plan()
	lost := newest(w.live(id))
	w.report(lost, model.StateStarting)
	w.setState(lost.Node, swarm.NodeStateDown)
	for range 30 {
		w.plan()
		w.obey()
		w.now += second
	}
	if n := w.updated(id); n < 1 {
		t.Fatalf("%d", n)
	}
	w.setState(lost.Node, swarm.NodeStateReady)
	w.report(w.snap.Task(lost.ID), model.StateFailed)
	w.plan()
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateUpdating {
		t.Errorf("%+v", u)
	}
}

// TestLateEndOfALostTaskHidesNoHeir: nor does it let another slot be taken while the successor comes up.
func TestLateEndOfALostTaskHidesNoHeir(t *testing.T) {
	w := newWorld(t, 5)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(3)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionContinue}
	})
	w.settle()
	w.image(id, "new")
	w.plan()
	w.obey()
	w.plan()
	lost := newest(w.live(id))
	w.report(lost, model.StateStarting)
	w.setState(lost.Node, swarm.NodeStateDown)
	w.plan()
	w.advance(20 * time.Second)
	w.plan()
	w.setState(lost.Node, swarm.NodeStateReady)
	w.advance(time.Second)
	w.report(w.snap.Task(lost.ID), model.StateFailed) // its container died with the power
	w.plan()
	if n := w.out(id, 3); n > 1 {
		t.Errorf("%d out of service", n)
	}
}

// TestCrashOnAPausedNodeDuringARollout: a paused node gets no new task of a global service, so the rollout does not wait
// for one.
func TestCrashOnAPausedNodeDuringARollout(t *testing.T) {
	w := newWorld(t, 4)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1}
	})
	w.settle()
	w.setNode(4, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityPause })
	w.image(id, "img:2")
	w.plan()
	for _, x := range w.live(id) {
		if x.Node == 4 {
			w.report(x, model.StateFailed)
		}
	}
	w.settle()
	w.advance(24 * time.Hour)
	w.settle()
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateCompleted {
		t.Error("the update does not end")
	}
}

// TestUnpausedNodeTurnsNothingBack: tasks that an update had to leave out are updated when their node is active again.
// That they fail says nothing of the update, which completed long ago.
func TestUnpausedNodeTurnsNothingBack(t *testing.T) {
	w := newWorld(t, 4)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionRollback, MaxFailureRatio: .5}
	})
	w.settle()
	w.setNode(1, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityPause })
	w.image(id, "img:2")
	w.settle()
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateCompleted || w.updated(id) != 3 {
		t.Fatalf("%d of 3 are updated: %+v", w.updated(id), u)
	}
	w.advance(24 * time.Hour)
	w.setNode(1, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
	for range 3 {
		w.plan()
		w.obey()
	}
	w.plan()
	for _, x := range w.live(id) {
		if x.Node == 1 {
			w.report(x, model.StateFailed)
		}
	}
	w.plan()
	w.settle()
	if s := w.snap.Service(id); s.Spec().TaskTemplate.ContainerSpec.Image != "img:2" || s.Update.State != swarm.UpdateStateCompleted || w.updated(id) != 4 {
		t.Errorf("one task of four, on the node that is active again, failed: %d are updated, %+v", w.updated(id), s.Update)
	}
}

// TestScaleDuringARollbackGoesOnGoingBack: a scale does not make an update of a rollback, whose failure would bring the
// bad image back.
func TestScaleDuringARollbackGoesOnGoingBack(t *testing.T) {
	w := newWorld(t, 3)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(4)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 2, FailureAction: swarm.UpdateFailureActionRollback}
	})
	w.settle()
	w.image(id, "bad")
	for range 2 {
		w.plan()
		w.obey()
		w.now += second / 10
	}
	w.plan()
	for _, x := range w.live(id) {
		if x.Template == w.snap.Service(id).Template && x.State == model.StateRunning {
			w.report(x, model.StateFailed)
		}
	}
	w.now += second / 10
	w.plan()
	w.now += second / 10
	w.service(id, replicas(5))
	for range 3 {
		w.now += second / 10
		w.plan()
		w.obey()
	}
	w.plan()
	w.now += second / 10
	for x := range w.snap.Tasks(id) {
		if x.Template == w.snap.Service(id).Template && x.State == model.StateRunning && x.CreatedAt >= w.snap.Service(id).Update.StartedAt && x.Slot < 5 {
			w.report(x, model.StateFailed)
			break
		}
	}
	w.plan()
	if img := w.snap.Service(id).Spec().TaskTemplate.ContainerSpec.Image; img == "bad" {
		t.Errorf("goes back to the bad one: %+v", w.snap.Service(id).Update)
	}
}

// TestSlotOfADrainedNodeIsUnderWayWhenItIsBack: with a short history too.
func TestSlotOfADrainedNodeIsUnderWayWhenItIsBack(t *testing.T) {
	for _, keep := range []bool{true, false} {
		w := newWorld(t, 3)
		if !keep {
			w.history(new(int64))
		}
		id := w.service(0, func(s *swarm.ServiceSpec) {
			s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 5 << 30}}
			s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1}
		})
		w.settle()
		w.image(id, "img:2")
		w.plan() // node 1: the new task has no room until the old one has stopped
		pause, _ := orchestrate.Pause(w.snap.Service(id))
		w.do(pause)
		w.drain(1)
		w.plan()
		w.obey()
		w.plan()
		w.setNode(1, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
		w.plan()
		resume, _ := orchestrate.Resume(w.snap.Service(id), w.now)
		w.do(resume)
		for range 10 {
			w.plan()
			w.now += second
		}
		n := 0
		for _, x := range w.live(id) {
			if x.Template == w.snap.Service(id).Template && x.State != model.StateRunning {
				n++
			}
		}
		if n > 1 {
			t.Errorf("history kept %v: %d under way", keep, n)
		}
	}
}

// TestOvertakenSlotRunsOneTask: in a rollout that is paused by a failure, a slot that was starting first for an earlier
// revision keeps one task.
func TestOvertakenSlotRunsOneTask(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(2)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Order: swarm.UpdateOrderStartFirst}
	})
	w.settle()
	w.image(id, "img:2")
	w.plan()
	w.obey()
	w.plan()
	if x := newest(w.live(id)); x.Slot != 2 || x.State >= model.StateRunning {
		t.Fatal("not the second slot")
	}
	w.image(id, "bad")
	for range 100 {
		w.plan()
		for _, x := range w.live(id) {
			if x.Template == w.snap.Service(id).Template && x.Desired == model.StateRunning && !x.State.Terminal() {
				w.report(x, model.StateFailed)
			}
		}
		w.obey()
		w.now += second
	}
	old := map[uint32]int{}
	for _, x := range w.running(id) {
		old[x.Slot]++
	}
	if old[2] > 1 {
		t.Errorf("slot 2 runs %d tasks of old revisions: %+v", old[2], w.snap.Service(id).Update)
	}
}

// TestUpdateOfFinishedSlotsMayFail: where no task is left to be replaced the API begins no rollout, and the planner does. It is
// the user's all the same.
func TestUpdateOfFinishedSlotsMayFail(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(2)(s)
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionNone}
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1}
	})
	w.settle()
	for _, x := range w.running(id) {
		w.report(x, model.StateComplete)
	}
	w.settle()
	w.image(id, "bad")
	w.do(model.Change{SetUpdate: &model.UpdateSet{Service: id}})
	w.plan()
	w.report(newest(w.live(id)), model.StateFailed)
	w.plan()
	if u := w.snap.Service(id).Update; u == nil || u.State != swarm.UpdateStatePaused {
		t.Errorf("%+v", u)
	}
}
