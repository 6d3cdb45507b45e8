package schedule

import (
	"cmp"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// hostPort is a port published in host mode: one task a node can have it.
type hostPort struct {
	proto string
	port  uint32
}

// need is what a group of tasks asks of a node.
type need struct {
	template    model.TemplateID
	cpu, mem    int64
	constraints []model.Constraint
	platforms   []swarm.Platform
	ports       []hostPort
	maxReplicas int32    // 0 is any number
	spread      []string // label descriptors, outermost first
	err         string   // why the group cannot be placed whatever the nodes are
}

// newNeed reads placement from the service, because a change of it restarts nothing, and the
// rest from the template that the tasks were made from.
func newNeed(snap *state.Snapshot, svc *model.Service, id model.TemplateID) *need {
	n := &need{template: id, err: svc.PortError}
	if pl := svc.Spec().TaskTemplate.Placement; pl != nil {
		var err error
		if n.constraints, err = model.ParseConstraints(pl.Constraints); err != nil {
			// Refused at admission; a spec from elsewhere must not run just anywhere.
			n.err = "no suitable node (" + err.Error() + ")"
		}
		n.platforms = pl.Platforms
		n.maxReplicas = int32(min(pl.MaxReplicas, 1<<30))
		for _, pref := range pl.Preferences {
			if pref.Spread != nil {
				n.spread = append(n.spread, pref.Spread.SpreadDescriptor)
			}
		}
	}
	t := snap.Template(id)
	if t == nil {
		n.err = "no suitable node (the task's template is gone)"
		return n
	}
	if r := t.Task.Typed.Resources; r != nil && r.Reservations != nil {
		n.cpu, n.mem = r.Reservations.NanoCPUs, r.Reservations.MemoryBytes
	}
	n.ports = hostPorts(t)
	return n
}

// hostPorts are the ports that a task of the template holds on its node; dynamic ones are
// picked by the agent and clash with nothing.
func hostPorts(t *model.Template) []hostPort {
	var out []hostPort
	for _, p := range t.HostPorts {
		if p.PublishedPort != 0 {
			out = append(out, hostPort{cmp.Or(string(p.Protocol), "tcp"), p.PublishedPort})
		}
	}
	return out
}
