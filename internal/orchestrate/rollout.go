package orchestrate

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// config is how a rollout goes, with Docker's defaults filled in.
type config struct {
	parallelism int // 0 is all
	delay       model.Time
	monitor     model.Time
	action      swarm.FailureAction
	ratio       float32
	order       swarm.UpdateOrder
}

// config is that of the rollback while there is one.
func (p *planner) config() config {
	spec := p.svc.Spec().UpdateConfig
	if rollingBack(p.svc.Update) {
		spec = p.svc.Spec().RollbackConfig
	}
	c := config{parallelism: 1, monitor: model.Time(defaultMonitor), action: swarm.UpdateFailureActionPause, order: swarm.UpdateOrderStopFirst}
	if spec == nil {
		return c
	}
	c.parallelism = int(min(spec.Parallelism, maxSlots))
	c.delay, c.ratio = model.Time(max(spec.Delay, 0)), spec.MaxFailureRatio
	if spec.Monitor > 0 {
		c.monitor = model.Time(spec.Monitor)
	}
	c.action = cmp.Or(spec.FailureAction, c.action)
	c.order = cmp.Or(spec.Order, c.order)
	return c
}

func rollingBack(u *model.UpdateStatus) bool {
	return u != nil && u.State == swarm.UpdateStateRollbackStarted
}

func inProgress(u *model.UpdateStatus) bool {
	return u != nil && (u.State == swarm.UpdateStateUpdating || u.State == swarm.UpdateStateRollbackStarted)
}

func paused(u *model.UpdateStatus) bool {
	return u != nil && (u.State == swarm.UpdateStatePaused || u.State == swarm.UpdateStateRollbackPaused)
}

// rollout is where the replacement of a service's tasks stands, read from the tasks themselves.
type rollout struct {
	p        *planner
	config   config
	steps    map[*slot]step
	moving   bool          // one of them has a task that is to be moved and has not come up
	dirty    []*slot       // still to do
	flying   int           // slots whose new task has not come up yet
	waiting  int           // slots whose old task failed by itself: the new one waits for the restart delay
	resting  int           // slots whose new task is up, within the delay
	failed   []*model.Task // new tasks that ended within the monitor window
	rested   model.Time    // when the first of the resting has rested
	lastDone model.Time    // when the last new task came up, or failed to
}

// rollout takes stock. Only a rollout in progress has steps, and one that is paused, for it may go on.
func (p *planner) rollout(slots []*slot) *rollout {
	r := &rollout{p: p, config: p.config()}
	if inProgress(p.svc.Update) || paused(p.svc.Update) {
		r.steps = map[*slot]step{}
	}
	for _, s := range slots {
		if p.slotDirty(s) && !(s.node != 0 && p.node(s.node).paused) {
			r.dirty = append(r.dirty, s)
		}
		if r.steps == nil {
			continue
		}
		if st := p.step(s); st.begun() {
			r.steps[s] = st
			r.count(st)
		}
	}
	return r
}

// slotDirty reports whether a slot has no live task as the spec wants it. Slots that are finished
// take part in an update, and in a rollback too: it may be the update that finished them.
func (p *planner) slotDirty(s *slot) bool {
	if len(s.live) == 0 {
		fresh := p.svc.Update == nil || inProgress(p.svc.Update)
		return s.finished && fresh && s.newest.Template != p.svc.Template
	}
	return !slices.ContainsFunc(s.live, func(t *model.Task) bool { return !p.dirty(t) }) && !p.givenUp(s)
}

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
		case st.task != nil: // the restart policy's
		case t.Desired > model.StateRunning && !byItself && (t.RunningSince == 0 || p.outstays(s)), !byItself && p.movedBack(t):
			st.lost = t
		case byItself && t.RunningSince == 0 && i+1 < len(s.tasks) && outlived(st.from, t):
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

// outlived reports whether a task that is not wanted any more was still there when one that was to replace it ended.
func outlived(from, t *model.Task) bool {
	return from.Desired > model.StateRunning && (!from.State.Terminal() || from.StatusAt >= t.StatusAt)
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

// failed reports whether a task ended by itself, or never began.
func failed(t *model.Task) bool {
	return t.State == model.StateComplete || t.State == model.StateFailed || t.State == model.StateRejected
}

// count takes a slot's step into account, once: how far it is, and whether it failed.
func (r *rollout) count(st step) {
	r.moving = r.moving || st.moving()
	if st.moved != nil && r.underWay(st.moved, false) || st.task == nil {
		return
	}
	if st.broken == nil || !r.underWay(st.broken, false) {
		r.underWay(st.task, st.heir())
	}
	switch {
	case st.failed:
		r.failure(st.task)
	case st.broken != nil:
		r.failure(st.broken)
	}
}

// failure counts a task that ended by itself too early.
func (r *rollout) failure(t *model.Task) {
	early := t.RunningSince == 0 || t.StatusAt-t.RunningSince <= r.config.monitor
	if early && t.StatusAt > r.p.svc.Update.ResumedAt {
		r.failed = append(r.failed, t)
	}
}

// underWay counts a slot by how its task fares, and reports whether it is under way still, or within the delay.
func (r *rollout) underWay(t *model.Task, heir bool) bool {
	done := t.RunningSince
	if done == 0 && t.State.Terminal() {
		done = t.StatusAt
	}
	switch {
	case done == 0 && !heir && t.Desired < model.StateRunning && r.p.now < t.StartAt:
		r.waiting++ // the restart policy's time, not the rollout's: other slots need not wait for it
		return true
	case done == 0:
		r.flying++
		return true
	case t.State == model.StateOrphaned:
		return false // nobody knows when it ended, so no time counts from it
	}
	r.lastDone = max(r.lastDone, done)
	if r.config.delay == 0 || r.p.now >= done+r.config.delay {
		return false
	}
	r.resting++
	if until := done + r.config.delay; r.rested == 0 || until < r.rested {
		r.rested = until
	}
	return true
}

// plan takes the rollout's next step: begin, react to failures, replace some more, or end.
func (r *rollout) plan() {
	p, u := r.p, r.p.svc.Update
	switch {
	case paused(u):
	case !inProgress(u):
		if len(r.dirty) > 0 {
			// StartedAt is not after the creation of the tasks that the same pass makes.
			// Only a paused node of a global service is ever left out. Slots that were finished are tried with the new revision.
			late := u != nil && slices.ContainsFunc(r.dirty, func(s *slot) bool { return s.node != 0 && len(s.live) > 0 && s.newest.Template != p.svc.Template })
			r.set(model.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: p.snap.Time(), Message: UpdateInProgress, Late: late})
		}
	case r.tooManyFailures():
		r.react()
	case len(r.dirty) > 0:
		r.replaceSome()
	case r.flying+r.waiting == 0:
		r.finish()
	}
}

