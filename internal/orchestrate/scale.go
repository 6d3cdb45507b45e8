package orchestrate

import (
	"cmp"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// maxSlots bounds a service's replicas, whatever its spec says.
const maxSlots = 1 << 20

func (p *planner) replicas() int {
	if r := p.svc.Spec().Mode.Replicated; r != nil && r.Replicas != nil {
		return int(min(*r.Replicas, maxSlots))
	}
	return 1
}

// scale makes the number of taken slots what the spec says, and returns those that stay.
func (p *planner) scale(slots []*slot) []*slot {
	want := p.replicas()
	var taken, vacant []*slot
	for _, s := range slots {
		if s.taken() {
			taken = append(taken, s)
		} else {
			vacant = append(vacant, s)
		}
	}
	if len(taken) > want {
		order := p.keepOrder(taken)
		for _, s := range order[want:] {
			p.clear(s)
		}
		taken = order[:want]
		slices.SortFunc(taken, func(a, b *slot) int { return cmp.Compare(a.num, b.num) })
	}
	p.open(taken, vacant, want-len(taken))
	return taken
}

// open fills the lowest free slot numbers and clears the vacant slots that are not needed.
func (p *planner) open(taken, vacant []*slot, missing int) {
	next := uint32(1)
	if len(vacant) == 0 {
		p.fresh = slices.Grow(p.fresh, max(missing, 0))
	}
	for ; missing > 0; next++ {
		for len(taken) > 0 && taken[0].num < next {
			taken = taken[1:]
		}
		if len(taken) > 0 && taken[0].num == next {
			continue
		}
		for len(vacant) > 0 && vacant[0].num < next {
			p.clear(vacant[0])
			vacant = vacant[1:]
		}
		missing--
		if len(vacant) == 0 || vacant[0].num != next {
			p.fresh = append(p.fresh, model.TaskNew{Slot: next}) // no slot needed: this is all that happens to it
			continue
		}
		if s := vacant[0]; !s.busy {
			p.fill(s)
		}
		vacant = vacant[1:]
	}
	for _, s := range vacant {
		p.clear(s)
	}
}

// fill puts a new task into a slot without a live one. When the last one failed, or still
// stops, the new one is held back as a restart would be.
func (p *planner) fill(s *slot) {
	if len(s.tasks) == 0 {
		p.fresh = append(p.fresh, model.TaskNew{Slot: s.num, Node: s.node})
		s.busy = true
		return
	}
	desired, startAt := model.StateRunning, p.now
	if n := s.newest; n != nil && n.State.Terminal() {
		startAt = max(startAt, p.afterEnd(n))
	}
	if startAt > p.now || p.waits != "" || p.stopping(s, ^uint64(0)) {
		desired = model.StateReady
	}
	t := p.newTask(s, desired, startAt)
	if s.newest != nil {
		t.Restarts = p.refilled(s.newest)
	}
	p.out.add(put(t))
	s.busy = true
}

// refilled is the restart times that a task inherits in a slot without a live one. That its node comes back is no restart of
// a global service, and forgives none.
func (p *planner) refilled(last *model.Task) []model.Time {
	switch {
	case p.svc.Spec().Mode.Global == nil || failed(last):
		return p.policy.record(last, p.svc.Template, p.now)
	case last.Template != p.svc.Template:
		return nil
	}
	return slices.Clone(last.Restarts)
}

// clear removes everything in a slot that the service no longer has.
func (p *planner) clear(s *slot) {
	if s.busy {
		return
	}
	s.busy = true
	for _, t := range s.tasks {
		p.retire(t)
	}
}

// findCrowd finds the tasks beyond the service's limit for a node. There are none but after the limit was lowered; then the
// rollout moves them.
func (p *planner) findCrowd(slots []*slot) {
	most := maxPerNode(p.svc.Spec())
	if most == 0 {
		return
	}
	on := map[model.NodeID]uint64{}
	for _, s := range slots {
		for _, t := range s.live {
			if t.Node == 0 || t.State.Terminal() || p.node(t.Node).paused {
				continue
			}
			if on[t.Node]++; on[t.Node] > most {
				if p.crowd == nil {
					p.crowd = map[model.TaskID]bool{}
				}
				p.crowd[t.ID] = true
			}
		}
	}
}

// maxPerNode is how many of a service's tasks a node may have, 0 for any number.
func maxPerNode(spec *swarm.ServiceSpec) uint64 {
	if pl := spec.TaskTemplate.Placement; pl != nil {
		return pl.MaxReplicas
	}
	return 0
}

// keepOrder sorts slots by how much they deserve to stay: running ones first, of these the
// first on each node before the second on any, and so on, then low numbers.
func (p *planner) keepOrder(slots []*slot) []*slot {
	type rank struct {
		s    *slot
		idle int
		nth  int
	}
	ranks := make([]rank, len(slots))
	for i, s := range slots {
		ranks[i].s = s
		if !s.running() {
			ranks[i].idle = 1
		}
	}
	slices.SortStableFunc(ranks, func(a, b rank) int { return cmp.Compare(a.idle, b.idle) })
	onNode := map[model.NodeID]int{}
	for i := range ranks {
		// A slot with two tasks, or with none placed, is nowhere in particular: it goes first.
		ranks[i].nth = len(slots)
		if live := ranks[i].s.live; len(live) == 1 && live[0].Node != 0 {
			onNode[live[0].Node]++
			ranks[i].nth = onNode[live[0].Node]
		}
	}
	slices.SortStableFunc(ranks, func(a, b rank) int { return cmp.Or(cmp.Compare(a.idle, b.idle), cmp.Compare(a.nth, b.nth)) })
	out := make([]*slot, len(ranks))
	for i := range ranks {
		out[i] = ranks[i].s
	}
	return out
}
