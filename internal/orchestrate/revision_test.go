package orchestrate_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
)

func (w *world) image(id model.ServiceID, image string) {
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = image })
}

// updated counts the tasks that run with the template in force.
func (w *world) updated(id model.ServiceID) int {
	n := 0
	for _, t := range w.running(id) {
		if t.Template == w.snap.Service(id).Template && t.Desired == model.StateRunning {
			n++
		}
	}
	return n
}

// step plans and obeys so many times, without letting time pass.
func (w *world) step(n int) {
	for range n {
		w.plan()
		w.obey()
		w.now++
	}
}

func TestUpdateIsPausedResumedAndCanceled(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, replicas(4))
	w.settle()
	if _, err := orchestrate.Pause(w.snap.Service(id)); model.KindOf(err) != model.FailedPrecondition {
		t.Errorf("pause without an update: %v", err)
	}
	w.image(id, "img:2")
	w.step(4)
	pause, err := orchestrate.Pause(w.snap.Service(id))
	if err != nil {
		t.Fatal(err)
	}
	w.do(pause)
	w.settle()
	done := w.updated(id)
	if u := w.snap.Service(id).Update; done == 0 || done == 4 || u.State != swarm.UpdateStatePaused || u.Message != "update paused on request" {
		t.Fatalf("paused with %d of 4 done: %+v", done, u)
	}
	resume, err := orchestrate.Resume(w.snap.Service(id), w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.do(resume)
	w.settle()
	if u := w.snap.Service(id).Update; w.updated(id) != 4 || u.State != swarm.UpdateStateCompleted {
		t.Fatalf("resumed: %d done, %+v", w.updated(id), u)
	}
	if _, err := orchestrate.Cancel(w.snap.Service(id), w.now); model.KindOf(err) != model.FailedPrecondition {
		t.Errorf("cancel after the end: %v", err)
	}
	w.image(id, "img:3")
	w.step(4)
	rev, err := orchestrate.Cancel(w.snap.Service(id), w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.do(model.Change{NewRevision: rev})
	w.settle()
	if s := w.snap.Service(id); w.updated(id) != 4 || s.Spec().TaskTemplate.ContainerSpec.Image != "img:2" || s.Update.State != swarm.UpdateStateRollbackCompleted {
		t.Errorf("canceled: %d done, %+v", w.updated(id), s.Update)
	}
}

func TestResumeForgivesFailuresUntilThen(t *testing.T) {
	w := newWorld(t, 1)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(3)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Monitor: 5 * time.Second}
	})
	w.settle()
	w.image(id, "bad")
	fail := func() {
		for range 10 {
			w.plan()
			for _, x := range w.live(id) {
				if x.Template == w.snap.Service(id).Template && x.State >= model.StateAssigned && !x.State.Terminal() {
					w.report(x, model.StateFailed)
				}
			}
			w.obey()
			w.now++
		}
	}
	fail()
	u := w.snap.Service(id).Update
	if u.State != swarm.UpdateStatePaused {
		t.Fatalf("%+v", u)
	}
	resume, err := orchestrate.Resume(w.snap.Service(id), w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.do(resume)
	w.plan()
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateUpdating {
		t.Fatalf("paused again by the failure before: %+v", u)
	}
	fail()
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStatePaused {
		t.Errorf("a new failure does not pause: %+v", u)
	}
}

func TestRollbackToAnyRevision(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, replicas(2))
	for v := 2; v <= 5; v++ {
		w.settle()
		w.image(id, fmt.Sprintf("img:%d", v))
	}
	w.settle()
	rev, err := orchestrate.RollbackTo(w.snap.Service(id), 2, orchestrate.ManualRollback, w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.do(model.Change{NewRevision: rev})
	w.settle()
	s := w.snap.Service(id)
	if s.Spec().TaskTemplate.ContainerSpec.Image != "img:2" || s.Update.State != swarm.UpdateStateRollbackCompleted || w.updated(id) != 2 || s.Current().Num != 6 {
		t.Errorf("%+v, revision %d, %d updated", s.Update, s.Current().Num, w.updated(id))
	}
	if _, err := orchestrate.RollbackTo(s, 6, "", w.now); model.KindOf(err) != model.FailedPrecondition {
		t.Errorf("to itself: %v", err)
	}
	if _, err := orchestrate.RollbackTo(s, 77, "", w.now); model.KindOf(err) != model.NotFound {
		t.Errorf("to what never was: %v", err)
	}
}

func TestUpdateThatChangesNothingDoesNothing(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, replicas(2))
	w.settle()
	before, tasks := w.snap.Service(id), w.snap.NumTasks()
	w.service(id, func(*swarm.ServiceSpec) {})
	w.plan()
	s := w.snap.Service(id)
	if w.planned != 0 || w.snap.NumTasks() != tasks || len(s.Revisions) != len(before.Revisions) {
		t.Errorf("%d changes, %d tasks, %d revisions", w.planned, w.snap.NumTasks(), len(s.Revisions))
	}
	if s.SpecVersion == before.SpecVersion {
		t.Error("the version does not say that somebody wrote")
	}
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
	w.settle()
	if u := w.snap.Service(id).Update; u == nil || u.State != swarm.UpdateStateCompleted || w.updated(id) != 2 || w.snap.NumTasks() != 4 {
		t.Errorf("forced: %+v, %d tasks", u, w.snap.NumTasks())
	}
}

