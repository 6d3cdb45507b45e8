package schedule

import (
	"cmp"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// need is what a group of tasks asks of a node.
type need struct {
	template    model.TemplateID
	cpu, mem    int64
	constraints []model.Constraint
	platforms   []swarm.Platform
	ports       []model.HostPort
	generic     []model.Generic // counted ones, each kind once
	addr        bool            // in the gateway network
	maxReplicas int32           // 0 is any number
	spread      []string        // label descriptors, outermost first
	most        int32           // more room than this on a node makes no difference: one more than there are tasks
	err         string          // why the group cannot be placed whatever the nodes are
}

// newNeed reads placement from the service, because a change of it restarts nothing, and the
// rest from the template that the tasks were made from.
func (p *planner) newNeed(svc *model.Service, id model.TemplateID) *need {
	n := &need{template: id, err: cmp.Or(svc.PortError, svc.NetError)}
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
	t := p.snap.Template(id)
	if t == nil {
		n.err = "no suitable node (the task's template is gone)"
		return n
	}
	if r := t.Reservations(); r != nil {
		n.cpu, n.mem = r.NanoCPUs, r.MemoryBytes
		n.reserve(r.GenericResources)
	}
	if n.err == "" && p.pools.Nets != nil {
		if err := p.pools.Nets(p.snap, t); err != nil {
			n.err = err.Error() // or its tasks would take nodes' room from others, and not run there either
		}
	}
	n.ports, n.addr = t.FixedHostPorts(), t.NetMode == ""
	return n
}

// reserve notes generic resources. A reservation by name is one of its kind, as Docker refuses it.
func (n *need) reserve(rs []swarm.GenericResource) {
	for _, r := range rs {
		g := model.GenericOf(r)
		i := slices.IndexFunc(n.generic, func(o model.Generic) bool { return o.Kind == g.Kind })
		switch {
		case g.N <= 0:
		case i >= 0:
			n.generic[i].N += g.N
		default:
			n.generic = append(n.generic, model.Generic{Kind: g.Kind, N: g.N})
		}
	}
}
