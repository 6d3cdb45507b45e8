package sim

import (
	"cmp"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/state"
)

// slotKey is a slot of one service: a number, or a node of a global one.
type slotKey struct {
	num  uint32
	node model.NodeID
}

func slotOf(t *model.Task) slotKey {
	if t.Slot != 0 {
		return slotKey{num: t.Slot}
	}
	return slotKey{node: t.Node}
}

// wanted reports whether a task is meant to run and may do so.
func wanted(t *model.Task) bool { return t.Desired == model.StateRunning && !t.State.Terminal() }

func countWanted(s *state.Snapshot, id model.ServiceID) map[slotKey]int {
	n := map[slotKey]int{}
	for t := range s.Tasks(id) {
		if wanted(t) {
			n[slotOf(t)]++
		}
	}
	return n
}

// slots judges that a slot has one task that is desired running, two while it starts first, and that a
// successor waits for its predecessor.
func (j *judge) slots(s *step, id model.ServiceID) {
	svc := s.after.Service(id)
	if svc == nil {
		return
	}
	allowed := 1
	for _, c := range []*swarm.UpdateConfig{svc.Spec().UpdateConfig, svc.Spec().RollbackConfig} {
		if c != nil && c.Order == swarm.UpdateOrderStartFirst {
			allowed = 2
		}
	}
	if svc.Spec().Labels[orchestrate.DrainLabel] == "start-first" {
		allowed = 2
	}
	before, after := countWanted(s.before, id), countWanted(s.after, id)
	for k, n := range after {
		if n > allowed && n > before[k] {
			j.w.fail("law: a slot has at most %d task that is desired running: slot %d (node %d) of service %d has %d", allowed, k.num, k.node, id, n)
			return
		}
	}
	for t := range s.after.Tasks(id) {
		if b := s.before.Task(t.ID); wanted(t) && b != nil && b.Desired < model.StateRunning {
			j.succession(s, t)
		}
	}
}

// succession judges that a held task is let go only when what was in its slot has stopped.
func (j *judge) succession(s *step, t *model.Task) {
	limit := model.Time(time.Minute)
	var busy *model.Task
	for o := range s.before.Tasks(t.ID.Service) {
		if o.ID.Num >= t.ID.Num || slotOf(o) != slotOf(t) || o.State.Terminal() || o.State < model.StateAssigned {
			continue
		}
		if a := s.after.Task(o.ID); a == nil || a.Desired <= model.StateRunning || a.State.Terminal() {
			continue
		}
		if o.Desired <= model.StateRunning && startsFirst(s.after.Service(t.ID.Service)) {
			continue // the one that runs was to stay until the held one runs; there is no room, so it goes now
		}
		if tpl := s.before.Template(o.Template); tpl != nil && tpl.Task.Typed.ContainerSpec.StopGracePeriod != nil {
			limit = max(limit, model.Time(*tpl.Task.Typed.ContainerSpec.StopGracePeriod+10*time.Second))
		}
		if n := s.before.Node(o.Node); n != nil && n.State != swarm.NodeStateDown {
			busy = o
		}
	}
	if s.now < t.StartAt {
		j.w.fail("law: a held task waits for its delay: %s was let go %s too early", short(t.ID), time.Duration(t.StartAt-s.now))
	}
	if busy != nil && s.now < t.StartAt+limit {
		j.w.fail("law: a successor runs when its predecessor has stopped: %s was let go while %s is %s on node %d", short(t.ID), short(busy.ID), busy.State, busy.Node)
	}
}

// startsFirst reports whether a task that has to leave its node stays until its successor runs.
func startsFirst(svc *model.Service) bool {
	spec := svc.Spec()
	if drain := spec.Labels["skep.drain"]; drain != "" {
		return drain == "start-first"
	}
	return spec.UpdateConfig != nil && spec.UpdateConfig.Order == swarm.UpdateOrderStartFirst
}

