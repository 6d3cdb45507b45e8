package orchestrate

import (
	"slices"

	"github.com/skep-swarm/skep/internal/model"
)

// step is what the rollout in progress did in a slot.
type step struct {
	// from is the last task before it: without one it is no step, but the slot's beginning.
	from *model.Task
	// task is the one by which it replaced what was there: the first of the template in force since the rollout began. One
	// that had to leave its node, or lost it, before it came up and took over is lost, and another follows, which has yet to.
	task, lost *model.Task
	// failed is set when the task ended by itself: not one that had a successor before, and whose node told of its end later.
	failed bool
	// broken is one before it that ended before it ran, while what it was to replace stayed: the slot's turn is yet to come, or came
	// again, but its failure counts.
	broken *model.Task
	// unplaced is one before it that never found a node, or has none as long as its node is paused: nobody waits for it.
	unplaced *model.Task
	// moved is one before it that is not where the spec wants it. Both may be of one template, what a rollout did and what
	// a rollback undoes, so its failure is not this rollout's; but the slot is under way all the same.
	moved *model.Task
}

// needs reports whether a task is one that the rollout counts by, and so must not be forgotten.
func (st step) needs(t *model.Task) bool {
	return t == st.task || t == st.moved || t == st.lost || t == st.from || t == st.broken
}

// begun reports whether the rollout did anything in the slot.
func (st step) begun() bool {
	return st.task != nil || st.moved != nil || st.lost != nil || st.from != nil && st.unplaced != nil
}

// heir reports whether the task follows one that was lost.
func (st step) heir() bool { return st.lost != nil && st.lost != st.task }

// moving reports whether a task that is to be moved has not come up: another may take its place at any time.
func (st step) moving() bool {
	return st.moved != nil && st.moved.RunningSince == 0 && !st.moved.State.Terminal()
}

func (p *planner) step(s *slot) (st step) {
	for i, t := range s.tasks {
		if t.Template != p.svc.Template || t.CreatedAt < p.svc.Update.StartedAt {
			if st.from != nil && p.underWayBefore(st.from, t) {
				st.task = t
				return st
			}
			if t.Desired < model.StateRemove {
				st.from = t
			}
			continue
		}
		if t.State < model.StateAssigned && (t.Desired > model.StateRunning || s.node != 0 && p.node(s.node).paused) {
			// It never found a node and is wanted no more: it will not come up, nor report its
			// end. The one that took its place counts.
			st.unplaced = t
			continue
		}
		byItself := failed(t) && (i+1 == len(s.tasks) || s.tasks[i+1].CreatedAt >= t.StatusAt)
		switch {
		case st.from == nil:
			return step{}
		case p.dirty(t):
			// What the slot had before is history: it has to be replaced once more.
			if st.failed {
				st.broken = st.task
			}
			st.moved, st.task, st.failed, st.lost = t, nil, false, nil
		case st.task != nil && (byItself || !p.movedBack(t)): // the restart policy's
		case t.Desired > model.StateRunning && !byItself && (t.RunningSince == 0 || p.outstays(s)), !byItself && p.movedBack(t):
			if st.failed {
				st.broken = st.task
			}
			st.task, st.failed, st.lost = nil, false, t
		case byItself && t.RunningSince == 0 && i+1 < len(s.tasks) && p.outlived(s.tasks[:i], t):
			if st.broken == nil {
				st.broken = t
			}
		default:
			st.task, st.failed = t, byItself
		}
	}
	if st.task == nil && st.lost != nil && !p.outstays(s) && p.onNode(st.lost) {
		st.task = st.lost // nobody follows it, and it is still being stopped
	}
	if st.task == nil && st.moved == nil && st.broken != nil {
		st.task, st.failed, st.broken = st.broken, true, nil
	}
	return st
}

// underWayBefore reports whether a task of the template in force was put in the place of another revision's by a rollout before
// this one, and has yet to come up: revisions may go to and fro before a rollout could do anything.
func (p *planner) underWayBefore(from, t *model.Task) bool {
	return t.Template == p.svc.Template && from.Template != t.Template && t.Desired <= model.StateRunning && t.RunningSince == 0 && !t.State.Terminal() && !p.dirty(t)
}

// movedBack reports whether a task that ran was stopped though it could stay where it is: a constraint, a limit or a drain for
// which it had to go was taken back, and the one that follows it has yet to come up.
func (p *planner) movedBack(t *model.Task) bool {
	return t.Desired == model.StateShutdown && t.RunningSince != 0 && p.onNode(t) && !p.node(t.Node).drained
}

// outlived reports whether one of the older tasks of a slot that are not wanted any more was still there when t, which was to replace
// it, ended.
func (p *planner) outlived(older []*model.Task, t *model.Task) bool {
	return slices.ContainsFunc(older, func(o *model.Task) bool {
		if o.Template == t.Template || o.Desired <= model.StateRunning || o.State < model.StateAssigned {
			return false
		}
		return o.State.Terminal() && o.StatusAt > t.StatusAt || !o.State.Terminal() && p.onNode(o)
	})
}

// onNode reports whether a task has a node that can tell of its end.
func (p *planner) onNode(t *model.Task) bool {
	if t.Node == 0 {
		return false
	}
	v := p.node(t.Node)
	return v.node != nil && !v.down
}

// outstays reports whether a task that the rollout is to replace is still meant to run in the slot.
func (p *planner) outstays(s *slot) bool { return slices.ContainsFunc(s.live, p.dirty) }
