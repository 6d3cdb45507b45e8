package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/state"
)

// stack is the one that some services belong to, and stackLabel how they say so.
const (
	stack      = "stk"
	stackLabel = "com.docker.stack.namespace"
)

// depend lets a service wait for one or two others, for one that does not exist yet, or for nobody any more.
func (u *users) depend(m *member, s *swarm.ServiceSpec) {
	w := u.w
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	scope := ""
	if s.Labels[stackLabel] != "" {
		scope = stack + "_"
	}
	var on []string
	for o := range m.snap.Services() {
		name, same := strings.CutPrefix(o.Name(), scope)
		if same && o.Name() != s.Name && len(on) < 2 && w.chance(.5) {
			on = append(on, name+u.condition(o.JobIteration != 0))
		}
	}
	if w.chance(.1) {
		on = append(on, fmt.Sprintf("svc%d", m.snap.LastService()+2))
	}
	if s.Labels[orchestrate.DependsLabel] = strings.Join(on, ","); len(on) == 0 {
		delete(s.Labels, orchestrate.DependsLabel)
	}
}

func (u *users) condition(job bool) string {
	switch p := u.w.rng.IntN(10); {
	case job && p < 6:
		return "=service_completed_successfully"
	case p < 3:
		return ""
	case p < 5:
		return "=service_started"
	case p < 9:
		return "=service_healthy"
	}
	return "=service_completed_successfully"
}

// label gives a service labels that restart nothing, and keeps those that mean something to others.
func label(s *swarm.ServiceSpec, more map[string]string) {
	labels := maps.Clone(s.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, more)
	s.Labels = labels
}

// gate is the judge's book of what a service waits for.
type gate struct {
	depends  string
	template model.TemplateID
	came     bool // at some moment since they are in force
}

// gates judges, after every entry, that no gate opens and no task is let go before what the service depends on has come,
// and that a gate that is open stays open.
func (j *judge) gates(s *step) {
	for svc := range s.after.Services() {
		text := svc.Spec().Labels[orchestrate.DependsLabel]
		if text == "" {
			delete(j.waiting, svc.ID)
			continue
		}
		g := j.waiting[svc.ID]
		if g == nil || g.depends != text || g.template != svc.Template {
			g = &gate{depends: text, template: svc.Template, came: underway(s.after, svc)}
			// A rollback that opens the gate of the template which it puts in force goes by what it was computed from.
			g.came = g.came || s.base != nil && came(s.base, svc)
			j.waiting[svc.ID] = g
		}
		g.came = g.came || came(s.after, svc) || bringsBack(s.seen(), svc)
		before := s.before.Service(svc.ID)
		if before == nil || before.Opened == svc.Opened {
			continue
		}
		if svc.Opened != svc.Template || !g.came {
			j.w.fail("law: a gate opens when what it waits for has come, and stays open: that of service %d (%s) for template %d, in force is %d", svc.ID, text, svc.Opened, svc.Template)
		}
	}
}

// underway reports whether tasks of a service's template were let go before it depended on anybody.
func underway(s *state.Snapshot, svc *model.Service) bool {
	for t := range s.Tasks(svc.ID) {
		if t.Template == svc.Template && t.JobIteration == svc.JobIteration && wanted(t) {
			return true
		}
	}
	return false
}

// letGo judges a task that is desired running from now on.
func (j *judge) letGo(s *step, t *model.Task) {
	svc := s.after.Service(t.ID.Service)
	if svc != nil && svc.Spec().Labels[orchestrate.DependsLabel] != "" && t.Template == svc.Template && svc.Opened != svc.Template {
		j.w.fail("law: no task starts before what its service depends on has come: %s, which waits for %s", short(t.ID), svc.Spec().Labels[orchestrate.DependsLabel])
	}
}

// bringsBack reports whether a service is rolled back to tasks that ran before: these wait for nobody.
func bringsBack(s *state.Snapshot, svc *model.Service) bool {
	for t := range s.Tasks(svc.ID) {
		if rollingBack(svc.Update) && t.Template == svc.Template && t.RunningSince != 0 {
			return true
		}
	}
	return false
}

// shut reports whether a service's gate is rightly closed in a healed swarm. An open one, or none, is not; one that
// should be open is the second answer.
func (j *judge) shut(s *state.Snapshot, svc *model.Service) (shut bool, why string) {
	text := svc.Spec().Labels[orchestrate.DependsLabel]
	if text == "" || svc.Opened == svc.Template {
		return false, ""
	}
	if bringsBack(s, svc) {
		return false, "its gate is closed, and it is rolled back to what ran before"
	}
	if came(s, svc) {
		return false, "its gate is closed, and what it waits for has come: " + text
	}
	return true, ""
}

// came reports whether everything is there that a service depends on.
func came(s *state.Snapshot, svc *model.Service) bool {
	for _, part := range strings.Split(svc.Spec().Labels[orchestrate.DependsLabel], ",") {
		name, when, _ := strings.Cut(part, "=")
		if svc.Spec().Labels[stackLabel] != "" {
			name = stack + "_" + name
		}
		i := slices.IndexFunc(slices.Collect(s.Services()), func(o *model.Service) bool { return o.Name() == name })
		if i < 0 || !far(s, slices.Collect(s.Services())[i], when) {
			return false
		}
	}
	return true
}

// far reports whether a service is as far as somebody waits for, going by the last task of every slot.
func far(s *state.Snapshot, on *model.Service, when string) bool {
	last, places := map[slotKey]*model.Task{}, map[slotKey]bool{}
	for t := range s.Tasks(on.ID) {
		if n := s.Node(t.Node); t.Slot == 0 && n != nil && n.Spec.Availability == swarm.NodeAvailabilityPause && (t.Template != on.Template || t.State < model.StateAssigned) {
			continue // left out until the node is active again
		}
		if t.Desired <= model.StateRunning {
			places[slotOf(t)] = true
		}
		if t.Template == on.Template && t.JobIteration == on.JobIteration && (t.State == model.StateComplete || t.Desired <= model.StateRunning) {
			last[slotOf(t)], places[slotOf(t)] = t, true
		}
	}
	up, healthy, done := 0, 0, 0
	for _, t := range last {
		if t.State == model.StateComplete {
			done++
		}
		if t.State == model.StateRunning {
			up++
			if t.Health == model.HealthNone || t.Health == model.HealthHealthy {
				healthy++
			}
		}
	}
	want := len(places)
	switch mode := on.Spec().Mode; {
	case mode.Replicated != nil && *mode.Replicated.Replicas == 0:
		return true
	case mode.Replicated != nil:
		want = int(*mode.Replicated.Replicas)
	case mode.ReplicatedJob != nil:
		want = int(*mode.ReplicatedJob.TotalCompletions)
	}
	switch when {
	case "service_healthy":
		return want > 0 && healthy+done >= want
	case "service_completed_successfully":
		return want > 0 && done >= want
	}
	return up+done > 0
}
