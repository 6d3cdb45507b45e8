package orchestrate_test

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
)

// TestRolloutDoesNotWaitForRestartDelays: old tasks that fail by themselves while a rollout is under way come back as
// new ones after the restart delay; the other slots go on meanwhile, and the rollout ends when all have come up.
func TestRolloutDoesNotWaitForRestartDelays(t *testing.T) {
	for s := uint64(1); s <= 60; s++ {
		r := seeded(s)
		w := newWorld(t, 3)
		n, fails := 2+r.IntN(7), 0
		id := w.service(0, func(sp *swarm.ServiceSpec) {
			replicas(uint64(n))(sp)
			delay := time.Hour
			sp.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: &delay}
			sp.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1 + uint64(r.IntN(2)), Monitor: time.Second}
		})
		w.settle()
		w.image(id, "img:2")
		began := w.now
		for w.now < began+model.Time(10*time.Minute) {
			w.plan()
			for _, x := range w.running(id) {
				if x.Template != w.snap.Service(id).Template && x.Desired == model.StateRunning && fails < 2 && r.IntN(4) == 0 {
					w.report(x, model.StateFailed)
					fails++
				}
			}
			w.obey()
			w.now += second
		}
		waits := 0
		for _, x := range w.live(id) {
			if x.Template != w.snap.Service(id).Template {
				t.Fatalf("seed %d: slot %d still waits for the update", s, x.Slot)
			}
			if x.Desired < model.StateRunning {
				waits++
			}
		}
		if waits != fails {
			t.Fatalf("seed %d: %d tasks failed and %d wait for their restart", s, fails, waits)
		}
		if u := w.snap.Service(id).Update.State; (u == swarm.UpdateStateCompleted) != (waits == 0) {
			t.Fatalf("seed %d: %s with %d tasks that have not come up", s, u, waits)
		}
		w.settle()
		if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateCompleted || w.countRunning(id) != n {
			t.Fatalf("seed %d: %+v, %d of %d run", s, u, w.countRunning(id), n)
		}
	}
}

// TestFailureAfterARestartDelayCounts: a new task that comes up late, because the old one failed by itself, is
// part of the rollout: when it fails the failure action follows.
func TestFailureAfterARestartDelayCounts(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(2)(s)
		delay := time.Minute
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: &delay}
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Monitor: 5 * time.Second, FailureAction: swarm.UpdateFailureActionPause}
	})
	w.settle()
	w.image(id, "img:2")
	w.plan() // the first slot is under way
	second2 := w.live(id)[1]
	w.report(second2, model.StateFailed)
	for range 30 {
		w.plan()
		w.obey()
		w.now += second
	}
	var late *model.Task
	for _, x := range w.live(id) {
		if x.Slot == second2.Slot {
			late = x
		}
	}
	if u := w.snap.Service(id).Update.State; u != swarm.UpdateStateUpdating || late.Desired != model.StateReady {
		t.Fatalf("%s, the late task is desired %s", u, late.Desired)
	}
	w.now = late.StartAt
	w.plan()
	w.report(w.snap.Task(late.ID), model.StateFailed)
	w.plan()
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStatePaused {
		t.Errorf("%+v", u)
	}
}

