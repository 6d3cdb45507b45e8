package sim

import (
	"fmt"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// await looks at the healed swarm every few seconds until it is what its services say, and then for
// a while longer, in which nothing may happen.
func (j *judge) await(deadline int64) {
	why := j.unsettled()
	switch {
	case why == "":
		j.quiet()
	case j.w.now > deadline:
		j.w.fail("law: a healed swarm converges: %s", why)
	default:
		j.w.after(senderNemesis, 2*second, func() { j.await(deadline) })
	}
}

// quiet judges that a converged swarm plans nothing. Failures are remembered for five minutes and then
// forgotten, so the judge waits that long before it counts.
func (j *judge) quiet() {
	w := j.w
	w.note("the swarm has converged", 0, 0, 0)
	w.after(senderNemesis, 7*minute, func() {
		passes, batches := j.passes, j.batches
		w.after(senderNemesis, 2*minute, func() {
			if n := j.batches - batches; n > 0 {
				w.fail("law: a converged swarm plans nothing: %d batches in two minutes", n)
			}
			if n := j.passes - passes; n > 10 {
				w.fail("law: a converged swarm plans nothing: %d passes in two minutes", n)
			}
			if why := j.unsettled(); why != "" {
				w.fail("law: a converged swarm stays so: %s", why)
			}
			for _, m := range w.members {
				if m.snap.Index() != w.log.last() {
					w.fail("law: replicas catch up: manager %d is at index %d of %d", m.id, m.snap.Index(), w.log.last())
					continue
				}
				j.compare(m)
			}
			w.over = true
		})
	})
}

// unsettled is what keeps the swarm from being as its services say; empty for nothing.
func (j *judge) unsettled() string {
	s := j.w.log.truth
	if j.w.log.leader == nil {
		return "there is no leader"
	}
	for n := range s.Nodes() {
		want := swarm.NodeStateReady
		if j.lost(n.ID) {
			want = swarm.NodeStateDown
		}
		if n.State != want && !(j.lost(n.ID) && n.State == swarm.NodeStateUnknown) { // that died before anybody heard of it
			return fmt.Sprintf("node %d is %s", n.ID, n.State)
		}
	}
	for svc := range s.Services() {
		if why := j.service(s, svc); why != "" {
			return fmt.Sprintf("service %d: %s", svc.ID, why)
		}
	}
	for t := range s.AllTasks() {
		if t.Desired > model.StateRunning && t.State >= model.StateAssigned && !t.State.Terminal() && !j.lost(t.Node) {
			return fmt.Sprintf("%s is desired %s and still %s on node %d", short(t.ID), t.Desired, t.State, t.Node)
		}
		if s.Service(t.ID.Service) == nil && !j.lost(t.Node) {
			return fmt.Sprintf("%s of a service that is gone is still there", short(t.ID))
		}
	}
	return j.containers(s)
}

// lost reports whether a node is dead for good: it tells nothing of its tasks any more.
func (j *judge) lost(id model.NodeID) bool {
	h := j.w.host(id)
	return h != nil && h.lost
}

// containers compares what runs with what the state says.
func (j *judge) containers(s *state.Snapshot) string {
	for _, n := range j.w.nodes {
		if n.lost {
			continue
		}
		for _, id := range sortedTasks(n.tasks) {
			t, known := n.tasks[id], s.Task(id)
			if t.running && (known == nil || known.State != model.StateRunning) {
				return fmt.Sprintf("a container of %s runs on node %d and should not", short(id), n.id)
			}
			if tpl := s.Template(templateOf(known)); t.running && tpl != nil && tpl.Task.Typed.ContainerSpec.Image != t.order.image {
				return fmt.Sprintf("a container of %s runs %s on node %d, its template says %s", short(id), t.order.image, n.id, tpl.Task.Typed.ContainerSpec.Image)
			}
		}
	}
	for t := range s.AllTasks() {
		if t.State != model.StateRunning || t.Desired > model.StateRunning && j.lost(t.Node) {
			continue
		}
		if h := j.w.host(t.Node); h == nil || h.tasks[t.ID] == nil || !h.tasks[t.ID].running {
			return fmt.Sprintf("%s is running by the state, and no container of it runs on node %d", short(t.ID), t.Node)
		} else if is := h.tasks[t.ID].st.Health; t.Health != is {
			return fmt.Sprintf("%s is %s by the state, and %s on node %d", short(t.ID), t.Health, is, t.Node)
		}
	}
	return ""
}

func templateOf(t *model.Task) model.TemplateID {
	if t == nil {
		return 0
	}
	return t.Template
}

func (j *judge) service(s *state.Snapshot, svc *model.Service) string {
	slots, done, old := map[slotKey]bool{}, map[slotKey]bool{}, ""
	shut, why := j.shut(s, svc)
	if why != "" {
		return why
	}
	waits := shut
	for t := range s.Tasks(svc.ID) {
		switch {
		case t.JobIteration == svc.JobIteration && t.State == model.StateComplete:
			done[slotOf(t)] = true
		case t.Desired > model.StateRunning || t.State.Terminal() && t.Desired == model.StateRunning && svc.JobIteration != 0:
		case !available(s, t):
			return fmt.Sprintf("%s is meant to be %s on node %d, which is drained", short(t.ID), t.Desired, t.Node)
		case t.State == model.StatePending && t.Err != "":
			if why := j.waits(s, svc, t); why != "" {
				return why
			}
			waits = true
			slots[slotOf(t)] = true
		case shut && t.Desired == model.StateReady && t.State == model.StateReady:
			slots[slotOf(t)] = true
		case t.Desired < model.StateRunning || t.State != model.StateRunning:
			return fmt.Sprintf("%s is %s and desired %s", short(t.ID), t.State, t.Desired)
		default:
			slots[slotOf(t)] = true
			if t.Template != svc.Template && !paused(svc.Update) && !attempted(s, svc, t) && !keeps(s, svc, t) {
				old = fmt.Sprintf("%s is of template %d, in force is %d", short(t.ID), t.Template, svc.Template)
			}
		}
	}
	if !waits { // without a place for its tasks an update has to wait
		switch {
		case inProgress(svc.Update):
			return "its update is in progress"
		case old != "":
			return old
		}
	}
	live, mode := len(slots), svc.Spec().Mode
	switch {
	case mode.ReplicatedJob != nil:
		if want := int(*mode.ReplicatedJob.TotalCompletions); len(done) != want && !waits {
			return fmt.Sprintf("the job has %d completions of %d", len(done), want)
		}
	case mode.GlobalJob != nil:
		if want, _ := eligible(s, svc); len(done) < want && !waits {
			return fmt.Sprintf("the job has %d completions on %d nodes", len(done), want)
		}
	case mode.Global != nil:
		if least, most := eligible(s, svc); live > most || live < least && !mayFinish(svc) {
			return fmt.Sprintf("tasks on %d nodes of %d to %d", live, least, most)
		}
	default:
		if want := int(*mode.Replicated.Replicas); live != want && !(live < want && mayFinish(svc)) {
			return fmt.Sprintf("tasks in %d slots, wanted are %d", live, want)
		}
	}
	return ""
}

// attempted reports whether the restart policy may have given up what was to replace a task.
func attempted(s *state.Snapshot, svc *model.Service, t *model.Task) bool {
	var heir *model.Task
	for o := range s.Tasks(svc.ID) {
		if slotOf(o) == slotOf(t) && o.ID.Num > t.ID.Num && o.Template == svc.Template {
			heir = o
		}
	}
	if heir == nil || wanted(heir) || !mayFinish(svc) {
		return false
	}
	byItself := heir.State == model.StateFailed || heir.State == model.StateRejected || heir.State == model.StateComplete
	return byItself || svc.Spec().TaskTemplate.RestartPolicy.MaxAttempts != nil
}

// mayFinish reports whether the restart policy may leave a slot without a task.
func mayFinish(svc *model.Service) bool {
	p := svc.Spec().TaskTemplate.RestartPolicy
	return p != nil && (p.Condition == swarm.RestartPolicyConditionNone || p.Condition == swarm.RestartPolicyConditionOnFailure || p.MaxAttempts != nil && *p.MaxAttempts > 0)
}

// eligible is on how many nodes a global service should run, and may. What a node has when it is paused it keeps, whatever
// that is, and it gets nothing new.
func eligible(s *state.Snapshot, svc *model.Service) (least, most int) {
	for node := range s.Nodes() {
		switch {
		case node.Spec.Availability == swarm.NodeAvailabilityPause:
			most++
		case node.State == swarm.NodeStateReady && node.Spec.Availability == swarm.NodeAvailabilityActive && matches(s, svc, node):
			least, most = least+1, most+1
		}
	}
	return least, most
}

// available reports whether a task may be where it is: not on a node that users want to be empty.
func available(s *state.Snapshot, t *model.Task) bool {
	n := s.Node(t.Node)
	return t.Node == 0 || n != nil && n.Spec.Availability != swarm.NodeAvailabilityDrain
}

// keeps reports whether a task of a global service stays as it is because its node is paused.
func keeps(s *state.Snapshot, svc *model.Service, t *model.Task) bool {
	n := s.Node(t.Node)
	return svc.Spec().Mode.Global != nil && n != nil && n.Spec.Availability == swarm.NodeAvailabilityPause
}

// matches reports whether a node satisfies a service's constraints.
func matches(s *state.Snapshot, svc *model.Service, n *model.Node) bool {
	var cs []model.Constraint
	if p := svc.Spec().TaskTemplate.Placement; p != nil {
		cs, _ = model.ParseConstraints(p.Constraints)
	}
	return model.NodeMatches(cs, n, s.Cluster().Namer().NodeID(n.ID))
}
