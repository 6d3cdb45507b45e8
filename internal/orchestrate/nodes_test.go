package orchestrate_test

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/schedule"
)

func constraint(exprs ...string) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { s.TaskTemplate.Placement = &swarm.Placement{Constraints: exprs} }
}

func TestDownNodeIsReplacedAndOrphanedAfterADay(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, replicas(4))
	w.settle()
	w.setState(1, swarm.NodeStateDown)
	w.obs.Settled = false
	w.plan()
	if w.planned != 0 {
		t.Error("a leader that has not heard from the nodes yet must not give tasks up")
	}
	w.obs.Settled = true
	w.settle2(time.Minute)
	onOne := 0
	for task := range w.snap.Tasks(id) {
		if task.Node == 1 && task.State == model.StateRunning {
			onOne++
		}
	}
	if onOne != 2 || len(w.live(id)) != 4 {
		t.Fatalf("%d tasks still counted as running on the lost node, %d live", onOne, len(w.live(id)))
	}
	for _, task := range w.live(id) {
		if task.Node != 2 || task.State != model.StateRunning {
			t.Errorf("%+v", task)
		}
	}
	w.advance(24 * time.Hour)
	w.plan()
	for task := range w.snap.Tasks(id) {
		if task.Node == 1 && task.State != model.StateOrphaned {
			t.Errorf("after a day: %+v", task)
		}
	}
}

// settle2 settles, but lets time pass no further than d from now.
func (w *world) settle2(d time.Duration) {
	end := w.now + model.Time(d)
	for range 200 {
		w.plan()
		before := w.index
		w.obey()
		if w.planned == 0 && w.index == before {
			if w.next == 0 || w.next > end {
				return
			}
			w.now = w.next
		}
	}
	w.t.Fatal("does not settle")
}

func TestDrainMovesPauseDoesNot(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, replicas(4))
	w.settle()
	w.setNode(1, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityPause })
	w.plan()
	if w.planned != 0 {
		t.Error("a pause moves nothing")
	}
	w.service(id, replicas(6))
	w.settle()
	count := func(node model.NodeID) (n int) {
		for _, task := range w.live(id) {
			if task.Node == node {
				n++
			}
		}
		return n
	}
	if count(1) != 2 || count(2) != 4 {
		t.Errorf("%d on the paused node, %d on the other", count(1), count(2))
	}
	w.setNode(1, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityDrain })
	start := w.now
	w.settle()
	if count(1) != 0 || count(2) != 6 || w.countRunning(id) != 6 {
		t.Errorf("%d on the drained node, %d on the other", count(1), count(2))
	}
	if w.now != start {
		t.Error("a drain does not wait for the restart delay")
	}
}

func TestRemovedNodeOrphansItsTasks(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, replicas(2))
	w.settle()
	w.do(model.Change{DeleteNode: 1})
	w.settle()
	if w.countRunning(id) != 2 {
		t.Errorf("%d run", w.countRunning(id))
	}
	for task := range w.snap.Tasks(id) {
		if task.Node == 1 && task.State != model.StateOrphaned {
			t.Errorf("%+v", task)
		}
	}
}

func TestConstraintsAreEnforced(t *testing.T) {
	w := newWorld(t, 1)
	w.addNode(map[string]string{"disk": "ssd"})
	w.addNode(map[string]string{"disk": "ssd"})
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(4)(s)
		constraint("node.labels.disk == ssd")(s)
	})
	w.settle()
	for _, task := range w.live(id) {
		if task.Node == 1 {
			t.Error("on a node without the label")
		}
	}
	// The node changes: its tasks leave at once.
	w.setNode(2, func(s *swarm.NodeSpec) { s.Labels = nil })
	w.settle()
	for _, task := range w.live(id) {
		if task.Node != 3 {
			t.Errorf("slot %d is on node %d", task.Slot, task.Node)
		}
	}
	// The service changes: the rollout moves them one at a time.
	w.service(id, constraint("node.labels.disk != ssd"))
	for range 60 {
		w.plan()
		w.obey()
		if n := w.countRunning(id); n < 3 {
			t.Fatalf("%d run", n)
		}
	}
	w.settle()
	for _, task := range w.live(id) {
		if task.Node == 3 {
			t.Errorf("slot %d did not move", task.Slot)
		}
	}
	// Nobody matches: the tasks stay where they are or say why they wait.
	w.service(id, constraint("node.hostname == nowhere"))
	w.plan()
	found := false
	for _, task := range w.live(id) {
		if task.State == model.StatePending {
			found = true
			if task.Message != "pending task scheduling" || task.Err != "no suitable node (scheduling constraints not satisfied on 3 nodes)" {
				t.Errorf("%q, %q", task.Message, task.Err)
			}
		}
	}
	if !found {
		t.Error("no task waits")
	}
}

