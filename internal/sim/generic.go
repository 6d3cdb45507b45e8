package sim

import (
	"fmt"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// generics are what a host has beside memory and processors: some that are counted, some with names.
func (w *world) generics() (out []swarm.GenericResource) {
	if w.chance(.5) {
		out = append(out, model.Generic{Kind: "ssd", N: int64(1 + w.rng.IntN(4))}.API())
	}
	if w.chance(.5) {
		for i := range 1 + w.rng.IntN(3) {
			out = append(out, model.Generic{Kind: "gpu", Name: fmt.Sprintf("gpu-%d", i), N: 1}.API())
		}
	}
	return out
}

// reserveGeneric lets a service's tasks ask for some of it.
func (u *users) reserveGeneric(s *swarm.ServiceSpec) {
	if s.TaskTemplate.Resources == nil {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{}}
	}
	kinds := []string{"ssd", "gpu"}
	r := s.TaskTemplate.Resources.Reservations
	for _, kind := range kinds[u.w.rng.IntN(2):] {
		r.GenericResources = append(r.GenericResources, model.Generic{Kind: kind, N: int64(1 + u.w.rng.IntN(2))}.API())
	}
}

// generic judges that a placed task has what it asked for, of what its node has, and that nobody else has it.
func (j *judge) generic(s *step, t *model.Task, n *model.Node) {
	asked, got := map[string]int64{}, map[string]int64{}
	if tpl := s.after.Template(t.Template); tpl != nil {
		for _, r := range reservations(tpl) {
			asked[model.GenericOf(r).Kind] += model.GenericOf(r).N
		}
	}
	for _, r := range t.Generic {
		got[model.GenericOf(r).Kind] += model.GenericOf(r).N
	}
	for _, kind := range []string{"ssd", "gpu"} {
		if asked[kind] != got[kind] {
			j.w.fail("law: a task has the generic resources that it asked for: %s has %d %s of %d", short(t.ID), got[kind], kind, asked[kind])
		}
	}
	if len(t.Generic) == 0 {
		return
	}
	has, given := map[model.Generic]bool{}, map[string]int64{}
	for _, r := range n.Description.Resources.GenericResources {
		g := model.GenericOf(r)
		given[g.Kind] -= g.N
		has[g] = true
	}
	owner := map[model.Generic]model.TaskID{}
	for o := range s.after.TasksOnNode(n.ID) {
		if !booked(o) {
			continue
		}
		for _, r := range o.Generic {
			g := model.GenericOf(r)
			if given[g.Kind] += g.N; given[g.Kind] > 0 {
				j.w.fail("law: no generic resource is given twice: node %d gave %d %s too many", n.ID, given[g.Kind], g.Kind)
			}
			if g.Name == "" {
				continue
			}
			if other, taken := owner[g]; taken || !has[g] {
				j.w.fail("law: no generic resource is given twice: %s of node %d is of %s and %s", g.Name, n.ID, short(other), short(o.ID))
			}
			owner[g] = o.ID
		}
	}
}

func reservations(tpl *model.Template) []swarm.GenericResource {
	if r := tpl.Reservations(); r != nil {
		return r.GenericResources
	}
	return nil
}
