package orchestrate

import (
	"slices"

	"github.com/skep-swarm/skep/internal/model"
)

// slot is one place of a service: a number of a replicated one, a node of a global one. Over
// time it holds one task after the other; while a rollout starts first, two at once.
type slot struct {
	num   uint32
	node  model.NodeID
	tasks []*model.Task // by age

	live   []*model.Task // wanted: desired running, or ready and soon running
	newest *model.Task   // of those that were not removed by scaling down; of a job, the one that completed
	// finished is a slot whose last task ended, or was stopped, and the restart policy says that
	// this was all. It stays taken.
	finished bool
	done     bool // a task of the job's run in force completed here
	// busy is set when this call has changed the slot: the next one sees the result.
	busy bool
}

// bySlot sorts a replicated service's tasks into their slots, in the order of the slots.
func bySlot(tasks []*model.Task) []*slot {
	highest := uint32(0)
	for _, t := range tasks {
		highest = max(highest, t.Slot)
	}
	// Counting first keeps a slot's tasks in one array for all.
	if int(highest) > 4*len(tasks)+1024 {
		return bySlotSparse(tasks)
	}
	start := make([]int, highest+2)
	for _, t := range tasks {
		start[t.Slot+1]++
	}
	used := 0
	for i := 1; i < len(start); i++ {
		if start[i] > 0 {
			used++
		}
		start[i] += start[i-1]
	}
	all, at := make([]*model.Task, len(tasks)), slices.Clone(start)
	for _, t := range tasks {
		all[at[t.Slot]] = t
		at[t.Slot]++
	}
	slots, out := make([]slot, used), make([]*slot, 0, used)
	for n := uint32(0); n <= highest; n++ {
		if from, to := start[n], start[n+1]; to > from {
			s := &slots[len(out)]
			s.num, s.tasks = n, all[from:to:to]
			out = append(out, s)
		}
	}
	return out
}

// bySlotSparse is for slot numbers that lie far apart.
func bySlotSparse(tasks []*model.Task) []*slot {
	found := map[uint32]*slot{}
	var out []*slot
	for _, t := range tasks {
		s := found[t.Slot]
		if s == nil {
			s = &slot{num: t.Slot}
			found[t.Slot] = s
			out = append(out, s)
		}
		s.tasks = append(s.tasks, t)
	}
	slices.SortFunc(out, func(a, b *slot) int { return int(a.num) - int(b.num) })
	return out
}

// look finds the slot's live tasks and whether it is taken. Of a job only the run in force counts.
func (s *slot) look(p *planner) {
	n := 0
	for _, t := range s.tasks {
		if s.counts(p, t) && t.Desired <= model.StateRunning {
			n++
		}
	}
	if last := s.tasks[len(s.tasks)-1]; n == 1 && s.counts(p, last) && last.Desired <= model.StateRunning {
		s.live = s.tasks[len(s.tasks)-1:] // the usual case needs no memory
	} else if n > 0 {
		for _, t := range s.tasks {
			if s.counts(p, t) && t.Desired <= model.StateRunning {
				s.live = append(s.live, t)
			}
		}
	}
	for _, t := range s.tasks {
		if t.JobIteration != p.svc.JobIteration || t.Desired >= model.StateRemove || s.done {
			continue
		}
		s.newest = t
		s.done = p.job && t.State == model.StateComplete
	}
	// A global task that was taken away with its node comes back with it, whatever the policy says of those that end.
	back := s.node != 0 && !p.job && s.newest != nil && !failed(s.newest)
	s.finished = s.done || n == 0 && s.newest != nil && !back && !p.policy.again(s.newest)
}

// counts reports whether a task is one that may be live: of the run in force, and no completed one of
// a job.
func (s *slot) counts(p *planner, t *model.Task) bool {
	return t.JobIteration == p.svc.JobIteration && !(p.job && t.State == model.StateComplete)
}

// taken reports whether the slot counts as one of the service's replicas.
func (s *slot) taken() bool { return len(s.live) > 0 || s.finished }

// running reports whether a live task of the slot is observed running.
func (s *slot) running() bool {
	return slices.ContainsFunc(s.live, func(t *model.Task) bool { return t.State == model.StateRunning })
}

// stopping reports whether an older task of the slot may still run on its node.
func (p *planner) stopping(s *slot, before uint64) bool {
	for _, t := range s.tasks {
		if t.ID.Num >= before {
			break
		}
		if t.Desired > model.StateRunning && t.State >= model.StateAssigned && !t.State.Terminal() {
			if v := p.node(t.Node); v.node != nil && !v.down {
				return true
			}
		}
	}
	return false
}
