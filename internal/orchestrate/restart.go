package orchestrate

import (
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// maxRecorded bounds the restart times that a task carries; a policy that allows more attempts
// than this is as good as one without a limit.
const maxRecorded = 1000

// restartPolicy is a service's policy with Docker's defaults filled in.
type restartPolicy struct {
	condition   swarm.RestartPolicyCondition
	delay       model.Time
	maxAttempts int // 0 is no limit
	window      model.Time
}

func newRestartPolicy(spec *swarm.RestartPolicy) restartPolicy {
	p := restartPolicy{condition: swarm.RestartPolicyConditionAny, delay: model.Time(defaultRestartDelay)}
	if spec == nil {
		return p
	}
	if spec.Condition != "" {
		p.condition = spec.Condition
	}
	if spec.Delay != nil {
		p.delay = model.Time(max(*spec.Delay, 0))
	}
	if spec.MaxAttempts != nil {
		p.maxAttempts = int(min(*spec.MaxAttempts, maxRecorded+1))
	}
	if spec.Window != nil {
		p.window = model.Time(max(*spec.Window, 0))
	}
	return p
}

// again reports whether a task that ended, or has to leave its node, gets a successor.
func (r restartPolicy) again(t *model.Task) bool {
	switch r.condition {
	case swarm.RestartPolicyConditionNone:
		return false
	case swarm.RestartPolicyConditionOnFailure:
		if t.State == model.StateComplete {
			return false
		}
	}
	return !r.exhausted(t)
}

// exhausted reports whether the attempts are used up with t.
func (r restartPolicy) exhausted(t *model.Task) bool {
	if r.maxAttempts == 0 {
		return false
	}
	counted := len(t.Restarts)
	if r.window > 0 {
		// The window looks back from when the task ended, so the answer does not change as time
		// passes.
		counted = 0
		for _, at := range t.Restarts {
			if at > t.StatusAt-r.window {
				counted++
			}
		}
	}
	return counted >= r.maxAttempts
}

// record is the restart times that t's successor of the given template inherits. Failures of an old
// template do not count against a new one.
func (r restartPolicy) record(t *model.Task, template model.TemplateID, now model.Time) []model.Time {
	if r.maxAttempts == 0 {
		return nil
	}
	var times []model.Time
	if t.Template == template {
		times = slices.Clone(t.Restarts)
	}
	if r.window > 0 {
		times = slices.DeleteFunc(times, func(at model.Time) bool { return at <= now-r.window })
	}
	times = append(times, now)
	return times[max(0, len(times)-maxRecorded):]
}

// heal deals with a slot's live tasks that ended or lost their node, lets held ones go, and
// ends the double life of a slot whose new task runs.
func (p *planner) heal(s *slot) {
	var bad, leaving, good []*model.Task
	for _, t := range s.live {
		switch {
		case p.leaving(s, t):
			leaving = append(leaving, t)
		case t.State.Terminal() || t.Node != 0 && p.node(t.Node).lost(p.svc):
			bad = append(bad, t)
		default:
			good = append(good, t)
		}
	}
	if len(bad) > 0 && p.replace(s, bad, good) || p.handOver(s, good) || p.surge(s, leaving, good) {
		s.busy = true
		return
	}
	if len(leaving) > 0 {
		return // a held successor waits for them
	}
	for _, t := range good {
		p.release(s, t)
	}
}

// replace stops bad tasks and, when the slot needs it and the policy agrees, makes one successor.
func (p *planner) replace(s *slot, bad, good []*model.Task) bool {
	last := bad[len(bad)-1]
	if last.State.Terminal() && last.Desired < model.StateRunning && p.now < last.StartAt {
		// It failed while it was still held back: its own delay comes first, or an image that does
		// not exist would be tried in a tight loop.
		p.wake(last.StartAt)
		return false
	}
	var changes []model.Change
	for _, t := range bad {
		changes = append(changes, desire(t, model.StateShutdown))
	}
	if p.needsSuccessor(s, last, good) {
		t := p.newTask(s, model.StateReady, p.restartAt(last))
		t.Restarts = p.policy.record(p.account(s, last), p.svc.Template, p.now)
		changes = append(changes, put(t))
	}
	p.out.add(changes...)
	for _, t := range bad {
		if t.Node != 0 && !t.State.Terminal() {
			p.out.because(p.node(t.Node).node)
		}
	}
	return true
}

func (p *planner) needsSuccessor(s *slot, last *model.Task, good []*model.Task) bool {
	for _, t := range good {
		if !p.dirty(t) || p.dirty(last) {
			return false // another one holds the slot
		}
	}
	if s.node != 0 {
		// A global task belongs to its node. When the node is back, it gets a new one; while it is paused, none.
		if v := p.node(s.node); v.lost(p.svc) || v.drained || v.paused {
			return false
		}
	}
	return p.again(s, last)
}

// account is the task whose restarts count when t gets a successor: t itself, or a newer one of the template in
// force that the slot had while t stayed, because the slot starts first or t was to leave its node.
func (p *planner) account(s *slot, t *model.Task) *model.Task {
	n := s.newest
	if n != nil && n.ID.Num > t.ID.Num && p.inForce(n) {
		return n
	}
	return t
}

// again reports whether the policy gives t a successor in its slot.
func (p *planner) again(s *slot, t *model.Task) bool { return p.policy.again(p.account(s, t)) }

// inForce reports whether a task is one of the template in force, and was made since it is. Who brings a template back later gives
// it its attempts anew.
func (p *planner) inForce(t *model.Task) bool {
	return t.Template == p.svc.Template && t.CreatedAt >= p.svc.InForceAt
}

// givenUp reports whether the policy allows no more attempts with the template in force, while an older task still
// runs in the slot, or the one that failed was held back and waits for its delay: no rollout tries again. One that did
// not end by itself but lost its node is tried again, unless attempts are counted.
func (p *planner) givenUp(s *slot) bool {
	n, last := s.newest, s.live[len(s.live)-1]
	if n == nil || n.Desired <= model.StateRunning && !n.State.Terminal() || !p.inForce(n) || p.account(s, last) != n {
		return false
	}
	switch n.State {
	case model.StateComplete, model.StateFailed, model.StateRejected:
		return !p.policy.again(n)
	}
	return p.policy.exhausted(n)
}

// restartAt is when the successor may start: after the delay, counted from the failure; at once
// when the task was moved by a drain or a changed node.
func (p *planner) restartAt(t *model.Task) model.Time {
	if t.Node != 0 {
		v := p.node(t.Node)
		if v.node != nil && v.drained {
			return p.now
		}
		if !t.State.Terminal() {
			if v.node != nil && !v.down {
				return p.now
			}
			return p.now + p.policy.delay
		}
	}
	return p.afterEnd(t)
}

// afterEnd is the restart delay counted from a task's end; one that failed while it was held back
// had its own delay to wait for.
func (p *planner) afterEnd(t *model.Task) model.Time {
	return max(t.StatusAt, t.StartAt) + p.policy.delay
}

// handOver stops the other live tasks of a slot when the one of the current template runs. With
// stop-first they are stopped in any case.
func (p *planner) handOver(s *slot, good []*model.Task) bool {
	if len(good) < 2 {
		return false
	}
	var heir *model.Task
	for _, t := range good {
		if p.dirty(t) {
			continue
		}
		if heir == nil || heir.State != model.StateRunning && (t.State == model.StateRunning || t.State > heir.State) {
			heir = t
		}
	}
	if heir == nil {
		return p.dropOvertaken(good)
	}
	if heir.State != model.StateRunning {
		if p.config().order == swarm.UpdateOrderStartFirst {
			return false
		}
		if i := slices.IndexFunc(good, func(t *model.Task) bool { return p.dirty(t) && t.State == model.StateRunning }); i >= 0 {
			return p.keepOld(good[i], heir)
		}
	}
	var changes []model.Change
	for _, t := range good {
		if t != heir {
			changes = append(changes, desire(t, model.StateShutdown))
		}
	}
	p.out.add(changes...)
	p.out.while(heir)
	return true
}

// keepOld lets an old task run on that need not leave its node any more, or that runs beside a new one from the time when the
// service started first: to stop it for one that does not run yet is the rollout's decision, a few slots at a time. The
// new one goes, unless it is coming up: then it is waited for.
func (p *planner) keepOld(old, heir *model.Task) bool {
	if heir.Desired == model.StateRunning && heir.State >= model.StateAssigned {
		return false
	}
	p.out.add(desire(heir, model.StateShutdown))
	p.out.while(old)
	return true
}

// dropOvertaken leaves one task in a slot where all are of revisions that were overtaken: the newest that runs. One that is held back
// would make two of them, and one that does not run yet costs nothing; the rollout replaces the slot anyway.
func (p *planner) dropOvertaken(good []*model.Task) bool {
	var runs *model.Task
	for _, t := range good {
		if t.Desired == model.StateRunning && (runs == nil || t.State == model.StateRunning || runs.State != model.StateRunning) {
			runs = t
		}
	}
	if runs == nil {
		return false
	}
	var changes []model.Change
	for _, t := range good {
		if t.Desired < model.StateRunning || t != runs && runs.State == model.StateRunning {
			changes = append(changes, desire(t, model.StateShutdown))
		}
	}
	if len(changes) == 0 {
		return false
	}
	p.out.add(changes...)
	p.out.while(runs)
	return true
}

// release lets a held task run when its delay is over and its predecessor has stopped.
func (p *planner) release(s *slot, t *model.Task) {
	if t.Desired >= model.StateRunning || p.waits != "" {
		return
	}
	if p.now < t.StartAt {
		p.wake(t.StartAt)
		return
	}
	if p.stopping(s, t.ID.Num) {
		// StartAt, not CreatedAt: in a working copy a new task is as old as the last batch.
		if until := t.StartAt + p.stopLimit(s); p.now < until {
			p.wake(until)
			return
		}
	}
	p.out.add(desire(t, model.StateRunning))
	s.busy = true
}

// stopLimit is how long to wait for the slot's stopping tasks.
func (p *planner) stopLimit(s *slot) model.Time {
	limit := stopTimeout
	for _, t := range s.tasks {
		if t.Desired <= model.StateRunning || t.State.Terminal() {
			continue
		}
		tpl := p.snap.Template(t.Template)
		if tpl == nil || tpl.Task.Typed.ContainerSpec == nil || tpl.Task.Typed.ContainerSpec.StopGracePeriod == nil {
			continue
		}
		// Killing and reporting take a moment of their own.
		limit = max(limit, model.Time(*tpl.Task.Typed.ContainerSpec.StopGracePeriod+10*time.Second))
	}
	return limit
}

// dirty reports whether the rollout has to replace a task.
func (p *planner) dirty(t *model.Task) bool {
	return t.Template != p.svc.Template || len(p.constraints) > 0 && t.Node != 0 && p.node(t.Node).misplaced(p.svc) || p.crowd[t.ID]
}
