package orchestrate_test

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
)

func (w *world) drain(id model.NodeID) {
	w.setNode(id, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityDrain })
}

// TestDrainPreparesTheSuccessorFirst follows one task from a drained node, a step at a time.
func TestDrainPreparesTheSuccessorFirst(t *testing.T) {
	for _, tt := range []struct {
		name  string
		edit  func(*swarm.ServiceSpec)
		stops model.TaskState // how far the successor is when the old task is stopped
	}{
		{"by default when it is ready", func(*swarm.ServiceSpec) {}, model.StateReady},
		{"start-first when it runs", func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{Order: swarm.UpdateOrderStartFirst} }, model.StateRunning},
		{"labelled start-first when it runs", func(s *swarm.ServiceSpec) { s.Labels = map[string]string{orchestrate.DrainLabel: "start-first"} }, model.StateRunning},
		{"labelled stop-first at once", func(s *swarm.ServiceSpec) { s.Labels = map[string]string{orchestrate.DrainLabel: "stop-first"} }, model.StateAssigned},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 2)
			id := w.service(0, func(s *swarm.ServiceSpec) { replicas(1)(s); tt.edit(s) })
			w.settle()
			old := w.running(id)[0]
			w.drain(old.Node)
			for range 10 {
				w.plan()
				var heir *model.Task
				for x := range w.snap.Tasks(id) {
					if x.ID != old.ID {
						heir = x
					}
				}
				if w.snap.Task(old.ID).Desired == model.StateShutdown {
					if heir.State != tt.stops {
						t.Errorf("the old task was stopped when its successor was %s", heir.State)
					}
					break
				}
				w.obey()
			}
			w.settle()
			if r := w.running(id); len(r) != 1 || r[0].Node == old.Node {
				t.Errorf("running: %v", r)
			}
		})
	}
}

func TestDrainDoesNotWaitForWhatCannotCome(t *testing.T) {
	w := newWorld(t, 1)
	id := w.service(0, replicas(2))
	w.settle()
	w.drain(1)
	w.settle()
	if n := w.countRunning(id); n != 0 {
		t.Errorf("%d tasks run on the only node, which is drained", n)
	}
	// A successor that never gets ready is waited for, but not for ever.
	w = newWorld(t, 2)
	id = w.service(0, replicas(1))
	w.settle()
	old := w.running(id)[0]
	w.drain(old.Node)
	for range 4 {
		w.plan()
		w.now = max(w.now, w.next)
	}
	w.plan()
	if d := w.snap.Task(old.ID).Desired; d != model.StateShutdown {
		t.Errorf("desired %s", d)
	}
	// A drain that is taken back stops the successor.
	w = newWorld(t, 2)
	id = w.service(0, replicas(1))
	w.settle()
	old = w.running(id)[0]
	w.drain(old.Node)
	w.plan()
	w.setNode(old.Node, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
	w.settle()
	if r := w.running(id); len(r) != 1 || r[0].ID != old.ID {
		t.Errorf("running: %v", r)
	}
}

func TestMassFailureIsHeldAndThenActedOn(t *testing.T) {
	start := func(t *testing.T) (*world, model.ServiceID) {
		w := newWorld(t, 5)
		id := w.service(0, replicas(5))
		w.settle()
		w.setState(1, swarm.NodeStateDown)
		w.plan()
		if n := len(w.live(id)); n != 5 || w.snap.Service(id).Notice != "" {
			t.Fatalf("one node: %d live, %q", n, w.snap.Service(id).Notice)
		}
		w.advance(10 * time.Second)
		w.settle2(20 * time.Second)
		w.setState(2, swarm.NodeStateDown)
		w.setState(3, swarm.NodeStateDown)
		w.plan()
		return w, id
	}
	onDown := func(w *world, id model.ServiceID) (n int) {
		for _, x := range w.live(id) {
			if w.snap.Node(x.Node).State == swarm.NodeStateDown {
				n++
			}
		}
		return n
	}
	t.Run("held", func(t *testing.T) {
		w, id := start(t)
		if n := onDown(w, id); n < 2 || w.snap.Service(id).Notice == "" {
			t.Fatalf("%d tasks held, %q", n, w.snap.Service(id).Notice)
		}
		if b := orchestrate.Braked(w.snap, w.obs.Down, w.now); b == nil || b.Down != 3 || b.Of != 5 || b.Until != w.next {
			t.Errorf("%v, next %d", b, w.next)
		}
		w.now = w.next
		w.settle()
		if n := w.countRunningUp(id); n != 5 || w.snap.Service(id).Notice != "" {
			t.Errorf("after a minute %d run, %q", n, w.snap.Service(id).Notice)
		}
	})
	t.Run("new leader", func(t *testing.T) {
		// It counts anew, and the state knows of one node only that it is down.
		w := newWorld(t, 5)
		id := w.service(0, replicas(5))
		w.settle()
		w.setState(1, swarm.NodeStateDown)
		w.obs.Down = map[model.NodeID]model.Time{1: w.now, 2: w.now, 3: w.now}
		before := w.snap.NumTasks()
		w.plan()
		if w.snap.NumTasks() != before || onDown(w, id) == 0 {
			t.Errorf("%d tasks, %d before, %d are on nodes that are down", w.snap.NumTasks(), before, onDown(w, id))
		}
	})
	t.Run("accepted", func(t *testing.T) {
		w, id := start(t)
		c := *w.snap.Cluster()
		c.LossAccepted = w.now
		w.do(model.Change{PutCluster: &c})
		w.plan()
		if n := onDown(w, id); n != 0 || w.snap.Service(id).Notice != "" {
			t.Errorf("%d tasks held, %q", n, w.snap.Service(id).Notice)
		}
	})
	t.Run("back", func(t *testing.T) {
		w, id := start(t)
		tasks := w.snap.NumTasks()
		w.setState(2, swarm.NodeStateReady)
		w.setState(3, swarm.NodeStateReady)
		w.plan()
		if w.snap.NumTasks() != tasks || w.snap.Service(id).Notice != "" {
			t.Errorf("%d tasks, %d before; %q", w.snap.NumTasks(), tasks, w.snap.Service(id).Notice)
		}
	})
}

// countRunningUp counts the tasks that are wanted and run on nodes that are up.
func (w *world) countRunningUp(id model.ServiceID) (n int) {
	for _, t := range w.live(id) {
		if t.State == model.StateRunning && w.snap.Node(t.Node).State == swarm.NodeStateReady {
			n++
		}
	}
	return n
}
