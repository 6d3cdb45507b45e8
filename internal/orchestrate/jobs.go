package orchestrate

import (
	"github.com/skep-swarm/skep/internal/model"
)

// isJob reports whether the service's tasks run to completion. A job has runs (iterations): every
// revision begins a new one, and only its tasks count. They are desired running until they
// complete, and nothing replaces one that did.
func isJob(svc *model.Service) bool {
	m := svc.Spec().Mode
	return m.ReplicatedJob != nil || m.GlobalJob != nil
}

// replicatedJob plans a job of N completions, each in a slot of its own, of which so many may be under
// way at once. A slot is under way while its task runs, waits for its restart, or stops.
func (p *planner) replicatedJob(tasks []*model.Task) {
	total, concurrent := p.completions()
	slots := bySlot(tasks)
	p.lookAt(slots)
	p.endFormerRuns(slots)
	kept := slots[:0:0]
	free := concurrent
	for _, s := range slots {
		if int(s.num) > total {
			p.clear(s)
		} else {
			kept = append(kept, s)
		}
		if s.busy || len(s.live) > 0 || p.stopping(s, ^uint64(0)) {
			free--
		}
	}
	p.tendJob(kept)
	next := 0
	for num := uint32(1); int(num) <= total && free > 0; num++ {
		s := &slot{num: num}
		if next < len(kept) && kept[next].num == num {
			s = kept[next]
			next++
		}
		if s.taken() || s.busy {
			continue
		}
		p.fill(s)
		free--
	}
}

// completions is how often a job must complete, and how many tasks may be at it at once: with a concurrency of 0 all of
// them, as a parallelism of 0 means.
func (p *planner) completions() (total, concurrent int) {
	job := p.svc.Spec().Mode.ReplicatedJob
	concurrent = 1
	if job.MaxConcurrent != nil {
		concurrent = int(min(*job.MaxConcurrent, maxSlots))
	}
	total = concurrent
	if job.TotalCompletions != nil {
		total = int(min(*job.TotalCompletions, maxSlots))
	}
	if concurrent == 0 {
		concurrent = total
	}
	return total, concurrent
}

// endFormerRuns stops what is left of runs before the one in force. Tasks of them that ended are
// history.
func (p *planner) endFormerRuns(slots []*slot) {
	for _, s := range slots {
		if s.busy {
			continue // one of them was given up: the next call sees what is left
		}
		for _, t := range s.tasks {
			switch {
			case t.JobIteration == p.svc.JobIteration:
			case !t.State.Terminal() && t.Desired < model.StateRemove:
				p.retire(t)
				s.busy = true
			case t.State.Terminal() && t.Desired < model.StateRunning:
				p.out.add(desire(t, model.StateShutdown)) // it never got its turn, and will not
				s.busy = true
			}
		}
	}
}

// tendJob heals the slots of the run in force and drops old history. A slot that completed has no
// use for another task; one may be on its way because the node of the first was lost for a while.
func (p *planner) tendJob(kept []*slot) {
	for _, s := range kept {
		switch {
		case s.busy:
		case s.done && len(s.live) > 0:
			for _, t := range s.live {
				p.out.add(desire(t, model.StateShutdown))
			}
			s.busy = true
		default:
			p.heal(s)
		}
	}
	if inProgress(p.svc.Update) {
		// A job has no rollout: the new run has replaced the old one.
		p.out.add(model.Change{SetUpdate: &model.UpdateSet{Service: p.id}})
	}
	none := &rollout{}
	for _, s := range kept {
		p.forget(s, none)
	}
}
