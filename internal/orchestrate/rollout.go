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

// config is that of the rollback while there is one, also while it is paused.
func (p *planner) config() config {
	spec := p.svc.Spec().UpdateConfig
	if u := p.svc.Update; rollingBack(u) || u != nil && u.State == swarm.UpdateStateRollbackPaused {
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
	r.underWay(st.task, st.heir() || st.broken != nil)
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
