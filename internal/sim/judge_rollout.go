package sim

import (
	"cmp"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// parallelism judges that a rollout has no more slots under way than it may.
func (j *judge) parallelism(s *step) {
	added := map[model.ServiceID]bool{}
	for _, t := range s.put {
		svc := s.after.Service(t.ID.Service)
		if svc == nil || !inProgress(svc.Update) || svc.JobIteration != 0 || t.Template != svc.Template {
			continue
		}
		replaces := false
		for o := range s.before.Tasks(t.ID.Service) {
			if slotOf(o) != slotOf(t) {
				continue
			}
			if o.Template == t.Template && (o.CreatedAt >= svc.Update.StartedAt || o.Desired <= model.StateRunning) {
				replaces = false // the rollout was here; this is a restart
				break
			}
			if now := s.after.Task(o.ID); now == nil || now.Desired >= model.StateRemove {
				continue // scaled away, and back by a rollback in the same plan
			}
			if o.Template != t.Template && o.Desired <= model.StateRunning && !o.State.Terminal() && stays(s.before, o) {
				replaces = true
			}
		}
		if replaces {
			j.rolled[t.ID] = true
			added[svc.ID] = true
		}
	}
	for _, id := range sortedKeys(added) {
		svc := s.after.Service(id)
		allowed, delay := pace(svc)
		flying := map[slotKey]bool{}
		for t := range s.after.Tasks(id) {
			if j.rolled[t.ID] && t.Template == svc.Template && t.CreatedAt >= svc.Update.StartedAt && t.Desired < model.StateRemove && underWay(s, t, delay) {
				flying[slotOf(t)] = true
			}
		}
		if n := len(flying); allowed > 0 && n > allowed {
			j.w.fail("law: an update never has more slots under way than its parallelism: service %d has %d, and may have %d", id, n, allowed)
		}
	}
}

// pace is how many slots a service's rollout may have under way at once, 0 for all, and how long a slot rests.
func pace(svc *model.Service) (slots int, delay model.Time) {
	c := svc.Spec().UpdateConfig
	if rollingBack(svc.Update) {
		c = svc.Spec().RollbackConfig
	}
	if c == nil {
		return 1, 0
	}
	return int(c.Parallelism), model.Time(c.Delay)
}

func inProgress(u *model.UpdateStatus) bool {
	return u != nil && (u.State == swarm.UpdateStateUpdating || u.State == swarm.UpdateStateRollbackStarted)
}

func rollingBack(u *model.UpdateStatus) bool {
	return u != nil && u.State == swarm.UpdateStateRollbackStarted
}

func paused(u *model.UpdateStatus) bool {
	return u != nil && (u.State == swarm.UpdateStatePaused || u.State == swarm.UpdateStateRollbackPaused)
}

// stays reports whether a task could stay where it is, were it not for the rollout.
func stays(s *state.Snapshot, t *model.Task) bool {
	if t.Node == 0 {
		return true
	}
	n := s.Node(t.Node)
	svc := s.Service(t.ID.Service)
	return n != nil && svc != nil && n.State == swarm.NodeStateReady && n.Spec.Availability != swarm.NodeAvailabilityDrain && matches(s, svc, n)
}

// underWay reports whether a slot that a rollout gave a task is under way: the task has not come up, or not long enough ago.
// Where it was taken away before it took over, who follows it counts in its place. Where nobody does, it is under way while
// its node can still tell of its end, unless the slot has what it had. One that never found a node and is wanted no more
// is nowhere. What came up, or came back, after the planner looked is judged by what it saw.
func underWay(s *step, t *model.Task, delay model.Time) bool {
	old := false
	for o := range s.after.Tasks(t.ID.Service) {
		if slotOf(o) == slotOf(t) && o.Template != t.Template && o.Desired <= model.StateRunning && !o.State.Terminal() {
			old = true
		}
	}
	for o := range s.after.Tasks(t.ID.Service) { // by age
		if slotOf(o) == slotOf(t) && o.ID.Num > t.ID.Num && o.Template == t.Template && o.RunningSince != 0 && s.now >= o.RunningSince+delay {
			return false // a follower has stood its time, whatever the one before it reported when its node was back
		}
		if slotOf(o) == slotOf(t) && o.ID.Num > t.ID.Num && o.Template == t.Template && !s.idle(o) && (s.idle(t) || s.overtaken(t, o, old)) {
			t = o
		}
	}
	if s.idle(t) {
		return false
	}
	if n := s.seen().Node(t.Node); s.overtaken(t, nil, old) && (old || n == nil || n.State == swarm.NodeStateDown) {
		return false
	}
	done := t.RunningSince
	if done == 0 && t.State.Terminal() {
		done = t.StatusAt
	}
	return done == 0 || t.State != model.StateOrphaned && s.now < done+delay
}

// seen is the state that a plan was computed from, where that is known.
func (s *step) seen() *state.Snapshot { return cmp.Or(s.base, s.before) }

// overtaken reports whether a task was taken away before it took over. One that ended by itself was not; one that had a follower by
// then did not.
func (s *step) overtaken(t, follower *model.Task, old bool) bool {
	up := t.RunningSince != 0
	if was := s.seen().Task(t.ID); was != nil {
		up = was.RunningSince != 0
	}
	ended := endedByItself(t) && (follower == nil || follower.CreatedAt >= t.StatusAt)
	return t.Desired > model.StateRunning && !ended && (!up || old)
}

func endedByItself(t *model.Task) bool {
	return t.State == model.StateComplete || t.State == model.StateFailed || t.State == model.StateRejected
}

// nowhere reports whether a task never found a node and is wanted no more.
func nowhere(t *model.Task) bool {
	return t.State < model.StateAssigned && t.Desired > model.StateRunning
}

// idle reports whether a task is nowhere, or is not going to be anywhere as long as its node is paused.
func (s *step) idle(t *model.Task) bool {
	n := s.seen().Node(t.Node)
	return nowhere(t) || t.State < model.StateAssigned && t.Slot == 0 && n != nil && n.Spec.Availability == swarm.NodeAvailabilityPause
}

// takenDown judges that a plan does not stop more tasks at once that run and could stay than the rollout may have under way,
// whatever it stops them for, unless another one runs in their slot.
func (j *judge) takenDown(s *step, id model.ServiceID) {
	svc := s.after.Service(id)
	if s.base == nil || svc == nil || svc.JobIteration != 0 || !(inProgress(svc.Update) || paused(svc.Update)) {
		return
	}
	allowed, _ := pace(svc)
	if paused(svc.Update) {
		allowed = 1 // more than that is nobody's will
	}
	up, down := map[slotKey]bool{}, map[slotKey]bool{}
	for t := range s.after.Tasks(id) {
		was := s.base.Task(t.ID)
		switch {
		case was == nil || was.State != model.StateRunning || t.Desired >= model.StateRemove:
		case t.Desired == model.StateRunning:
			up[slotOf(t)] = true
		case was.Desired == model.StateRunning && t.Template != svc.Template && stays(s.base, was):
			down[slotOf(t)] = true
		}
	}
	n := 0
	for k := range down {
		if !up[k] {
			n++
		}
	}
	if allowed > 0 && n > allowed {
		j.w.fail("law: a plan stops no more running tasks than the parallelism: service %d loses %d at once, and may have %d under way", id, n, allowed)
	}
}
