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
