package sim

import (
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
		if relocated(s, svc, prev) || returned(svc, prev) || j.dropped[prev.ID] {
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

// returned reports whether a task of a global service was taken away with its node: that the node is back is no restart.
func returned(svc *model.Service, t *model.Task) bool {
	return svc.Spec().Mode.Global != nil && !endedByItself(t)
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