// attempts judges that a slot is not restarted more often than its policy allows.
func (j *judge) attempts(s *step) {
	for _, t := range s.put {
		svc := s.after.Service(t.ID.Service)
		if svc == nil {
			continue
		}
		var prev *model.Task
		for o := range s.after.Tasks(t.ID.Service) {
			if o.ID.Num < t.ID.Num && slotOf(o) == slotOf(t) && o.Desired < model.StateRemove {
				prev = o
			}
		}
		if prev == nil || prev.Template != t.Template || prev.JobIteration != t.JobIteration || prev.CreatedAt < inForce(svc) {
			continue
		}
		chain := append([]model.Time(nil), j.chain[prev.ID]...)
		if relocated(s, svc, prev) {
			j.chain[t.ID] = chain
			continue
		}
		// A restart counts from when it was decided, however long its batch was under way.
		chain = append(chain, s.batch.Time)
		j.chain[t.ID] = chain
		p := svc.Spec().TaskTemplate.RestartPolicy
		if p == nil || p.MaxAttempts == nil || *p.MaxAttempts == 0 {
			continue
		}
		counted := len(chain)
		if p.Window != nil && *p.Window > 0 {
			counted = 1
			for _, at := range chain[:len(chain)-1] {
				if at > prev.StatusAt-model.Time(*p.Window) {
					counted++
				}
			}
		}
		if counted > int(*p.MaxAttempts) {
			j.w.fail("law: max attempts is never exceeded: %s is restart %d in its slot, the policy allows %d", short(t.ID), counted, *p.MaxAttempts)
		}
	}
}

// relocated reports whether a rollout took a task away because it does not run where the spec, which is newer than what is
// known of the node, wants it. That is no restart, and forgives none.
func relocated(s *step, svc *model.Service, t *model.Task) bool {
	was, n := s.before.Task(t.ID), s.before.Node(t.Node)
	return was != nil && !was.State.Terminal() && n != nil && inProgress(svc.Update) && !matches(s.after, svc, n) &&
		n.State == swarm.NodeStateReady && n.Spec.Availability == swarm.NodeAvailabilityActive && max(n.SpecVersion, n.DescVersion) <= svc.SpecVersion
}

// inForce is since when a service's template is in force: who brings an old one back gives it its attempts anew.
func inForce(svc *model.Service) model.Time {
	since := svc.Current().At
	for i := len(svc.Revisions) - 2; i >= 0 && svc.Revisions[i].Template == svc.Template; i-- {
		since = svc.Revisions[i].At
	}
	return since
}

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
		c := svc.Spec().UpdateConfig
		if svc.Update.State == swarm.UpdateStateRollbackStarted {
			c = svc.Spec().RollbackConfig
		}
		allowed, delay := 1, model.Time(0)
		if c != nil {
			allowed, delay = int(c.Parallelism), model.Time(c.Delay)
		}
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

func inProgress(u *model.UpdateStatus) bool {
	return u != nil && (u.State == swarm.UpdateStateUpdating || u.State == swarm.UpdateStateRollbackStarted)
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
		if slotOf(o) == slotOf(t) && o.ID.Num > t.ID.Num && o.Template == t.Template && !nowhere(o) && (nowhere(t) || s.overtaken(t, old)) {
			t = o
		}
	}
	if nowhere(t) {
		return false
	}
	if n := s.seen().Node(t.Node); s.overtaken(t, old) && (old || n == nil || n.State == swarm.NodeStateDown) {
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

// overtaken reports whether a task was taken away before it took over, and did not end by itself.
func (s *step) overtaken(t *model.Task, old bool) bool {
	ended := t.State == model.StateComplete || t.State == model.StateFailed || t.State == model.StateRejected
	up := t.RunningSince != 0
	if was := s.seen().Task(t.ID); was != nil {
		up = was.RunningSince != 0
	}
	return t.Desired > model.StateRunning && !ended && (!up || old)
}

// nowhere reports whether a task never found a node and is wanted no more.
func nowhere(t *model.Task) bool {
	return t.State < model.StateAssigned && t.Desired > model.StateRunning
}
