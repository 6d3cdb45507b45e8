package orchestrate_test

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

func TestCreateScaleAndRemove(t *testing.T) {
	w := newWorld(t, 3)
	id := w.service(0, replicas(3))
	w.plan()
	for i, task := range w.live(id) {
		if task.State != model.StateAssigned || !task.Gateway4.IsValid() || !task.Gateway6.IsValid() || task.Slot != uint32(i+1) {
			t.Errorf("one pass must bring a task to assigned: %+v", task)
		}
	}
	w.settle()
	if n := w.countRunning(id); n != 3 {
		t.Fatalf("%d run, want 3", n)
	}
	perNode := map[model.NodeID]int{}
	for _, task := range w.live(id) {
		perNode[task.Node]++
	}
	if len(perNode) != 3 {
		t.Errorf("3 tasks on %d of 3 nodes", len(perNode))
	}

	w.service(id, replicas(7))
	w.settle()
	w.service(id, replicas(2))
	w.settle()
	live := w.live(id)
	if len(live) != 2 || live[0].Slot != 1 || live[1].Slot != 2 {
		t.Errorf("scaling down must keep the low slots: %v", live)
	}
	if n := w.snap.NumTasks(); n != 2 {
		t.Errorf("%d tasks stored, want 2: what was scaled away is deleted", n)
	}

	w.do(model.Change{DeleteService: id})
	w.settle()
	if n := w.snap.NumTasks(); n != 0 {
		t.Errorf("%d tasks left after the service went", n)
	}
}

func TestScaleDownPrefersIdleTasksThenCrowdedNodes(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, replicas(4))
	w.settle()
	w.service(id, replicas(5))
	w.plan() // slot 5 is assigned, not running
	w.service(id, replicas(4))
	w.plan()
	for _, task := range w.live(id) {
		if task.Slot == 5 {
			t.Error("the task that does not run yet must go first")
		}
	}
	w.settle()
	w.service(id, replicas(2))
	w.settle()
	live := w.live(id)
	if live[0].Node == live[1].Node {
		t.Error("two tasks on two nodes must not share one")
	}
}

func TestRestartAfterDelay(t *testing.T) {
	w := newWorld(t, 1)
	id := w.service(0, replicas(1))
	w.settle()
	first := w.live(id)[0]
	w.report(first, model.StateFailed)
	failed := w.now
	w.plan()
	second := w.live(id)[0]
	if second.ID == first.ID || second.Slot != 1 || second.Desired != model.StateReady || second.StartAt != failed+5*second0 {
		t.Fatalf("want a held successor in slot 1: %+v", second)
	}
	if w.next != second.StartAt {
		t.Errorf("wants to be asked again at %v, want %v", w.next, second.StartAt)
	}
	w.obey()
	w.now = second.StartAt - 1
	w.plan()
	if w.live(id)[0].Desired != model.StateReady {
		t.Error("released too early")
	}
	w.now++
	w.plan()
	if w.live(id)[0].Desired != model.StateRunning {
		t.Error("not released when the delay was over")
	}
}

const second0 = model.Time(time.Second)

func TestRestartPolicies(t *testing.T) {
	n := func(v uint64) *uint64 { return &v }
	d := func(v time.Duration) *time.Duration { return &v }
	for _, tt := range []struct {
		name   string
		policy swarm.RestartPolicy
		ends   model.TaskState
		lives  time.Duration // of each task
		want   int           // restarts within 20 tries
	}{
		{"any restarts what completed", swarm.RestartPolicy{Delay: d(0)}, model.StateComplete, time.Second, 20},
		{"on-failure leaves what completed", swarm.RestartPolicy{Condition: "on-failure", Delay: d(0)}, model.StateComplete, time.Second, 0},
		{"on-failure restarts what failed", swarm.RestartPolicy{Condition: "on-failure", Delay: d(0)}, model.StateFailed, time.Second, 20},
		{"none never restarts", swarm.RestartPolicy{Condition: "none", Delay: d(0)}, model.StateFailed, time.Second, 0},
		{"three attempts", swarm.RestartPolicy{MaxAttempts: n(3), Delay: d(time.Second)}, model.StateFailed, time.Second, 3},
		{"three attempts within a window that is long", swarm.RestartPolicy{MaxAttempts: n(3), Window: d(time.Hour), Delay: d(time.Second)}, model.StateFailed, time.Second, 3},
		{"three attempts within a window that passes", swarm.RestartPolicy{MaxAttempts: n(3), Window: d(time.Minute), Delay: d(time.Second)}, model.StateFailed, time.Minute, 20},
		{"three attempts of tasks that end in the instant they are made", swarm.RestartPolicy{MaxAttempts: n(3), Window: d(time.Hour), Delay: d(0)}, model.StateFailed, 0, 3},
		{"what is rejected counts too", swarm.RestartPolicy{MaxAttempts: n(2), Delay: d(time.Second)}, model.StateRejected, time.Second, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 1)
			id := w.service(0, func(s *swarm.ServiceSpec) { s.TaskTemplate.RestartPolicy = &tt.policy })
			w.settle()
			restarts := 0
			for range 20 {
				live := w.live(id)
				if len(live) == 0 {
					break
				}
				w.advance(tt.lives)
				w.report(live[0], tt.ends)
				w.settle()
				if now := w.live(id); len(now) == 1 && now[0].ID != live[0].ID {
					restarts++
				}
			}
			if restarts != tt.want {
				t.Errorf("%d restarts, want %d", restarts, tt.want)
			}
			// However it ended, history is bounded.
			if n := w.snap.NumTasks(); n > 7 {
				t.Errorf("%d tasks in the history of one slot", n)
			}
		})
	}
}

