package skepapi

import (
	"bytes"
	"context"
	"errors"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// rehearsal is a log in memory: what is written is seen by whoever reads after it, and by nobody else. It is used by one goroutine.
type rehearsal struct{ snap *state.Snapshot }

// State implements Log.
func (r *rehearsal) State(context.Context) (*state.Snapshot, error) { return r.snap, nil }

// Propose implements Log.
func (r *rehearsal) Propose(_ context.Context, b *model.Batch) (*model.Outcome, error) {
	next, out := r.snap.Apply(r.snap.Index()+1, b)
	r.snap = next
	return out, nil
}

// Down implements Backend.
func (*rehearsal) Down(context.Context, func(string)) error {
	return errors.New("a rehearsal ends nothing")
}

// rehearse carries a plan out on a copy of the state, so that a stack that is refused in one part is refused before another part of
// it is there.
func (s *server) rehearse(ctx context.Context, snap *state.Snapshot, d *Deploy, p *stackPlan) error {
	log := &rehearsal{snap: snap}
	stage := &server{b: log, engine: s.stage(log)}
	if err := stage.keep(ctx, snap, d, p.definition); err != nil {
		return err
	}
	for _, a := range p.actions {
		if a.do == nil {
			continue
		}
		if err := a.do(ctx, stage); err != nil {
			return &actionError{a.kind, a.name, err}
		}
		a.outcome(log.snap)
	}
	return nil
}

// outcome notes what a service has become. Only the API knows what it fills in, so only now is it known whether an update changes
// anything: one that does not is none, for a job would run again.
func (a *action) outcome(snap *state.Snapshot) {
	if a.kind != "service" || a.verb == "removed" {
		return
	}
	svc := snap.ServiceByName(a.name)
	if svc == nil {
		return
	}
	a.after = svc.Current().Spec.Raw
	if a.before != nil && bytes.Equal(a.before, a.after) && !a.credentials {
		a.verb, a.do = "unchanged", nil
	}
}
