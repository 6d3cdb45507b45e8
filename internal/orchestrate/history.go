package orchestrate

import (
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Beyond this many tasks in the swarm, dead ones are kept only where something depends on them.
const maxTasks = 4 << 20

// Failures younger than this are kept, up to as many as make schedule avoid a node, however short
// the history is.
const (
	failureWindow = model.Time(5 * time.Minute)
	keepFailures  = 5
)

// historyLimit is how many tasks a slot keeps, live ones included; < 0 for all.
func historyLimit(snap *state.Snapshot) int {
	limit := int64(defaultHistory)
	if c := snap.Cluster(); c != nil && c.Spec.Typed != nil && c.Spec.Typed.Orchestration.TaskHistoryRetentionLimit != nil {
		limit = *c.Spec.Typed.Orchestration.TaskHistoryRetentionLimit
	}
	if snap.NumTasks() > maxTasks {
		limit = 0
	}
	return int(min(limit, 1<<20))
}

// forget deletes a slot's oldest tasks beyond the limit, and what was scaled away. Not deleted are:
// live tasks, those that have not ended, the last one of a slot (it may hold a finished slot, and knows
// how often it was restarted), what the rollout in progress counts by, and recent failures.
func (p *planner) forget(s *slot, r *rollout) {
	if s.busy || len(s.tasks) == 1 {
		return
	}
	over := 0
	if p.history >= 0 {
		over = len(s.tasks) - p.history
	}
	st, spare := r.steps[s], len(s.tasks)
	if p.history >= defaultHistory {
		spare = p.recentFailures(s) - keepFailures
	}
	for _, t := range s.tasks {
		if t.Desired >= model.StateRemove {
			p.retire(t)
			over--
			continue
		}
		if over <= 0 || t == s.newest || !ended(t) || st.needs(t) {
			continue
		}
		if p.failedLately(t) {
			if spare <= 0 {
				p.wake(t.StatusAt + failureWindow)
				continue
			}
			spare--
		}
		p.out.add(remove(t))
		over--
	}
}

// ended reports whether nothing of the task is, or ever will be, on a node.
func ended(t *model.Task) bool {
	return t.State.Terminal() || t.State < model.StateAssigned && t.Desired > model.StateRunning
}

func (p *planner) failedLately(t *model.Task) bool {
	return (t.State == model.StateFailed || t.State == model.StateRejected) && p.now-t.StatusAt < failureWindow
}

func (p *planner) recentFailures(s *slot) int {
	n := 0
	for _, t := range s.tasks {
		if p.failedLately(t) {
			n++
		}
	}
	return n
}
