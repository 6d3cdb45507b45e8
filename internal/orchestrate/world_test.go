package orchestrate_test

import (
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

// world is a swarm without a log: the real state, the deciders and agents that a test moves.
type world struct {
	t     testing.TB
	snap  *state.Snapshot
	now   model.Time
	index uint64
	next  model.Time // when the planners want to be asked again
	obs   orchestrate.Obs
	seq   uint64
	// planned counts the changes of the last plan.
	planned int
}

const second = model.Time(time.Second)

func newWorld(t testing.TB, nodes int) *world {
	w := &world{t: t, snap: state.New(), now: 1_000_000 * second, index: 10, obs: orchestrate.Obs{Settled: true, Down: map[model.NodeID]model.Time{}}}
	w.do(model.Change{PutCluster: &model.Cluster{IDKey: [16]byte{1}, Spec: spec(t, swarm.Spec{}),
		GatewayPool: netip.MustParsePrefix("10.96.0.0/12"), GatewayULA: netip.MustParsePrefix("fd00:1:2::/48")}})
	for range nodes {
		w.addNode(nil)
	}
	return w
}

func spec[T any](t testing.TB, v T) model.Spec[T] {
	s, err := model.MakeSpec(&v)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) addNode(labels map[string]string) model.NodeID {
	id := w.snap.LastNode() + 1
	b, err := allocate.NodeBlock(w.snap, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	n := &model.Node{ID: id, State: swarm.NodeStateReady, Blocks: []netip.Prefix{b}, Addr: fmt.Sprintf("192.0.2.%d", id),
		Gateway6: netip.MustParsePrefix(fmt.Sprintf("fd00:1:2:%x::/64", id))}
	n.Spec.Availability, n.Spec.Role, n.Spec.Labels = swarm.NodeAvailabilityActive, swarm.NodeRoleWorker, labels
	n.Description.Hostname = fmt.Sprintf("node-%d", id)
	n.Description.Platform = swarm.Platform{Architecture: "x86_64", OS: "linux"}
	n.Description.Resources = swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}
	w.do(model.Change{PutNode: n})
	return id
}

// apply puts transactions into the log; every one must be accepted.
func (w *world) apply(txns ...model.Txn) {
	w.t.Helper()
	w.index++
	b := &model.Batch{Actor: "test", Time: w.now, Txns: txns}
	next, out := w.snap.Apply(w.index, b)
	for i, err := range out.Results {
		if err != nil {
			w.t.Fatalf("transaction %d of %d refused: %v", i, len(txns), err)
		}
	}
	w.snap = next
}

func (w *world) do(changes ...model.Change) {
	w.t.Helper()
	w.apply(model.Txn{Changes: changes})
}

// history sets how many tasks the swarm keeps in a slot; nil is the default.
func (w *world) history(limit *int64) {
	c := *w.snap.Cluster()
	c.Spec = spec(w.t, swarm.Spec{Orchestration: swarm.OrchestrationConfig{TaskHistoryRetentionLimit: limit}})
	w.do(model.Change{PutCluster: &c})
}

// oneByOne makes a service of so many replicas, of which a rollout replaces one at a time.
func oneByOne(n uint64) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) {
		replicas(n)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1}
	}
}

