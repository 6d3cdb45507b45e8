package sim

import (
	"net/netip"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/state"
)

// Mutation is a law broken on purpose, in what the simulator puts around the real code.
type Mutation string

// The mutations: each is caught by some seed, or the judge is blind.
const (
	// MissingGuard sends the planner's batches to the log without their guards.
	MissingGuard Mutation = "missing-guard"
	// LostTimer lets the planner sleep through what it asked to be woken for.
	LostTimer Mutation = "lost-timer"
	// ParallelismOff shows the planner one more than the parallelism that the user asked for.
	ParallelismOff Mutation = "parallelism-off-by-one"
	// NoQuarantine gives the address that was freed last to the next task on its node.
	NoQuarantine Mutation = "no-quarantine"
	// DroppedReport acknowledges a report now and then that nobody wrote down.
	DroppedReport Mutation = "dropped-report"
	// OpenGate does not show the planner what services depend on.
	OpenGate Mutation = "open-gate"
)

// Mutations are all of them.
func Mutations() []Mutation {
	return []Mutation{MissingGuard, LostTimer, ParallelismOff, NoQuarantine, DroppedReport, OpenGate}
}

// mutator stands where a mutation acts; without one it passes everything on as it is.
type mutator struct {
	w    *world
	kind Mutation
}

// snapshot is what the planner sees.
func (x *mutator) snapshot(s *state.Snapshot) *state.Snapshot {
	if !x.lies() {
		return s
	}
	out := s
	for svc := range s.Services() {
		spec, err := model.ParseSpec[swarm.ServiceSpec](svc.Current().Spec.Raw)
		if err != nil || !x.lie(spec.Typed) {
			continue
		}
		seen, err := model.MakeSpec(spec.Typed)
		if err != nil {
			continue
		}
		if next, err := out.With(model.Change{NewRevision: &model.NewRevision{Service: svc.ID, Spec: seen, TemplateID: svc.Template, Ports: svc.Ports}}); err == nil {
			out = next
		}
	}
	return out
}

// lies reports whether the planner sees something else than there is.
func (x *mutator) lies() bool { return x.kind == ParallelismOff || x.kind == OpenGate }

// lie changes what the planner sees of a service, or nothing.
func (x *mutator) lie(s *swarm.ServiceSpec) bool {
	if x.kind == OpenGate {
		depends := s.Labels[orchestrate.DependsLabel]
		delete(s.Labels, orchestrate.DependsLabel)
		return depends != ""
	}
	if s.UpdateConfig == nil || s.UpdateConfig.Parallelism == 0 {
		return false
	}
	s.UpdateConfig.Parallelism++
	return true
}

// batch is what goes to the log instead of the planner's batch.
func (x *mutator) batch(m *member, b *model.Batch) *model.Batch {
	switch x.kind {
	case MissingGuard:
		c := *b
		c.Txns = nil
		for _, t := range b.Txns {
			c.Txns = append(c.Txns, model.Txn{Changes: t.Changes})
		}
		return &c
	case NoQuarantine:
		x.reuse(m, b)
	}
	return b
}

// reuse changes the addresses of placements to those that were freed last.
func (x *mutator) reuse(m *member, b *model.Batch) {
	taken := map[netip.Addr]bool{}
	again := func(node model.NodeID, addr *netip.Addr) {
		if a := x.w.judge.freed[node]; addr.IsValid() && a.IsValid() && !taken[a] && !m.snap.AddrInUse(a) {
			*addr, taken[a] = a, true
		}
	}
	for i := range b.Txns {
		for j := range b.Txns[i].Changes {
			switch c := &b.Txns[i].Changes[j]; {
			case c.SetTaskPlace != nil:
				again(c.SetTaskPlace.Node, &c.SetTaskPlace.Gateway4)
			case c.PutTask != nil:
				again(c.PutTask.Node, &c.PutTask.Gateway4)
			case c.PutTasks != nil:
				for k := range c.PutTasks.Tasks {
					again(c.PutTasks.Tasks[k].Node, &c.PutTasks.Tasks[k].Gateway4)
				}
			}
		}
	}
}

func (x *mutator) forgetsTimer(m *member) bool {
	return x.kind == LostTimer && m.planner.Wait(m.now(), m.clock()) > 0
}

func (x *mutator) dropsReport(r *model.Report) bool {
	return x.kind == DroppedReport && x.w.chance(.02) && len(r.Tasks) > 0
}