// Who changes a label, the scale or the settings during an update, or deploys the same once more, does not make it
// take more slots down at once than it may.
func TestChangeDuringAnUpdateLeavesItsPaceAlone(t *testing.T) {
	for what, edit := range map[string]func(*swarm.ServiceSpec){
		"nothing":  func(*swarm.ServiceSpec) {},
		"label":    func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"a": "b"} },
		"scale":    replicas(6),
		"settings": func(s *swarm.ServiceSpec) { s.UpdateConfig.FailureAction = swarm.UpdateFailureActionContinue },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, 2)
			id := w.service(0, func(s *swarm.ServiceSpec) {
				replicas(4)(s)
				s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Delay: time.Minute}
			})
			w.settle()
			w.image(id, "img:2")
			began := w.snap.Service(id).Update.StartedAt
			replaced := func() (n int) {
				for x := range w.snap.Tasks(id) {
					if x.Template != w.snap.Service(id).Template && x.Desired == model.StateShutdown {
						n++
					}
				}
				return n
			}
			w.plan()
			w.service(id, edit)
			w.plan()
			if n := replaced(); n != 1 {
				t.Fatalf("with one slot under way, %d were taken down", n)
			}
			w.step(4)
			w.service(id, edit)
			w.step(4)
			if n := replaced(); n != 1 {
				t.Fatalf("within the delay after the first slot, %d were taken down", n)
			}
			w.advance(time.Minute)
			w.plan()
			if n, u := replaced(), w.snap.Service(id).Update; n != 2 || u.State != swarm.UpdateStateUpdating || u.StartedAt != began {
				t.Errorf("after the delay: %d, %+v", n, u)
			}
		})
	}
}

// An update that moves tasks by other constraints goes back to the spec before it, not to an earlier image.
func TestRollbackOfConstraints(t *testing.T) {
	w := newWorld(t, 1)
	other := w.addNode(map[string]string{"zone": "b"})
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(2)(s)
		s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.zone!=b"}}
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionRollback}
	})
	w.settle()
	w.image(id, "img:2")
	w.settle()
	move := func() {
		w.service(id, func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.zone==b"}}
		})
	}
	move()
	for range 10 {
		w.plan()
		for _, x := range w.live(id) {
			if x.Node == other && x.State == model.StateAssigned {
				w.report(x, model.StateRejected)
			}
		}
		w.obey()
		w.now++
	}
	if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateRollbackStarted {
		t.Fatalf("%+v", u)
	}
	w.settle()
	s := w.snap.Service(id)
	if spec := s.Spec().TaskTemplate; spec.ContainerSpec.Image != "img:2" || spec.Placement.Constraints[0] != "node.labels.zone!=b" || s.Update.State != swarm.UpdateStateRollbackCompleted {
		t.Errorf("went back to %s, %q: %+v", spec.ContainerSpec.Image, spec.Placement.Constraints, s.Update)
	}
	move()
	w.plan()
	rev, err := orchestrate.Cancel(w.snap.Service(id), w.now)
	if err != nil || rev.Spec.Typed.TaskTemplate.ContainerSpec.Image != "img:2" {
		t.Errorf("canceled: %v, %+v", err, rev)
	}
}

// A lower limit of replicas per node is kept by those too that run already: the rollout moves what is too many.
func TestLoweredMaxReplicasMovesTasks(t *testing.T) {
	for _, order := range []swarm.UpdateOrder{swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst} {
		w := newWorld(t, 1)
		id := w.service(0, func(s *swarm.ServiceSpec) {
			replicas(6)(s)
			s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Order: order}
		})
		w.settle()
		w.addNode(nil)
		w.addNode(nil)
		limit := func(n uint64) {
			w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.Placement = &swarm.Placement{MaxReplicas: n} })
		}
		limit(6)
		w.plan()
		if w.planned != 0 {
			t.Errorf("%s: a limit that is kept moves tasks", order)
		}
		limit(2)
		for range 3 {
			w.plan()
		}
		moving := 0
		for x := range w.snap.Tasks(id) {
			if x.ID.Num > 6 {
				moving++
			}
		}
		if moving != 1 {
			t.Errorf("%s: %d slots are under way at once", order, moving)
		}
		w.settle()
		on := map[model.NodeID]int{}
		for _, x := range w.live(id) {
			on[x.Node]++
		}
		if u := w.snap.Service(id).Update; len(on) != 3 || on[1] != 2 || on[2] != 2 || on[3] != 2 || w.snap.NumTasks() != 10 || u.State != swarm.UpdateStateCompleted {
			t.Errorf("%s: by node %v, %d tasks, %+v", order, on, w.snap.NumTasks(), u)
		}
		w.plan()
		if w.planned != 0 {
			t.Errorf("%s: it goes on moving", order)
		}
	}
}