func TestPendingExplainsItself(t *testing.T) {
	w := newWorld(t, 4)
	w.setNode(4, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityPause })
	w.setNode(1, func(s *swarm.NodeSpec) { s.Labels = map[string]string{"big": "no"} })
	id := w.service(0, func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 40}}
		constraint("node.labels.big!=no")(s)
	})
	w.plan()
	task := w.live(id)[0]
	want := "no suitable node (insufficient resources on 3 nodes; 1 node not available for new tasks)"
	if task.Err != want {
		t.Errorf("%q, want %q", task.Err, want)
	}
	w.plan()
	if w.planned != 0 {
		t.Error("saying the same again is a change")
	}
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.Resources.Reservations.MemoryBytes = 1 << 30 })
	w.settle()
	if w.countRunning(id) != 1 {
		t.Errorf("task %+v", w.live(id)[0])
	}
}

func TestReservationsAreNeverOversold(t *testing.T) {
	w := newWorld(t, 3) // 8 GiB each
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(10)(s)
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 3 << 30}}
	})
	w.settle()
	if n := w.countRunning(id); n != 6 {
		t.Errorf("%d run, want 6", n)
	}
	for _, task := range w.live(id) {
		if task.State == model.StatePending && task.Err != "no suitable node (insufficient resources on 3 nodes)" {
			t.Errorf("%q", task.Err)
		}
	}
	w.addNode(nil)
	w.settle()
	if n := w.countRunning(id); n != 8 {
		t.Errorf("%d run with another node, want 8", n)
	}
}

func TestHostPortOnePerNode(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		replicas(3)(s)
		s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeHost}}}
	})
	w.settle()
	if n := w.countRunning(id); n != 2 {
		t.Errorf("%d run, want 2", n)
	}
	if err := w.live(id)[2].Err; err != "no suitable node (host-mode port already in use on 2 nodes)" {
		t.Errorf("%q", err)
	}
	// An update stop-first frees the port and takes it again.
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "img:2" })
	w.settle()
	if n := w.countRunning(id); n != 2 {
		t.Errorf("%d run after the update", n)
	}
}

func TestDynamicPortsAndTheirEnd(t *testing.T) {
	w := newWorld(t, 1)
	publish := func(port uint32) func(*swarm.ServiceSpec) {
		return func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: port}}}
		}
	}
	a, b := w.service(0, publish(0)), w.service(0, publish(0))
	w.settle()
	pa, pb := w.snap.Service(a).Ports[0].PublishedPort, w.snap.Service(b).Ports[0].PublishedPort
	if pa != 30000 || pb != 30001 {
		t.Errorf("ports %d and %d", pa, pb)
	}
	w.service(a, replicas(2))
	w.settle()
	if p := w.snap.Service(a).Ports[0].PublishedPort; p != pa {
		t.Errorf("the port moved from %d to %d", pa, p)
	}
}

func TestGlobalRunsOnePerNode(t *testing.T) {
	w := newWorld(t, 3)
	id := w.service(0, func(s *swarm.ServiceSpec) { s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}} })
	w.settle()
	if w.countRunning(id) != 3 {
		t.Fatalf("%d run", w.countRunning(id))
	}
	w.addNode(nil)
	w.settle()
	if w.countRunning(id) != 4 {
		t.Errorf("%d run with a fourth node", w.countRunning(id))
	}
	w.setNode(1, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityDrain })
	w.settle()
	if w.countRunning(id) != 3 {
		t.Errorf("%d run after a drain", w.countRunning(id))
	}
	w.setNode(1, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
	w.settle()
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "img:2" })
	w.settle()
	for _, task := range w.live(id) {
		if task.Template != w.snap.Service(id).Template || task.State != model.StateRunning {
			t.Errorf("%+v", task)
		}
	}
	if w.countRunning(id) != 4 {
		t.Errorf("%d run after the update", w.countRunning(id))
	}
}