// tooManyFailures compares the failures with the number of slots that the rollout is about.
func (r *rollout) tooManyFailures() bool {
	if r.p.svc.Update.Late || r.config.action == swarm.UpdateFailureActionContinue || len(r.failed) == 0 {
		return false
	}
	total := len(r.dirty)
	for _, st := range r.steps {
		if st.task != nil {
			total++
		}
	}
	return float32(len(r.failed))/float32(total) > r.config.ratio
}

// react pauses the rollout, or turns it back.
func (r *rollout) react() {
	p := r.p
	culprit := slices.MaxFunc(r.failed, func(a, b *model.Task) int {
		return cmp.Or(cmp.Compare(a.StatusAt, b.StatusAt), cmp.Compare(a.ID.Num, b.ID.Num))
	})
	id := fmt.Sprint(culprit.ID.Num)
	if c := p.snap.Cluster(); c != nil {
		id = c.Namer().TaskID(culprit.ID)
	}
	u := *p.svc.Update
	if rollingBack(&u) {
		u.State = swarm.UpdateStateRollbackPaused
		u.Message = "rollback paused due to failure or early termination of task " + id
		r.set(u)
		return
	}
	if r.config.action == swarm.UpdateFailureActionRollback {
		why := "update rolled back due to failure or early termination of task " + id
		if rev := Rollback(p.svc, why, p.snap.Time()); rev != nil {
			rev.Reason = why
			p.out.add(model.Change{NewRevision: rev})
			return
		}
	}
	u.State = swarm.UpdateStatePaused
	u.Message = "update paused due to failure or early termination of task " + id
	r.set(u)
}

// replaceSome replaces the tasks of as many slots as may be under way at once, those that do not
// run first: they cost nothing.
func (r *rollout) replaceSome() {
	free := len(r.dirty)
	if r.config.parallelism > 0 {
		free = r.config.parallelism - r.flying - r.resting
	}
	if free <= 0 && !r.moving {
		r.rest()
		return
	}
	slices.SortStableFunc(r.dirty, func(a, b *slot) int { return cmp.Compare(idle(a), idle(b)) })
	replaced := false
	for _, s := range r.dirty {
		if !r.steps[s].moving() { // else it is under way, and counts already
			if free <= 0 {
				continue
			}
			free--
		}
		r.replace(s)
		replaced = true
	}
	if !replaced {
		r.rest()
		return
	}
	u := *r.p.svc.Update
	u.LastStep = r.p.now
	r.set(u)
}

// rest waits until the first slot has rested.
func (r *rollout) rest() {
	if r.rested != 0 {
		r.p.wake(r.rested)
	}
}

func idle(s *slot) int {
	if s.running() {
		return 1
	}
	return 0
}

// replace puts a task of the template in force into a slot. Starting first, what runs stays until
// the new one does; what does not run yet, of a revision that was overtaken, goes at once.
func (r *rollout) replace(s *slot) {
	p := r.p
	s.busy = true
	var stays *model.Task
	if r.config.order == swarm.UpdateOrderStartFirst {
		for _, t := range s.live {
			if t.State == model.StateRunning {
				stays = t
			}
		}
	}
	changes := make([]model.Change, 0, 2)
	for _, t := range s.live {
		if t != stays {
			changes = append(changes, desire(t, model.StateShutdown))
		}
	}
	desired := model.StateReady
	if stays != nil {
		desired = model.StateRunning
	}
	t := p.newTask(s, desired, p.now)
	if n := s.newest; n != nil && p.inForce(n) {
		// That it has to move is no restart, and forgives none.
		if t.Restarts = slices.Clone(n.Restarts); ended(n) {
			t.Restarts = p.policy.record(n, t.Template, p.now)
		}
	}
	p.out.add(append(changes, put(t))...)
}

// finish ends the rollout when the last new task has stood its time.
func (r *rollout) finish() {
	p := r.p
	if until := r.lastDone + r.config.monitor; r.lastDone > 0 && p.now < until {
		p.wake(until)
		return
	}
	u := *p.svc.Update
	u.CompletedAt = p.now
	u.State, u.Message = swarm.UpdateStateCompleted, "update completed"
	if rollingBack(p.svc.Update) {
		u.State, u.Message = swarm.UpdateStateRollbackCompleted, "rollback completed"
	}
	r.set(u)
}

func (r *rollout) set(u model.UpdateStatus) {
	r.p.out.add(model.Change{SetUpdate: &model.UpdateSet{Service: r.p.id, Update: &u}})
}
