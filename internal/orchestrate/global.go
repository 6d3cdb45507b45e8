package orchestrate

import (
	"cmp"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
)

// global plans a service, or a job, with one task on every node that matches.
func (p *planner) global(tasks []*model.Task) {
	slots := byNode(tasks)
	p.lookAt(slots)
	if p.job {
		p.endFormerRuns(slots)
	}
	var kept []*slot
	for _, s := range slots {
		v := p.node(s.node)
		switch {
		case s.busy:
		case v.node == nil:
			p.clear(s)
		default:
			p.settle(s, v)
			kept = append(kept, s)
		}
	}
	for n := range p.snap.Nodes() {
		at, found := slices.BinarySearchFunc(slots, n.ID, func(s *slot, id model.NodeID) int { return cmp.Compare(s.node, id) })
		if v := p.node(n.ID); !found && v.active && v.matches {
			p.fill(&slot{node: n.ID}) // the bulk change asks itself whether the node has changed
		} else if found && v.active && v.matches && !slots[at].taken() && !slots[at].busy {
			p.fill(slots[at])
			p.out.because(v.node)
		}
	}
	if p.job {
		p.tendJob(kept)
	} else {
		p.tend(kept)
	}
}

// settle stops tasks on a node that must not have one, whichever of the two changed.
func (p *planner) settle(s *slot, v *nodeView) {
	if v.matches && !v.drained && !v.down || v.paused {
		return
	}
	for _, t := range s.live {
		p.out.add(desire(t, model.StateShutdown))
		p.out.because(v.node)
		s.busy = true
	}
}

// byNode sorts a global service's tasks by their nodes.
func byNode(tasks []*model.Task) []*slot {
	found := map[model.NodeID]*slot{}
	var out []*slot
	for _, t := range tasks {
		s := found[t.Node]
		if s == nil {
			s = &slot{node: t.Node}
			found[t.Node] = s
			out = append(out, s)
		}
		s.tasks = append(s.tasks, t)
	}
	slices.SortFunc(out, func(a, b *slot) int { return cmp.Compare(a.node, b.node) })
	return out
}
