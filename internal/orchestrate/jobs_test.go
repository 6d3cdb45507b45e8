package orchestrate_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

func job(concurrent, total uint64) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) {
		s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: &concurrent, TotalCompletions: &total}}
		onFailure(0)(s)
	}
}

func onFailure(attempts uint64) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) {
		delay := 2 * time.Second
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionOnFailure, Delay: &delay}
		if attempts > 0 {
			s.TaskTemplate.RestartPolicy.MaxAttempts = &attempts
		}
	}
}

// completions counts the slots of the job's run in force that completed, and fails when one did so twice.
func (w *world) completions(id model.ServiceID) int {
	type slot struct {
		num  uint32
		node model.NodeID
	}
	done := map[slot]int{}
	svc := w.snap.Service(id)
	for t := range w.snap.Tasks(id) {
		if t.JobIteration == svc.JobIteration && t.State == model.StateComplete {
			key := slot{num: t.Slot}
			if t.Slot == 0 {
				key.node = t.Node
			}
			if done[key]++; done[key] > 1 {
				w.t.Errorf("slot %v of service %d completed twice", key, id)
			}
		}
	}
	return len(done)
}

// atWork counts a job's slots with tasks that are, or may be, running on a node.
func (w *world) atWork(id model.ServiceID) int {
	slots := map[uint32]bool{}
	for t := range w.snap.Tasks(id) {
		if !t.State.Terminal() && t.State >= model.StateAssigned && (t.Desired == model.StateRunning || t.State >= model.StateStarting) {
			slots[t.Slot] = true
		}
	}
	return len(slots)
}

// work lets every task that runs complete.
func (w *world) work(id model.ServiceID) {
	for t := range w.snap.Tasks(id) {
		if t.State == model.StateRunning && t.Desired == model.StateRunning {
			w.report(t, model.StateComplete)
		}
	}
}

func TestJobCompletesSoOftenAndRests(t *testing.T) {
	w := newWorld(t, 3)
	id := w.service(0, job(2, 5))
	for want := 2; want <= 6; want += 2 {
		w.settle()
		if n := w.atWork(id); n != min(2, 5-want+2) {
			t.Fatalf("%d tasks at work before %d completions", n, want)
		}
		w.work(id)
		if n := w.completions(id); n != min(want, 5) {
			t.Fatalf("%d completions, want %d", n, min(want, 5))
		}
	}
	w.settle()
	if n := w.snap.NumTasks(); n != 5 || w.atWork(id) != 0 {
		t.Errorf("%d tasks, %d at work after the job is done", n, w.atWork(id))
	}
	for task := range w.snap.Tasks(id) {
		if task.JobIteration != 1 {
			t.Errorf("iteration %d", task.JobIteration)
		}
	}
}

func TestForcedJobRunsAgain(t *testing.T) {
	w := newWorld(t, 1)
	id := w.service(0, job(3, 3))
	w.settle()
	first := w.live(id)
	w.report(first[0], model.StateComplete)
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
	w.plan()
	if n := w.atWork(id); n > 3 {
		t.Errorf("%d at work while the former run stops", n)
	}
	w.settle()
	w.work(id)
	w.settle()
	if n := w.completions(id); n != 3 {
		t.Errorf("%d completions of the second run", n)
	}
	if u := w.snap.Service(id).Update; u != nil {
		t.Errorf("a job has a rollout: %+v", u)
	}
	if old := w.snap.Task(first[1].ID); old != nil {
		t.Errorf("task of the former run: %+v", old)
	}
}

func TestFailedJobTaskIsTriedAgainByThePolicy(t *testing.T) {
	w := newWorld(t, 1)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		job(1, 2)(s)
		onFailure(2)(s)
	})
	for range 3 {
		w.settle()
		w.report(w.running(id)[0], model.StateFailed)
	}
	w.settle() // the first slot is given up after two restarts, the second goes on
	if r := w.running(id); len(r) != 1 || r[0].Slot != 2 {
		t.Fatalf("running: %v", r)
	}
	w.work(id)
	w.settle()
	if n := w.completions(id); n != 1 || w.atWork(id) != 0 {
		t.Errorf("%d completions, %d at work", n, w.atWork(id))
	}
}

func (w *world) running(id model.ServiceID) []*model.Task {
	var out []*model.Task
	for t := range w.snap.Tasks(id) {
		if t.State == model.StateRunning {
			out = append(out, t)
		}
	}
	return out
}

func TestGlobalJobRunsOnceOnEveryNode(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		s.Mode = swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}
		onFailure(0)(s)
	})
	w.settle()
	w.work(id)
	w.settle()
	w.addNode(nil)
	w.settle()
	if r := w.running(id); len(r) != 1 || r[0].Node != 3 {
		t.Fatalf("on the new node: %v", r)
	}
	w.setNode(3, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityDrain })
	w.settle()
	if r := w.running(id); len(r) != 0 {
		t.Fatalf("on a drained node: %v", r)
	}
	w.setNode(3, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
	w.settle()
	w.work(id)
	w.settle()
	if n := w.completions(id); n != 3 || w.snap.NumTasks() != 4 {
		t.Errorf("%d completions, %d tasks", n, w.snap.NumTasks())
	}
}

// TestJobsCompleteExactly drives jobs through failures, node trouble and forced runs: never more at
// work than allowed, no slot completes twice while nodes are heard of, and in the end all have.
func TestJobsCompleteExactly(t *testing.T) {
	for seed := range uint64(150) {
		r := seeded(seed)
		w := newWorld(t, 1+r.IntN(4))
		concurrent, total := uint64(1+r.IntN(4)), uint64(1+r.IntN(8))
		id := w.service(0, job(concurrent, total))
		for range 60 {
			w.jobChaos(r, id)
			w.plan()
			if n := w.atWork(id); n > int(concurrent) {
				t.Fatalf("seed %d: %d at work, %d allowed", seed, n, concurrent)
			}
			if n := w.completions(id); n > int(total) || t.Failed() {
				t.Fatalf("seed %d: %d completions of %d", seed, n, total)
			}
		}
		w.healNodes()
		for range total + 5 {
			w.settle()
			w.work(id)
		}
		if n := w.completions(id); n != int(total) {
			t.Fatalf("seed %d: %d completions, want %d", seed, n, total)
		}
	}
}

func (w *world) jobChaos(r *rand.Rand, id model.ServiceID) {
	w.now += model.Time(r.Int64N(int64(3*time.Second))) + 1
	node := model.NodeID(1 + r.IntN(int(w.snap.LastNode())))
	switch k := r.IntN(20); {
	case k == 0:
		w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Env = []string{fmt.Sprint(r.IntN(9))} })
	case k == 1:
		w.setNode(node, func(s *swarm.NodeSpec) {
			s.Availability = []swarm.NodeAvailability{swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain}[r.IntN(3)]
		})
	case k == 2 && w.next > w.now:
		w.now = w.next
	default:
		w.agentStep(r, 6)
	}
}
