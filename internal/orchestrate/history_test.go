package orchestrate_test

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// crash lets the service's only task fail n times, a minute after each start.
func (w *world) crash(id model.ServiceID, n int, every time.Duration) {
	for range n {
		w.advance(every)
		if live := w.live(id); len(live) == 1 && live[0].State == model.StateRunning {
			w.report(live[0], model.StateFailed)
		}
		w.settle2(20 * time.Second)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	limit := func(n int64) *int64 { return &n }
	for _, tt := range []struct {
		name  string
		limit *int64
		every time.Duration
		want  int // tasks in the slot, the running one included
	}{
		{"default", nil, 10 * time.Minute, 5},
		{"recent failures stay for the scheduler to count", nil, 20 * time.Second, 6},
		{"two", limit(2), 20 * time.Second, 2},
		{"none", limit(0), 20 * time.Second, 1},
		{"all", limit(-1), 20 * time.Second, 13},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.history(tt.limit)
			id := w.service(0, replicas(1))
			w.settle()
			w.crash(id, 12, tt.every)
			if n := w.snap.NumTasks(); n != tt.want {
				t.Errorf("%d tasks, want %d", n, tt.want)
			}
			// When nothing fails any more, what was kept for the scheduler goes too.
			w.advance(time.Hour)
			w.settle()
			if n := w.snap.NumTasks(); tt.limit == nil && n != 5 {
				t.Errorf("%d tasks an hour later", n)
			}
		})
	}
}

func TestFinishedSlotKeepsItsLastTask(t *testing.T) {
	w := newWorld(t, 1)
	w.history(new(int64))
	id := w.service(0, func(s *swarm.ServiceSpec) {
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionNone}
	})
	w.settle()
	first := w.live(id)[0]
	w.report(first, model.StateComplete)
	w.settle()
	w.advance(time.Hour)
	w.settle()
	if n := w.snap.NumTasks(); n != 1 || w.snap.Task(first.ID) == nil {
		t.Errorf("%d tasks; the slot must stay taken by the one that completed", n)
	}
	// An update runs it again.
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "img:2" })
	w.settle()
	if w.countRunning(id) != 1 {
		t.Error("the update did not run the finished slot again")
	}
}

func TestTaskThatFailsWhileHeldBackIsNotTriedInATightLoop(t *testing.T) {
	w := newWorld(t, 1)
	id := w.service(0, replicas(1))
	w.plan()
	start, tries := w.now, 0
	for w.now < start+60*second {
		if live := w.live(id); len(live) == 1 && live[0].State == model.StateAssigned {
			w.report(live[0], model.StateRejected) // no such image
			tries++
		}
		w.plan()
		if live := w.live(id); live[0].State != model.StateAssigned {
			if w.next == 0 {
				t.Fatal("asks for nothing")
			}
			w.now = w.next
		}
	}
	if tries > 14 {
		t.Errorf("%d tries in a minute, with a delay of 5 seconds", tries)
	}
}

func TestScaledInTheMiddleOfAnUpdate(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(4)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Delay: 10 * time.Second}
	})
	w.settle()
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "img:2" })
	w.plan()
	w.obey()
	w.service(id, replicas(6))
	if u := w.snap.Service(id).Update; u == nil || u.State != swarm.UpdateStateUpdating {
		t.Fatalf("scaling ended the update: %+v", u)
	}
	w.plan()
	fresh := 0
	for _, task := range w.live(id) {
		if task.Slot > 4 && task.Template == w.snap.Service(id).Template {
			fresh++
		}
	}
	if fresh != 2 {
		t.Errorf("%d new slots with the new template, want 2 at once", fresh)
	}
	w.settle()
	for _, task := range w.live(id) {
		if task.Template != w.snap.Service(id).Template {
			t.Errorf("slot %d is still old", task.Slot)
		}
	}
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateCompleted || w.countRunning(id) != 6 {
		t.Errorf("%+v, %d run", u, w.countRunning(id))
	}
}

// TestLabelsRenewNoAttempts: a slot that was given up stays so, however many revisions with the same tasks follow.
func TestLabelsRenewNoAttempts(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, startFirst(2))
	w.settle()
	w.image(id, "bad")
	if n := w.failing(id, "bad"); n == 0 {
		t.Fatal("nothing fails")
	}
	for i := range 40 {
		w.service(id, func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"n": string(rune('a' + i))} })
		if n := w.failing(id, "bad"); n > 0 {
			t.Errorf("label change %d: %d more tasks fail", i, n)
		}
	}
}

// TestReturnOfANodeIsNoRestart: a node of a global service may be drained and come back more often than the policy
// allows restarts.
func TestReturnOfANodeIsNoRestart(t *testing.T) {
	w := newWorld(t, 2)
	three := uint64(3)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{MaxAttempts: &three}
	})
	w.settle()
	for i := range 6 {
		w.drain(1)
		w.settle()
		w.setNode(1, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
		w.settle()
		if n := w.countRunning(id); n != 2 {
			t.Fatalf("after %d drains %d run", i+1, n)
		}
	}
}

// TestReturnOfANodeOnTheLastAttempt: a global task on its last attempt, or of a policy that restarts nothing, comes back
// with its node.
func TestReturnOfANodeOnTheLastAttempt(t *testing.T) {
	for _, cond := range []swarm.RestartPolicyCondition{swarm.RestartPolicyConditionAny, swarm.RestartPolicyConditionNone} {
		w := newWorld(t, 2)
		id := w.service(0, func(s *swarm.ServiceSpec) {
			s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
			two := uint64(2)
			s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: cond, MaxAttempts: &two}
		})
		w.settle()
		if cond != swarm.RestartPolicyConditionNone {
			for range 2 {
				for _, x := range w.live(id) {
					w.report(x, model.StateFailed)
				}
				w.settle()
			}
		}
		if n := w.countRunning(id); n != 2 {
			t.Fatal(n)
		}
		for n := model.NodeID(1); n <= 2; n++ {
			w.drain(n)
			w.settle()
			w.setNode(n, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
			w.settle()
		}
		if n := w.countRunning(id); n != 2 {
			t.Errorf("%s: %d of 2 run after drains of both nodes", cond, n)
		}
	}
}