// TestRolloutIsBoundedWhateverFails: of the slots that a rollout took from a task that ran, never more than its
// parallelism are without a task that came up, whatever fails meanwhile; and each new task that fails counts once,
// however often its slot is restarted.
func TestRolloutIsBoundedWhateverFails(t *testing.T) {
	for s := uint64(1); s <= 150; s++ {
		r := seeded(s)
		w := newWorld(t, 3)
		n, par := 2+r.IntN(6), 1+r.IntN(3)
		delay := time.Duration(r.IntN(30)) * time.Second
		id := w.service(0, func(sp *swarm.ServiceSpec) {
			replicas(uint64(n))(sp)
			sp.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: &delay}
			sp.UpdateConfig = &swarm.UpdateConfig{Parallelism: uint64(par), Monitor: time.Second, MaxFailureRatio: .5,
				Order: []swarm.UpdateOrder{swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst}[r.IntN(2)]}
		})
		w.settle()
		w.image(id, "img:2")
		took, failed := map[uint32]*model.Task{}, map[uint32]bool{}
		for range 120 {
			before := w.snap
			ran := map[uint32]bool{}
			for _, x := range w.live(id) {
				ran[x.Slot] = ran[x.Slot] || x.State == model.StateRunning && x.Desired == model.StateRunning
			}
			w.plan()
			for x := range w.snap.Tasks(id) {
				if before.Task(x.ID) == nil && took[x.Slot] == nil && ran[x.Slot] && x.Template == w.snap.Service(id).Template {
					took[x.Slot] = x
				}
			}
			flying := 0
			for slot, x := range took {
				switch now := w.snap.Task(x.ID); {
				case now == nil:
				case now.State == model.StateFailed:
					failed[slot] = now.RunningSince == 0 || now.StatusAt-now.RunningSince <= second
				case now.RunningSince == 0:
					flying++
				}
			}
			if flying > par {
				t.Fatalf("seed %d: %d slots under way, parallelism %d", s, flying, par)
			}
			early := 0
			for _, is := range failed {
				if is {
					early++
				}
			}
			u := w.snap.Service(id).Update
			if paused := u.State == swarm.UpdateStatePaused; paused != (2*early > n) && u.State != swarm.UpdateStateCompleted {
				t.Fatalf("seed %d: %s after %d of %d slots failed early", s, u.State, early, n)
			}
			if u.State != swarm.UpdateStateUpdating {
				break
			}
			w.failNow(r, id)
			w.now += model.Time(r.Int64N(int64(2 * time.Second)))
		}
	}
}

// failNow moves an agent, and lets now and then a new task fail.
func (w *world) failNow(r *rand.Rand, id model.ServiceID) {
	for _, x := range w.live(id) {
		if x.Template == w.snap.Service(id).Template && x.State >= model.StateAssigned && !x.State.Terminal() && x.Desired == model.StateRunning && r.IntN(4) == 0 {
			w.report(x, model.StateFailed)
			return
		}
	}
	w.agentStep(r, 1<<30)
}

// TestPauseForgetsNoStep: what is under way when a rollout is paused still counts when it goes on, however short the
// history is.
func TestPauseForgetsNoStep(t *testing.T) {
	w := newWorld(t, 2)
	w.history(new(int64))
	id := w.service(0, oneByOne(3))
	w.settle()
	w.image(id, "img:2")
	w.plan()
	w.obey() // the old task has stopped; the new one may start, and does not yet
	w.plan()
	pause, err := orchestrate.Pause(w.snap.Service(id))
	if err != nil {
		t.Fatal(err)
	}
	w.do(pause)
	w.plan()
	resume, err := orchestrate.Resume(w.snap.Service(id), w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.do(resume)
	w.plan()
	fresh := 0
	for _, x := range w.live(id) {
		if x.Template == w.snap.Service(id).Template {
			fresh++
		}
	}
	if fresh != 1 {
		t.Errorf("%d slots are under way, the parallelism is 1", fresh)
	}
}

// TestRolloutDoesNotTryWhatIsGivenUp: a task that lost its node after the last attempt of its policy gets no more of
// them from the rollout that made it, while the older one still runs.
func TestRolloutDoesNotTryWhatIsGivenUp(t *testing.T) {
	one, delay := uint64(1), 10*time.Second
	w := newWorld(t, 1)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(1)(s)
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{MaxAttempts: &one, Delay: &delay}
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Order: swarm.UpdateOrderStartFirst, FailureAction: swarm.UpdateFailureActionContinue}
	})
	w.settle()
	other := w.addNode(nil)
	w.image(id, "img:2") // on the other node, beside the old one
	w.plan()
	w.report(w.live(id)[1], model.StateFailed)
	w.now += second
	w.plan() // the one attempt
	w.now += 11 * second
	w.plan()
	if last := w.live(id)[1]; last.Node != other {
		t.Fatalf("the second try is on node %d", last.Node)
	}
	w.setState(other, swarm.NodeStateDown)
	made := w.snap.Service(id).LastTask
	for range 30 {
		w.plan()
		w.now += second
	}
	if last := w.snap.Service(id).LastTask; last != made {
		t.Errorf("%d more attempts than the policy has", last-made)
	}
}

