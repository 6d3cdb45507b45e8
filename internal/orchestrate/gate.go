package orchestrate

import (
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// DependsLabel is a service's label that holds its tasks back until other services are so far:
// "db=service_healthy,migrate=service_completed_successfully". Within a stack the names are those of the Compose file.
// The gate opens once for each template: what happens to the others later does not stop a service that was let go.
const (
	DependsLabel = "skep.depends_on"

	whenStarted   = "service_started"                // a task of it runs, or has run
	whenHealthy   = "service_healthy"                // all its tasks run, and their health checks succeed
	whenCompleted = "service_completed_successfully" // all its tasks have ended well

	stackLabel = "com.docker.stack.namespace"
	maxDepends = 100
)

// dependency is one condition of a gate.
type dependency struct{ name, when string }

// parseDepends reads a DependsLabel; false when it makes no sense.
func parseDepends(text string) (list []dependency, ok bool) {
	for part := range strings.SplitSeq(text, ",") {
		name, when, _ := strings.Cut(strings.TrimSpace(part), "=")
		if when == "" {
			when = whenStarted
		}
		if name == "" || when != whenStarted && when != whenHealthy && when != whenCompleted || len(list) == maxDepends {
			return nil, false
		}
		list = append(list, dependency{name, when})
	}
	return list, true
}

// ValidDepends reports whether a value of DependsLabel means something.
func ValidDepends(text string) bool {
	_, ok := parseDepends(text)
	return ok
}

// Gated reports whether a service's gate has not opened yet: whatever happens to another service may open it.
func Gated(snap *state.Snapshot, id model.ServiceID) bool {
	svc := snap.Service(id)
	return svc != nil && gated(svc)
}

func gated(svc *model.Service) bool {
	return svc.Spec().Labels[DependsLabel] != "" && svc.Opened != svc.Template
}

// closed returns what a service's tasks wait for, empty when they may start.
func closed(snap *state.Snapshot, svc *model.Service) string {
	deps, _ := parseDepends(svc.Spec().Labels[DependsLabel]) // one that makes no sense holds nobody back
	var waits []string
	for _, d := range deps {
		name := d.name
		if stack := svc.Spec().Labels[stackLabel]; stack != "" {
			name = stack + "_" + name
		}
		on := snap.ServiceByName(name)
		switch {
		case on == nil:
			waits = append(waits, fmt.Sprintf("service %s, which does not exist", name))
		case !reached(snap, on, d.when):
			waits = append(waits, fmt.Sprintf("service %s (%s)", name, d.when))
		}
	}
	if len(waits) == 0 {
		return ""
	}
	return "waits for " + strings.Join(waits, ", ")
}

// reached reports whether a service is as far as a condition asks for. A service that is meant to have no tasks is.
func reached(snap *state.Snapshot, on *model.Service, when string) bool {
	newest, places := map[slotID]*model.Task{}, map[slotID]bool{}
	for t := range snap.Tasks(on.ID) {
		if leftOut(snap, on, t) {
			continue
		}
		if t.Desired <= model.StateRunning {
			places[slotID{t.Slot, globalNode(t)}] = true
		}
		if t.Template == on.Template && t.JobIteration == on.JobIteration && (t.Desired <= model.StateRunning || t.State == model.StateComplete) {
			newest[slotID{t.Slot, globalNode(t)}] = t
			places[slotID{t.Slot, globalNode(t)}] = true
		}
	}
	running, healthy, completed := 0, 0, 0
	for _, t := range newest {
		switch {
		case t.State == model.StateComplete:
			completed++
		case t.State == model.StateRunning:
			running++
			if t.Health.Serves() {
				healthy++
			}
		}
	}
	want := len(places) // of a global service: what there is, tasks that an update has yet to replace too
	switch mode := on.Spec().Mode; {
	case mode.ReplicatedJob != nil:
		want, _ = (&planner{svc: on}).completions()
	case mode.Global == nil && mode.GlobalJob == nil:
		if want = (&planner{svc: on}).replicas(); want == 0 {
			return true
		}
	}
	switch when {
	case whenHealthy:
		return want > 0 && healthy+completed >= want
	case whenCompleted:
		return want > 0 && completed >= want
	}
	return running+completed > 0
}

// leftOut reports whether an update leaves a task of a global service as it is, because its node is paused, or one waits there for
// the node to be active again: nobody knows when.
func leftOut(snap *state.Snapshot, on *model.Service, t *model.Task) bool {
	n := snap.Node(t.Node)
	paused := t.Slot == 0 && n != nil && n.Spec.Availability == swarm.NodeAvailabilityPause
	return paused && (t.Template != on.Template || t.State < model.StateAssigned)
}

// slotID is a slot by its number, or of a global service by its node.
type slotID struct {
	num  uint32
	node model.NodeID
}

func globalNode(t *model.Task) model.NodeID {
	if t.Slot == 0 {
		return t.Node
	}
	return 0
}

// lookAtGate opens the service's gate when what it waits for has come, or when tasks of the template in force were let go
// before it had one: then it holds nobody back any more, and who replaces them must not wait. Nor does a rollback to
// what ran before: what has gone since then may be why.
func (p *planner) lookAtGate() {
	if !gated(p.svc) {
		return
	}
	if !p.wasLetGo() {
		agreed := p.obs.Agreed
		if agreed == nil {
			agreed = p.snap
		}
		p.waits = closed(agreed, p.svc)
	}
	if p.waits == "" {
		p.opened = p.svc.Template
	}
}

func (p *planner) wasLetGo() bool {
	back := rollingBack(p.svc.Update)
	for t := range p.snap.Tasks(p.id) {
		if t.Template != p.svc.Template || t.JobIteration != p.svc.JobIteration {
			continue
		}
		if t.Desired == model.StateRunning && !t.State.Terminal() || back && t.RunningSince != 0 {
			return true
		}
	}
	return false
}
