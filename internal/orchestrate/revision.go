package orchestrate

import (
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

const updateInProgress = "update in progress"

// FirstStatus is the rollout that a new revision starts with (NewRevision.Update). A change of the
// template starts one, and so does any change while one is under way or paused: as Docker,
// the next update is what resumes a paused one. old is nil for a new service. The result is
// nil when the tasks stay.
func FirstStatus(old *model.Service, newTemplate bool, at model.Time) *model.UpdateStatus {
	if old == nil || !newTemplate && !inProgress(old.Update) && !paused(old.Update) {
		return nil
	}
	return &model.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: at, Message: updateInProgress}
}

// ManualRollback is the message of a rollback that a user asked for.
const ManualRollback = "manually requested rollback"

// Rollback is the revision that takes a service back to the last spec with another template, or to
// the last spec at all when there is none; nil when the service has only one. It starts the
// rollback with the message. at is cluster time.
func Rollback(svc *model.Service, message string, at model.Time) *model.NewRevision {
	to := svc.Previous()
	for i := len(svc.Revisions) - 1; i >= 0; i-- {
		if svc.Revisions[i].Template != svc.Template {
			to = svc.Revisions[i]
			break
		}
	}
	if to == nil {
		return nil
	}
	return &model.NewRevision{
		Service: svc.ID, Spec: to.Spec, TemplateID: to.Template, Ports: keepPorts(svc, to), JobIteration: svc.JobIteration,
		Update: &model.UpdateStatus{State: swarm.UpdateStateRollbackStarted, StartedAt: at, Message: message},
	}
}

// keepPorts keeps the allocated ports when the specs publish the same; otherwise allocate gives new
// ones.
func keepPorts(svc *model.Service, to *model.Revision) []swarm.PortConfig {
	a, b := svc.Spec().EndpointSpec, to.Spec.Typed.EndpointSpec
	if a == nil || b == nil || len(a.Ports) != len(b.Ports) {
		return nil
	}
	for i := range a.Ports {
		if a.Ports[i] != b.Ports[i] {
			return nil
		}
	}
	return svc.Ports
}