// service creates a service or gives it a new spec, as the API does.
func (w *world) service(id model.ServiceID, edit func(*swarm.ServiceSpec)) model.ServiceID {
	w.t.Helper()
	w.now++ // clocks go on
	var s swarm.ServiceSpec
	old := w.snap.Service(id)
	if old != nil {
		s = *spec(w.t, *old.Spec()).Typed // a deep copy
	} else {
		id = w.snap.LastService() + 1
		s.Name = fmt.Sprintf("svc%d", id)
		s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "img:1"}
		s.Mode.Replicated = &swarm.ReplicatedService{}
	}
	edit(&s)
	ms := spec(w.t, s)
	tpl, err := model.NewTemplate(id, ms, "")
	if err != nil {
		w.t.Fatal(err)
	}
	rev := &model.NewRevision{Service: id, Spec: ms}
	if have := w.snap.TemplateByHash(id, tpl.Hash); have != nil {
		rev.TemplateID = have.ID
	} else {
		tpl.ID = w.snap.LastTemplate() + 1
		rev.Template, rev.TemplateID = tpl, tpl.ID
	}
	if old != nil {
		rev.Ports = old.Ports
	}
	if s.Mode.ReplicatedJob != nil || s.Mode.GlobalJob != nil {
		rev.JobIteration = 1
		if old != nil {
			rev.JobIteration = old.JobIteration + 1
		}
	}
	rev.Update = orchestrate.FirstStatus(old, rev, w.now)
	w.do(model.Change{NewRevision: rev})
	return id
}

func replicas(n uint64) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: &n} }
}

