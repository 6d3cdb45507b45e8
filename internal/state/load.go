package state

import (
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// Load is what the tasks on a node have reserved; a task counts from its placement until it
// is in a terminal state. The slices are shared: do not change them.
type Load struct {
	NanoCPUs    int64
	MemoryBytes int64
	Tasks       int
	// Generic are the generic resources as they were assigned, HostPorts the fixed ports held.
	Generic   []swarm.GenericResource
	HostPorts []model.HostPort
}

// share is what one task takes of its node.
type share struct {
	cpus, memory int64
	generic      []swarm.GenericResource
	ports        []model.HostPort
}

// share is read from the task's template; the last one is remembered, for tasks come in groups.
func (w *writer) share(t *model.Task) share {
	if w.template == nil || w.template.ID != t.Template {
		w.template, w.templateShare = w.s.Template(t.Template), share{}
		if w.template != nil {
			if r := w.template.Reservations(); r != nil {
				w.templateShare.cpus, w.templateShare.memory = r.NanoCPUs, r.MemoryBytes
			}
			w.templateShare.ports = w.template.FixedHostPorts()
		}
	}
	sh := w.templateShare
	sh.generic = t.Generic
	return sh
}

// fits is the last guard: whatever the planner thought, nothing is given twice.
func (l *Load) fits(n *model.Node, sh *share) error {
	have := n.Description.Resources
	if sh.cpus > 0 && l.NanoCPUs+sh.cpus > have.NanoCPUs || sh.memory > 0 && l.MemoryBytes+sh.memory > have.MemoryBytes {
		return model.Stalef("node %s has not enough free resources for the task", n.Hostname())
	}
	taken := l.Generic
	for _, r := range sh.generic {
		g := model.GenericOf(r)
		names, free := model.FreeGeneric(have.GenericResources, taken, g.Kind)
		if g.N > free || g.Name != "" && !slices.Contains(names, g.Name) {
			return model.Stalef("node %s has not enough free %s for the task", n.Hostname(), g.Kind)
		}
		taken = append(slices.Clip(taken), r)
	}
	for _, p := range sh.ports {
		if slices.Contains(l.HostPorts, p) {
			return model.Stalef("port %d/%s of node %s is in use", p.Port, p.Protocol, n.Hostname())
		}
	}
	return nil
}

func (l *Load) add(sh *share) {
	l.NanoCPUs += sh.cpus
	l.MemoryBytes += sh.memory
	l.Tasks++
	if len(sh.generic) > 0 {
		l.Generic = append(slices.Clip(l.Generic), sh.generic...)
	}
	if len(sh.ports) > 0 {
		l.HostPorts = append(slices.Clip(l.HostPorts), sh.ports...)
	}
}

func (l *Load) remove(sh *share) {
	l.NanoCPUs -= sh.cpus
	l.MemoryBytes -= sh.memory
	l.Tasks--
	for _, r := range sh.generic {
		l.Generic = without(l.Generic, func(o swarm.GenericResource) bool { return model.GenericOf(o) == model.GenericOf(r) })
	}
	for _, p := range sh.ports {
		l.HostPorts = without(l.HostPorts, func(o model.HostPort) bool { return o == p })
	}
}

// without is a copy of s that lacks the first element that is meant.
func without[T any](s []T, is func(T) bool) []T {
	i := slices.IndexFunc(s, is)
	if i < 0 {
		return s
	}
	if len(s) == 1 {
		return nil
	}
	return slices.Delete(slices.Clone(s), i, i+1)
}