// TestRolloutWaitsForWhoLostItsNode: a new task that starts first, and has to leave its node before it could take over, is not
// what the rollout was to reach. It ends when its successor took over, and until then the old task stays.
func TestRolloutWaitsForWhoLostItsNode(t *testing.T) {
	for _, state := range []model.TaskState{model.StateStarting, model.StateRunning} {
		w := newWorld(t, 2)
		id := w.service(0, func(s *swarm.ServiceSpec) {
			startFirst(0)(s)
		})
		w.settle()
		old := w.running(id)[0]
		w.image(id, "new")
		w.plan()
		heir := w.live(id)[1]
		w.setNode(old.Node, func(n *swarm.NodeSpec) { n.Availability = swarm.NodeAvailabilityPause })
		w.report(heir, state)
		w.drain(heir.Node)
		for range 3 {
			w.obey()
			w.plan()
			w.advance(time.Minute)
		}
		if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateUpdating {
			t.Errorf("%s: %+v, and nothing new runs", state, u)
		}
		if r := w.running(id); len(r) != 1 || r[0].ID != old.ID {
			t.Errorf("%s: the old task does not run on: %v", state, r)
		}
		w.setNode(heir.Node, func(n *swarm.NodeSpec) { n.Availability = swarm.NodeAvailabilityActive })
		w.settle()
		w.advance(time.Minute)
		w.settle()
		if r := w.running(id); len(r) != 1 || r[0].ID == old.ID || w.snap.Service(id).Update.State != swarm.UpdateStateCompleted {
			t.Errorf("%s: %v, %+v", state, r, w.snap.Service(id).Update)
		}
	}
}

// TestRolloutDoesNotWaitForALostNode: a new task that is lost with its node while it comes up holds up nobody: who follows it counts,
// and where nobody does the slot has what it had, or is given up.
func TestRolloutDoesNotWaitForALostNode(t *testing.T) {
	for _, order := range []swarm.UpdateOrder{swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst} {
		for _, restart := range []swarm.RestartPolicyCondition{swarm.RestartPolicyConditionAny, swarm.RestartPolicyConditionNone} {
			w := newWorld(t, 5)
			id := w.service(0, func(s *swarm.ServiceSpec) {
				startFirst(0)(s)
				replicas(3)(s)
				s.UpdateConfig.Order = order
				s.TaskTemplate.RestartPolicy.Condition = restart
			})
			w.settle()
			w.image(id, "new")
			w.plan()
			first := newest(w.live(id))
			w.report(first, model.StateStarting)
			w.setState(first.Node, swarm.NodeStateDown)
			for range 60 {
				w.plan()
				w.obey()
				w.advance(time.Second)
			}
			for _, r := range w.live(id) {
				if img := w.snap.Template(r.Template).Task.Typed.ContainerSpec.Image; img != "new" {
					t.Errorf("%s, %s: %v runs %s still", order, restart, r.ID, img)
				}
			}
			if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateCompleted {
				t.Errorf("%s, %s: %+v", order, restart, u)
			}
		}
	}
}

// TestHeirOfALostTaskIsUnderWay: who follows a new task that was lost with its node takes its share of the parallelism until it
// runs, however short the history is.
func TestHeirOfALostTaskIsUnderWay(t *testing.T) {
	w := newWorld(t, 5)
	w.history(new(int64))
	id := w.service(0, oneByOne(3))
	w.settle()
	w.image(id, "new")
	w.plan()
	lost := newest(w.live(id))
	w.report(lost, model.StateStarting)
	w.setState(lost.Node, swarm.NodeStateDown)
	w.plan()
	heir := newest(w.live(id))
	if heir.Slot != lost.Slot || heir.ID == lost.ID {
		t.Fatalf("%v in slot %d does not follow %v in slot %d", heir.ID, heir.Slot, lost.ID, lost.Slot)
	}
	w.obey() // what was there before has stopped, and is forgotten as soon as it may be
	w.report(heir, model.StateStarting)
	for range 20 {
		w.plan()
		w.advance(time.Second)
		if n := newest(w.live(id)); n.ID != heir.ID {
			t.Fatalf("slot %d is replaced while slot %d is under way", n.Slot, heir.Slot)
		}
	}
	w.report(heir, model.StateRunning)
	w.plan()
	if n := newest(w.live(id)); n.ID == heir.ID {
		t.Error("the rollout does not go on")
	}
}

// newest is the task that was made last.
func newest(tasks []*model.Task) *model.Task {
	return slices.MaxFunc(tasks, func(a, b *model.Task) int { return cmp.Compare(a.ID.Num, b.ID.Num) })
}