func TestRollingUpdateOneAtATime(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(4)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Delay: 10 * time.Second}
	})
	w.settle()
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "img:2" })
	if u := w.snap.Service(id).Update; u == nil || u.State != swarm.UpdateStateUpdating || u.Message != "update in progress" {
		t.Fatalf("update status %+v", u)
	}
	start := w.now
	for range 200 {
		w.plan()
		quiet := w.planned == 0
		before := w.index
		w.obey()
		if n := w.countRunning(id); n < 3 {
			t.Fatalf("only %d of 4 run during an update one at a time", n)
		}
		if quiet && before == w.index {
			if w.next == 0 {
				break
			}
			w.now = w.next
		}
	}
	svc := w.snap.Service(id)
	if svc.Update.State != swarm.UpdateStateCompleted || svc.Update.Message != "update completed" {
		t.Fatalf("status %+v", svc.Update)
	}
	if took := w.now - start; took != 3*10*second+5*second {
		t.Errorf("took %v, want three delays and one monitor window", time.Duration(took))
	}
	for _, task := range w.live(id) {
		if task.Template != svc.Template || task.State != model.StateRunning {
			t.Errorf("task %+v was not updated", task)
		}
	}
}

func TestStartFirstNeverRunsFewer(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(3)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 2, Order: swarm.UpdateOrderStartFirst}
	})
	w.settle()
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "img:2" })
	for range 50 {
		w.plan()
		w.obey()
		if n := w.countRunning(id); n < 3 || n > 5 {
			t.Fatalf("%d run, want 3 to 5", n)
		}
	}
	w.settle()
	if w.snap.Service(id).Update.State != swarm.UpdateStateCompleted || w.countRunning(id) != 3 {
		t.Error("not completed")
	}
}

// failNew makes every task of the template in force fail as soon as it is placed.
func (w *world) failNew(id model.ServiceID, bad string) {
	for _, task := range w.live(id) {
		tpl := w.snap.Template(task.Template)
		if tpl.Task.Typed.ContainerSpec.Image == bad && task.State >= model.StateAssigned && !task.State.Terminal() && task.Desired == model.StateRunning {
			w.report(task, model.StateFailed)
		}
	}
}

func TestUpdatePausesOnFailureAndResumes(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, replicas(3))
	w.settle()
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "bad" })
	for range 20 {
		w.plan()
		w.failNew(id, "bad")
		w.obey()
	}
	u := w.snap.Service(id).Update
	if u.State != swarm.UpdateStatePaused {
		t.Fatalf("status %+v", u)
	}
	const want = "update paused due to failure or early termination of task "
	if len(u.Message) != len(want)+model.IDLen || u.Message[:len(want)] != want {
		t.Errorf("message %q", u.Message)
	}
	if n := w.countRunning(id); n != 2 {
		t.Errorf("%d of the old tasks run, want 2", n)
	}
	// The next update resumes.
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "img:3" })
	w.settle()
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateCompleted || w.countRunning(id) != 3 {
		t.Errorf("status %+v, %d run", u, w.countRunning(id))
	}
}

func TestUpdateRollsBackOnFailure(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(3)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionRollback}
	})
	w.settle()
	good := w.snap.Service(id).Template
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "bad" })
	for range 20 {
		w.plan()
		w.failNew(id, "bad")
		w.obey()
	}
	w.settle()
	svc := w.snap.Service(id)
	if svc.Update.State != swarm.UpdateStateRollbackCompleted || svc.Update.Message != "rollback completed" || svc.Template != good {
		t.Fatalf("status %+v, template %d, want %d", svc.Update, svc.Template, good)
	}
	if w.countRunning(id) != 3 {
		t.Errorf("%d run", w.countRunning(id))
	}
}

func TestFailureRatioTolerates(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(4)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, MaxFailureRatio: 0.3}
	})
	w.settle()
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "img:2" })
	failed := false
	for range 100 {
		w.plan()
		if !failed {
			for _, task := range w.live(id) {
				if task.Template == w.snap.Service(id).Template && task.Desired == model.StateRunning && task.State < model.StateRunning && task.Node != 0 {
					w.report(task, model.StateFailed)
					failed = true
					break
				}
			}
		}
		w.obey()
		if w.next != 0 && w.planned == 0 {
			w.now = w.next
		}
	}
	w.settle()
	if u := w.snap.Service(id).Update; !failed || u.State != swarm.UpdateStateCompleted {
		t.Errorf("one failure of four is under the ratio: %+v", u)
	}
}

func TestScaleAndLabelsRestartNothing(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, replicas(2))
	w.settle()
	before := w.live(id)
	w.service(id, func(s *swarm.ServiceSpec) {
		replicas(4)(s)
		s.Labels = map[string]string{"a": "b"}
	})
	w.settle()
	after := w.live(id)
	if after[0].ID != before[0].ID || after[1].ID != before[1].ID || len(after) != 4 {
		t.Errorf("tasks were replaced: %v, then %v", before, after)
	}
	if u := w.snap.Service(id).Update; u != nil {
		t.Errorf("status %+v", u)
	}
}