// services are all that exist or have left tasks behind.
func (w *world) services() []model.ServiceID {
	var ids []model.ServiceID
	for s := range w.snap.Services() {
		ids = append(ids, s.ID)
	}
	for id, ok := w.snap.NextServiceWithTasks(0); ok; id, ok = w.snap.NextServiceWithTasks(id + 1) {
		if w.snap.Service(id) == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// plan runs the deciders until nothing changes and commits the result as the manager does: one
// transaction per service, guarded by what the state was before.
func (w *world) plan() { w.t.Helper(); w.planOnly(w.services()...) }

func (w *world) planOnly(ids ...model.ServiceID) { w.t.Helper(); w.planPass(false, ids...) }

func (w *world) planPass(again bool, ids ...model.ServiceID) {
	w.t.Helper()
	pass := newPass(w.t, w.snap)
	w.next = 0
	for round := 0; ; round++ {
		if round > 50 {
			w.t.Fatal("the planners do not come to rest")
		}
		before := pass.changes
		w.next = 0
		for _, id := range ids {
			txns, next := orchestrate.Plan(pass.work, w.obs, id, w.now)
			pass.add(txns...)
			if next != 0 && (w.next == 0 || next < w.next) {
				w.next = next
			}
			if ports := allocate.Ports(pass.work, id); len(ports.Changes) > 0 {
				pass.add(ports)
			}
		}
		placed := allocate.Addresses(pass.work, schedule.Plan(pass.work, ids, w.now).Txns, w.now)
		pass.add(placed.Blocks...)
		pass.add(placed.Txns...)
		if pass.changes == before {
			break
		}
	}
	w.planned = pass.changes
	w.index++
	next, out := w.snap.Apply(w.index, &model.Batch{Actor: "swarm", Time: w.now, Txns: pass.txns()})
	w.snap = next
	for i, err := range out.Results {
		switch {
		case err == nil:
		case model.KindOf(err) == model.Stale && !again:
			// It took what a later transaction frees. It is planned again.
			w.planPass(true, ids...)
			return
		default:
			w.t.Fatalf("transaction %d of %d refused: %v", i, len(out.Results), err)
		}
	}
	if w.next != 0 && w.next <= w.now {
		w.t.Fatalf("the planner asks to be called again in the past: %v <= %v", w.next, w.now)
	}
}

// pass is the working copy of one planning pass and its transactions.
type pass struct {
	t       testing.TB
	base    *state.Snapshot
	work    *state.Snapshot
	order   []model.ServiceID
	byID    map[model.ServiceID]*model.Txn
	changes int
}

func newPass(t testing.TB, base *state.Snapshot) *pass {
	return &pass{t: t, base: base, work: base, byID: map[model.ServiceID]*model.Txn{}}
}

func (p *pass) add(txns ...model.Txn) {
	for _, txn := range txns {
		work, err := p.work.With(txn.Changes...)
		if err != nil {
			p.t.Fatalf("a plan cannot be carried out: %v", err)
		}
		p.work = work
		p.changes += len(txn.Changes)
		id := owner(txn)
		out := p.byID[id]
		if out == nil {
			out = &model.Txn{}
			p.byID[id] = out
			p.order = append(p.order, id)
		}
		out.Changes = append(out.Changes, txn.Changes...)
		for _, g := range txn.Guards {
			// Guards on what this pass made say nothing of the state before it.
			if v, ok := p.base.Version(g.Key, g.Group); ok || g.Version == 0 {
				if g.Version != v {
					p.t.Fatalf("guard on %v group %d has version %d, the state %d", g.Key, g.Group, g.Version, v)
				}
				out.Guards = append(out.Guards, g)
			}
		}
	}
}

// owner is the service that a transaction belongs to, 0 for nodes.
func owner(txn model.Txn) model.ServiceID {
	for i := range txn.Changes {
		k, _, _ := state.Writes(&txn.Changes[i])
		if k.Kind == model.KindTask || k.Kind == model.KindService {
			return model.ServiceID(k.A)
		}
	}
	return 0
}

func (p *pass) txns() []model.Txn {
	slices.Sort(p.order) // nodes first
	var out []model.Txn
	for _, id := range p.order {
		out = append(out, *p.byID[id])
	}
	return out
}

// tasks of a service that are wanted, by slot.
func (w *world) live(id model.ServiceID) []*model.Task {
	var out []*model.Task
	for t := range w.snap.Tasks(id) {
		if t.Desired <= model.StateRunning {
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, func(a, b *model.Task) int { return int(a.Slot) - int(b.Slot) })
	return out
}

// report is what the task's node says of it.
func (w *world) report(t *model.Task, s model.TaskState) {
	w.t.Helper()
	w.seq++
	w.do(model.Change{Report: &model.Report{Node: t.Node, Session: 1, Seq: w.seq, Tasks: []model.TaskReport{{Task: t.ID, State: s, Message: s.String()}}}})
}

// obey lets every agent carry out what is desired, at once.
func (w *world) obey() {
	w.t.Helper()
	for t := range w.snap.AllTasks() {
		n := w.snap.Node(t.Node)
		if n == nil || n.State != swarm.NodeStateReady || t.State.Terminal() || t.State < model.StateAssigned {
			continue
		}
		switch {
		case t.Desired == model.StateRunning && t.State < model.StateRunning:
			w.report(t, model.StateRunning)
		case t.Desired < model.StateRunning && t.State < model.StateReady:
			w.report(t, model.StateReady)
		case t.Desired > model.StateRunning:
			w.report(t, model.StateShutdown)
		}
	}
}

// settle plans and obeys, and lets time pass as the planners ask, until all is quiet.
func (w *world) settle() {
	w.t.Helper()
	for range 500 {
		w.plan()
		quiet := w.planned == 0
		before := w.index
		w.obey()
		if quiet && w.index == before {
			if w.next == 0 {
				return
			}
			w.now = w.next
		}
	}
	w.t.Fatal("the swarm does not settle")
}

func (w *world) advance(d time.Duration) { w.now += model.Time(d) }

func (w *world) countRunning(id model.ServiceID) int {
	n := 0
	for t := range w.snap.Tasks(id) {
		if t.State == model.StateRunning {
			n++
		}
	}
	return n
}

func (w *world) setNode(id model.NodeID, edit func(*swarm.NodeSpec)) {
	w.now++
	s := w.snap.Node(id).Spec
	edit(&s)
	w.do(model.Change{SetNodeSpec: &model.NodeSpecSet{Node: id, Spec: s}})
}

func (w *world) setState(id model.NodeID, s swarm.NodeState) {
	w.do(model.Change{SetNodeState: &model.NodeStateSet{Node: id, State: s}})
	delete(w.obs.Down, id)
	if s == swarm.NodeStateDown {
		w.obs.Down[id] = w.now
	}
}

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }
