package orchestrate_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/schedule"
	"github.com/skep-swarm/skep/internal/state"
)

var (
	seeds = flag.Int("seeds", 300, "how many random swarms to drive")
	seed  = flag.Uint64("seed", 0, "drive only this one")
)

// TestRandomSwarms drives swarms through random user writes, failures and node trouble, judges
// every state on the way, then lets them heal and demands that they converge and rest.
func TestRandomSwarms(t *testing.T) {
	from, to := uint64(1), uint64(*seeds)
	if *seed != 0 {
		from, to = *seed, *seed
	}
	for s := from; s <= to; s++ {
		driveSwarm(t, s)
		if t.Failed() {
			t.Fatalf("seed %d: go test -run RandomSwarms -seed %d", s, s)
		}
	}
}

func driveSwarm(t *testing.T, seed uint64) {
	r := seeded(seed)
	w := newWorld(t, 1+r.IntN(5))
	for range 1 + r.IntN(3) {
		w.service(0, func(s *swarm.ServiceSpec) { shape(r, s) })
	}
	for range 60 {
		w.chaos(r)
		if r.IntN(3) > 0 {
			w.plan()
			w.judge()
			again := w.next
			w.plan()
			// In the working copy new tasks are as old as the last batch, so the first answer may be
			// early, but never late.
			if w.planned != 0 || w.next < again || (w.next == 0) != (again == 0) {
				t.Errorf("planning twice changed %d things, next %v then %v", w.planned, again, w.next)
				return
			}
		}
		if t.Failed() {
			return
		}
	}
	w.healNodes()
	w.settle()
	w.judge()
	for s := range w.snap.Services() {
		w.judgeConverged(s)
	}
}

// shape makes a random spec.
func shape(r *rand.Rand, s *swarm.ServiceSpec) {
	n := uint64(r.IntN(6))
	if s.Mode.Global == nil && (s.Name == "svc1" && s.TaskTemplate.RestartPolicy == nil) && r.IntN(3) == 0 {
		s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	} else if s.Mode.Replicated != nil {
		s.Mode.Replicated = &swarm.ReplicatedService{Replicas: &n}
	}
	delay := time.Duration(r.IntN(10)) * time.Second
	s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: &delay}
	s.UpdateConfig = &swarm.UpdateConfig{
		Parallelism: uint64(r.IntN(3)), Delay: time.Duration(r.IntN(3)) * time.Second,
		Order:         []swarm.UpdateOrder{swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst}[r.IntN(2)],
		FailureAction: []swarm.FailureAction{swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue, swarm.UpdateFailureActionRollback}[r.IntN(3)],
	}
	s.TaskTemplate.ContainerSpec.Image = fmt.Sprintf("img:%d", r.IntN(4))
	if r.IntN(4) == 0 {
		s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.zone==a"}}
	} else {
		s.TaskTemplate.Placement = nil
	}
	if s.Mode.Replicated != nil && r.IntN(3) == 0 {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: int64(r.IntN(3)) << 30}}
	}
}

// chaos is one random thing that happens to a swarm.
func (w *world) chaos(r *rand.Rand) {
	w.now += model.Time(r.Int64N(int64(3*time.Second))) + 1
	services, node := w.services(), model.NodeID(1+r.IntN(int(w.snap.LastNode())))
	alive := w.snap.Node(node) != nil
	switch k := r.IntN(20); {
	case k == 0 && len(services) > 0:
		id := services[r.IntN(len(services))]
		if w.snap.Service(id) != nil {
			w.service(id, func(s *swarm.ServiceSpec) { shape(r, s) })
		}
	case k == 1 && w.snap.NumServices() < 4:
		w.service(0, func(s *swarm.ServiceSpec) { shape(r, s) })
	case k == 2 && w.snap.NumServices() > 1 && r.IntN(3) == 0:
		id := services[r.IntN(len(services))]
		if w.snap.Service(id) != nil {
			w.do(model.Change{DeleteService: id})
		}
	case k == 3 && alive:
		w.setState(node, []swarm.NodeState{swarm.NodeStateReady, swarm.NodeStateDown}[r.IntN(2)])
	case k == 4 && alive:
		w.setNode(node, func(s *swarm.NodeSpec) {
			s.Availability = []swarm.NodeAvailability{swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain}[r.IntN(3)]
		})
	case k == 5 && alive:
		w.setNode(node, func(s *swarm.NodeSpec) { s.Labels = map[string]string{"zone": []string{"a", "b"}[r.IntN(2)]} })
	case k == 6 && alive && w.snap.NumNodes() > 1 && r.IntN(4) == 0:
		w.do(model.Change{DeleteNode: node})
	case k == 7 && w.snap.NumNodes() < 6 && r.IntN(2) == 0:
		w.addNode(map[string]string{"zone": "a"})
	case k == 8 && w.next > w.now:
		w.now = w.next
	default:
		for range 1 + r.IntN(4) {
			w.agentStep(r, 6)
		}
	}
}

// agentStep moves one random task on a node that is up one state on; one in `risk` fails.
func (w *world) agentStep(r *rand.Rand, risk int) {
	var can []*model.Task
	for t := range w.snap.AllTasks() {
		n := w.snap.Node(t.Node)
		if n != nil && n.State == swarm.NodeStateReady && t.State >= model.StateAssigned && !t.State.Terminal() {
			can = append(can, t)
		}
	}
	if len(can) == 0 {
		return
	}
	t := can[r.IntN(len(can))]
	switch {
	case t.Desired > model.StateRunning:
		w.report(t, model.StateShutdown)
	case r.IntN(risk) == 0:
		w.report(t, []model.TaskState{model.StateFailed, model.StateRejected, model.StateComplete}[r.IntN(3)])
	case t.State < model.StateReady:
		w.report(t, model.StateReady)
	case t.Desired == model.StateRunning && t.State < model.StateRunning:
		w.report(t, model.StateRunning)
	}
}

func (w *world) healNodes() {
	for n := range w.snap.Nodes() {
		w.setState(n.ID, swarm.NodeStateReady)
		w.setNode(n.ID, func(s *swarm.NodeSpec) {
			s.Availability = swarm.NodeAvailabilityActive
			s.Labels = map[string]string{"zone": "a"}
		})
	}
}

// judge checks the laws that hold in every planned state.
func (w *world) judge() {
	type place struct {
		svc  model.ServiceID
		slot uint32
		node model.NodeID
	}
	running := map[place]int{}
	addrs := map[netip.Addr]model.TaskID{}
	for t := range w.snap.AllTasks() {
		if t.Node != 0 && t.State >= model.StateAssigned && !t.State.Terminal() {
			if other, ok := addrs[t.Gateway4]; ok {
				w.t.Errorf("%v and %v have address %s", t.ID, other, t.Gateway4)
			}
			addrs[t.Gateway4] = t.ID
		}
		if t.Desired == model.StateRunning && !t.State.Terminal() {
			p := place{t.ID.Service, t.Slot, 0}
			if t.Slot == 0 {
				p.node = t.Node
			}
			running[p]++
		}
	}
	for p, n := range running {
		svc := w.snap.Service(p.svc)
		if svc == nil {
			w.t.Errorf("%v wants to run, but its service is gone", p)
			continue
		}
		if n > 2 || n > 1 && !slices.ContainsFunc(svc.Revisions, startsFirst) {
			w.t.Errorf("%d tasks want to run in %v", n, p)
		}
	}
	for s := range w.snap.Services() {
		if s.Spec().Mode.Replicated != nil {
			w.judgeSlots(s)
		}
	}
}

func startsFirst(r *model.Revision) bool {
	return r.Spec.Typed.UpdateConfig.Order == swarm.UpdateOrderStartFirst
}

// judgeSlots demands slots 1 to N for a replicated service, no more.
func (w *world) judgeSlots(s *model.Service) {
	want := int(*s.Spec().Mode.Replicated.Replicas)
	have := map[uint32]bool{}
	for t := range w.snap.Tasks(s.ID) {
		if t.Desired < model.StateShutdown {
			have[t.Slot] = true
		}
	}
	if len(have) != want {
		w.t.Errorf("service %d has %d slots with a live task, want %d", s.ID, len(have), want)
	}
}

// judgeConverged demands that a service that could settle did.
func (w *world) judgeConverged(s *model.Service) {
	want := w.snap.NumNodes()
	if r := s.Spec().Mode.Replicated; r != nil {
		want = int(*r.Replicas)
	}
	type slot struct {
		num  uint32
		node model.NodeID
	}
	slots := map[slot]bool{} // that run or wait; while it starts first, one may do both
	waiting, old := 0, 0
	for t := range w.snap.Tasks(s.ID) {
		key := slot{num: t.Slot}
		if t.Slot == 0 {
			key.node = t.Node
		}
		switch {
		case t.State == model.StateRunning:
			slots[key] = true
			if t.Template != s.Template {
				old++
			}
		case t.State == model.StatePending:
			slots[key] = true
			waiting++ // no room: it says so
		}
	}
	if len(slots) != want {
		w.t.Errorf("service %d: %d slots run or wait, want %d", s.ID, len(slots), want)
	}
	if u := s.Update; u != nil && (u.State == swarm.UpdateStateCompleted || u.State == swarm.UpdateStateRollbackCompleted) && old > 0 {
		w.t.Errorf("service %d: %s, with %d old tasks", s.ID, u.Message, old)
	}
	if u := s.Update; u != nil && waiting == 0 && (u.State == swarm.UpdateStateUpdating || u.State == swarm.UpdateStateRollbackStarted) {
		w.t.Errorf("service %d is still %s", s.ID, u.State)
	}
}

// TestDirtyPlanningEqualsFull: from a planned state, planning what was touched and what waits
// gives the same state as planning everything.
func TestDirtyPlanningEqualsFull(t *testing.T) {
	for s := uint64(1); s <= 100; s++ {
		r := seeded(s)
		w := newWorld(t, 3)
		for range 5 {
			w.service(0, func(sp *swarm.ServiceSpec) { shape(r, sp) })
		}
		for range 40 {
			w.plan()
			before := w.snap
			w.agentStep(r, 4)
			if r.IntN(5) == 0 {
				svcs := w.services()
				w.service(svcs[r.IntN(len(svcs))], func(sp *swarm.ServiceSpec) { shape(r, sp) })
			}
			var dirty []model.ServiceID
			for _, id := range w.services() {
				if touched(before, w.snap, id) || waits(w.snap, id) {
					dirty = append(dirty, id)
				}
			}
			full, some := planCopy(t, w, w.services()), planCopy(t, w, dirty)
			if !bytes.Equal(full, some) {
				t.Fatalf("seed %d: planning services %v gives another state than planning all", s, dirty)
			}
		}
	}
}

func touched(a, b *state.Snapshot, id model.ServiceID) bool {
	if a.Service(id) != b.Service(id) {
		return true
	}
	for t := range b.Tasks(id) {
		if a.Task(t.ID) != t {
			return true
		}
	}
	return false
}

func waits(s *state.Snapshot, id model.ServiceID) bool {
	for t := range s.Tasks(id) {
		if t.State < model.StateAssigned && t.Desired <= model.StateRunning {
			return true
		}
	}
	return false
}

func planCopy(t *testing.T, w *world, ids []model.ServiceID) []byte {
	p := newPass(t, w.snap)
	for before := -1; before != p.changes; {
		before = p.changes
		for _, id := range ids {
			txns, _ := orchestrate.Plan(p.work, w.obs, id, w.now)
			p.add(txns...)
		}
		placed := allocate.Addresses(p.work, schedule.Plan(p.work, ids, w.now).Txns, w.now)
		p.add(placed.Blocks...)
		p.add(placed.Txns...)
	}
	var out bytes.Buffer
	if err := p.work.Encode(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestParallelismIsNeverExceeded: whatever the speed of the agents, a healthy service never has
// more than `parallelism` slots down for an update.
func TestParallelismIsNeverExceeded(t *testing.T) {
	for s := uint64(1); s <= 100; s++ {
		r := seeded(s)
		n, par := 1+r.IntN(8), 1+r.IntN(3)
		w := newWorld(t, 3)
		id := w.service(0, func(sp *swarm.ServiceSpec) {
			replicas(uint64(n))(sp)
			sp.UpdateConfig = &swarm.UpdateConfig{Parallelism: uint64(par), Delay: time.Duration(r.IntN(3)) * time.Second}
		})
		w.settle()
		for v := range 3 {
			w.service(id, func(sp *swarm.ServiceSpec) { sp.TaskTemplate.ContainerSpec.Image = fmt.Sprintf("v%d", v) })
			for range 5 + r.IntN(60) { // the next revision may come in the middle
				w.plan()
				if down := n - w.countWanted(id); down > par {
					t.Fatalf("seed %d: %d of %d slots down, parallelism %d", s, down, n, par)
				}
				w.agentStep(r, 1<<30)
				w.now += model.Time(r.Int64N(int64(time.Second)))
			}
		}
		w.settle()
		if u := w.snap.Service(id).Update; u.State != swarm.UpdateStateCompleted || w.countRunning(id) != n {
			t.Fatalf("seed %d: %+v, %d of %d run", s, u, w.countRunning(id), n)
		}
	}
}

// countWanted counts the tasks that run and are meant to.
func (w *world) countWanted(id model.ServiceID) int {
	n := 0
	for _, t := range w.live(id) {
		if t.State == model.StateRunning {
			n++
		}
	}
	return n
}
