package skepapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/compose"
	"github.com/skep-swarm/skep/internal/model"
)

// prune plans the end of what carries the stack's label and is not in its definition any more. Networks, secrets and configs are often
// in use until an update is over: those are busy, which the client is told, and go with a later prune. The secrets and configs of the
// revisions that can still be gone back to are kept, for their values are nowhere else.
func (p *planner) prune() {
	stack, namer := p.d.Stack.Name, p.snap.Cluster().Namer()
	for svc := range p.snap.Services() {
		spec := svc.Spec()
		if labelled(spec, stack) && !slices.ContainsFunc(p.d.Stack.Services, func(s swarm.ServiceSpec) bool { return s.Name == spec.Name }) {
			p.drop("service", spec.Name, namer.ServiceID(svc.ID)).before = svc.Current().Spec.Raw
		}
	}
	kept := p.revisionParts()
	for _, kind := range []model.Kind{model.KindSecret, model.KindConfig} {
		for x := range p.snap.Payloads(kind) {
			name := x.Name()
			if x.Spec.Typed.Labels[stackLabel] != stack || p.d.has(kind, name) {
				continue
			}
			if num := kept[kind.String()+" "+name]; num != 0 {
				p.actions = append(p.actions, &action{verb: "kept", kind: kind.String(), name: name,
					warnings: []string{fmt.Sprintf("the stack can be rolled back to revision %d, which has it: remove it with 'skep %s rm' if that shall not be", num, kind)}})
				continue
			}
			p.dropUnused(kind.String(), name, namer.ID(x.Key()))
		}
	}
	for n := range p.snap.Networks() {
		if n.Labels[stackLabel] == stack && !slices.ContainsFunc(p.d.Stack.Networks, func(x compose.Network) bool { return x.Name == n.Name }) {
			p.dropUnused("network", n.Name, namer.ID(model.NetworkKey(n.ID)))
		}
	}
}

// has reports whether the definition has a secret or config of this name.
func (d *Deploy) has(kind model.Kind, name string) bool {
	if kind == model.KindSecret {
		return slices.ContainsFunc(d.Stack.Secrets, func(x compose.Secret) bool { return x.Name == name })
	}
	return slices.ContainsFunc(d.Stack.Configs, func(x compose.Config) bool { return x.Name == name })
}

// revisionParts are the secrets and configs ("secret NAME") of the revisions that the stack keeps, with the newest that has each.
func (p *planner) revisionParts() map[string]uint64 {
	out := map[string]uint64{}
	var revisions []*model.StackRevision
	if st := p.snap.Stack(p.d.Stack.Name); st != nil {
		revisions = st.Revisions
	} else if first, err := found(p.snap, p.d.Stack.Name); err == nil && first != nil {
		first.Num = 1 // which it becomes with this deploy
		revisions = append(revisions, first)
	}
	for _, rev := range revisions {
		var def compose.Stack
		if json.Unmarshal(rev.Definition, &def) != nil {
			continue // written by another version: it cannot be gone back to
		}
		for _, x := range def.Secrets {
			out["secret "+x.Name] = rev.Num
		}
		for _, x := range def.Configs {
			out["config "+x.Name] = rev.Num
		}
	}
	return out
}

func (p *planner) drop(kind, name, id string) *action {
	a := &action{verb: "removed", kind: kind, name: name, do: func(ctx context.Context, s *server) error {
		err := s.docker(ctx, http.MethodDelete, "/"+kind+"s/"+id, nil, nil, nil)
		if model.KindOf(err) == model.NotFound {
			return nil
		}
		return err
	}}
	p.actions = append(p.actions, a)
	return a
}

// dropUnused drops what may be in use: then it is kept, and that is no error.
func (p *planner) dropUnused(kind, name, id string) {
	a := p.drop(kind, name, id)
	do := a.do
	a.do = func(ctx context.Context, s *server) error {
		err := do(ctx, s)
		a.verb, a.warnings = "removed", nil
		if k := model.KindOf(err); k == model.FailedPrecondition || k == model.Invalid || k == model.Forbidden || k == model.Conflict {
			a.verb, a.warnings = "busy", []string{fmt.Sprintf("it is not removed yet: %v", err)}
			return nil
		}
		return err
	}
}

// pruneStack handles POST …/prune: what the definition in force has no place for goes, as far as nothing uses it any more.
func (s *server) pruneStack(w http.ResponseWriter, r *http.Request) {
	out := newSteps(w)
	ctx, cancel := context.WithTimeout(r.Context(), deployLimit)
	defer cancel()
	out.end(s.pruneNow(ctx, r.PathValue("name"), out.say))
}

func (s *server) pruneNow(ctx context.Context, name string, say func(Step)) (uint64, error) {
	done, err := s.turns.take(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("wait for a deploy of stack %s: %w", name, err)
	}
	defer done()
	snap, err := s.b.State(ctx)
	if err != nil {
		return 0, err
	}
	st, err := findStack(snap, name)
	if err != nil {
		return 0, err
	}
	p := &planner{server: s, ctx: ctx, snap: snap, d: new(Deploy)}
	if err := json.Unmarshal(st.Current().Definition, &p.d.Stack); err != nil {
		return 0, fmt.Errorf("revision %d of stack %s: %w", st.Current().Num, name, err)
	}
	p.prune()
	for _, a := range p.actions {
		if a.do == nil {
			continue // kept, as the deploy has said
		}
		if err := a.do(ctx, s); err != nil {
			return 0, &actionError{a.kind, a.name, err}
		}
		say(Step{Action: a.verb, Kind: a.kind, Name: a.name, Warnings: a.warnings})
	}
	return st.Current().Num, nil
}