func TestNewTaskWaitsForItsPredecessor(t *testing.T) {
	w := newWorld(t, 1)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		grace := 2 * time.Minute
		s.TaskTemplate.ContainerSpec.StopGracePeriod = &grace
	})
	w.settle()
	w.service(id, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "img:2" })
	w.plan()
	start := w.now
	if got := w.live(id)[0].Desired; got != model.StateReady {
		t.Fatalf("desired %v while the old one stops", got)
	}
	if w.next != start+130*second {
		t.Errorf("waits until %v", time.Duration(w.next-start))
	}
	w.now = w.next
	w.plan()
	if got := w.live(id)[0].Desired; got != model.StateRunning {
		t.Errorf("an old task that never stops must not hold the slot for ever: %v", got)
	}
}

func TestServiceOnLostNodeGoesAway(t *testing.T) {
	w := newWorld(t, 1)
	id := w.service(0, replicas(2))
	w.settle()
	w.setState(1, swarm.NodeStateDown)
	w.do(model.Change{DeleteService: id})
	w.plan()
	if w.snap.NumTasks() != 2 || w.next != w.now+24*60*60*second {
		t.Fatalf("%d tasks, next in %v", w.snap.NumTasks(), time.Duration(w.next-w.now))
	}
	w.now = w.next
	w.plan()
	w.plan()
	if w.snap.NumTasks() != 0 {
		t.Errorf("%d tasks left", w.snap.NumTasks())
	}
}

func TestNoAddressLeftSaysSo(t *testing.T) {
	w := newWorld(t, 1)
	c := *w.snap.Cluster()
	c.GatewayPool = w.snap.Node(1).Blocks[0]
	w.do(model.Change{PutCluster: &c})
	id := w.service(0, replicas(300))
	w.plan()
	placed, why := 0, ""
	for _, task := range w.live(id) {
		if task.State == model.StateAssigned {
			placed++
		} else {
			why = task.Err
		}
	}
	if placed != 253 || !strings.HasPrefix(why, "no free address on node node-1: gateway pool 10.96.0.0/24 has no free /24") {
		t.Errorf("%d placed, reason %q", placed, why)
	}
}

// TestStalePlansAreRefused: a plan made before a user's write does not go through after it.
func TestStalePlansAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(w *world, id model.ServiceID)
	}{
		{"spec", func(w *world, id model.ServiceID) { w.service(id, replicas(9)) }},
		{"service gone", func(w *world, id model.ServiceID) { w.do(model.Change{DeleteService: id}) }},
		{"node drained", func(w *world, id model.ServiceID) {
			w.setNode(1, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityDrain })
		}},
		{"node down", func(w *world, id model.ServiceID) { w.setState(1, swarm.NodeStateDown) }},
		{"planned by another leader", func(w *world, id model.ServiceID) { w.plan() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 1)
			id := w.service(0, replicas(3))
			p := newPass(t, w.snap)
			for before := -1; before != p.changes; {
				before = p.changes
				txns, _ := orchestrate.Plan(p.work, w.obs, id, w.now)
				p.add(txns...)
				r := allocate.Addresses(p.work, schedule.Plan(p.work, []model.ServiceID{id}, w.now).Txns, w.now)
				p.add(r.Txns...)
			}
			tt.edit(w, id)
			_, out := w.snap.Apply(w.index+1, &model.Batch{Time: w.now, Txns: p.txns()})
			for _, err := range out.Results {
				if k := model.KindOf(err); k != model.Stale && k != model.Conflict {
					t.Errorf("the plan went through: %v", err)
				}
			}
		})
	}
}

func TestGlobalTaskCountsOnce(t *testing.T) {
	w := newWorld(t, 1)
	id := w.service(0, func(s *swarm.ServiceSpec) {
		s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 5 << 30}}
	})
	w.settle()
	if l := w.snap.Load(1); w.countRunning(id) != 1 || l.Tasks != 1 || l.MemoryBytes != 5<<30 {
		t.Errorf("%d run, load %+v", w.countRunning(id), l)
	}
}
