package orchestrate

import (
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// UpdateInProgress is the message of an update.
const UpdateInProgress = "update in progress"

// FirstStatus is the rollout that a new revision starts with (NewRevision.Update). A change of the
// template starts one, and so does any change while one is under way or paused: as Docker,
// the next update is what resumes a paused one. old is nil for a new service. The result is
// nil when the tasks stay.
func FirstStatus(old *model.Service, rev *model.NewRevision, at model.Time) *model.UpdateStatus {
	if old == nil || templateOf(rev) == old.Template && !GoesOn(old, rev) {
		return nil
	}
	return Update(old, rev, at)
}

// GoesOn reports whether a revision leads to the same tasks as a rollout that is under way or paused.
func GoesOn(old *model.Service, rev *model.NewRevision) bool {
	return templateOf(rev) == old.Template && (inProgress(old.Update) || paused(old.Update))
}

// Update is the status of the rollout of a revision that a user did not ask for as a rollback. While a rollback is under way, or
// paused, to the same tasks it is one nevertheless: a scale or a label does not turn it round. at is cluster time.
func Update(old *model.Service, rev *model.NewRevision, at model.Time) *model.UpdateStatus {
	if GoesOn(old, rev) {
		switch was := old.Update; was.State {
		case swarm.UpdateStateRollbackStarted:
			return Begin(old, rev, was.State, was.Message, at)
		case swarm.UpdateStateRollbackPaused:
			return Begin(old, rev, swarm.UpdateStateRollbackStarted, rollbackGoesOn, at)
		}
	}
	return Begin(old, rev, swarm.UpdateStateUpdating, UpdateInProgress, at)
}

// Begin is the status with which the rollout of a revision begins. One that is under way, or paused, and leads to the
// same tasks goes on: would it begin anew with every change of a label or a constraint, slots that it has under way
// would count no more, and others be taken down beside them. at is cluster time.
func Begin(old *model.Service, rev *model.NewRevision, state swarm.UpdateState, message string, at model.Time) *model.UpdateStatus {
	u := &model.UpdateStatus{State: state, StartedAt: at, Message: message}
	was := old.Update
	if !GoesOn(old, rev) {
		return u
	}
	u.StartedAt, u.LastStep, u.ResumedAt, u.Late = was.StartedAt, was.LastStep, was.ResumedAt, was.Late
	if was.State != state {
		u.ResumedAt = at // failures until now are forgiven
	}
	return u
}

func templateOf(rev *model.NewRevision) model.TemplateID {
	if rev.Template != nil {
		return rev.Template.ID
	}
	return rev.TemplateID
}

// sameTasks reports whether a spec with a template asks for the tasks of a revision, on the same nodes.
func sameTasks(r *model.Revision, template model.TemplateID, spec *swarm.ServiceSpec) bool {
	old := r.Spec.Typed
	return r.Template == template && maxPerNode(old) == maxPerNode(spec) && slices.Equal(constraintsOf(old), constraintsOf(spec))
}

func constraintsOf(spec *swarm.ServiceSpec) []string {
	if pl := spec.TaskTemplate.Placement; pl != nil {
		return pl.Constraints
	}
	return nil
}

// ManualRollback is the message of a rollback that a user asked for.
const ManualRollback = "manually requested rollback"

// Texts of what a user did to a rollout.
const (
	updatePaused   = "update paused on request"
	rollbackPaused = "rollback paused on request"
	rollbackGoesOn = "rollback in progress"
	updateCanceled = "update canceled on request"
)

// Rollback is the revision that takes a service back to the last spec with another template, other constraints or
// another limit for a node, or to the last spec at all when there is none; nil when the service has only one. It starts the
// rollback with the message. at is cluster time.
func Rollback(svc *model.Service, message string, at model.Time) *model.NewRevision {
	to := svc.Previous()
	for i := len(svc.Revisions) - 1; i >= 0; i-- {
		if !sameTasks(svc.Revisions[i], svc.Template, svc.Spec()) {
			to = svc.Revisions[i]
			break
		}
	}
	if to == nil {
		return nil
	}
	return backTo(svc, to, message, at)
}

// RollbackTo is the revision that takes a service back to one of its history by its number. The error is
// NotFound when the history does not reach back so far, FailedPrecondition when that revision is in
// force.
func RollbackTo(svc *model.Service, num uint64, message string, at model.Time) (*model.NewRevision, error) {
	if svc.Current().Num == num {
		return nil, model.Errorf(model.FailedPrecondition, "revision %d of service %s is in force already", num, svc.Name())
	}
	for _, r := range svc.Revisions {
		if r.Num == num {
			return backTo(svc, r, message, at), nil
		}
	}
	return nil, model.NotFoundf("service %s has no revision %d: the history holds %d to %d", svc.Name(), num, svc.Revisions[0].Num, svc.Current().Num)
}

func backTo(svc *model.Service, to *model.Revision, message string, at model.Time) *model.NewRevision {
	rev := &model.NewRevision{Service: svc.ID, Spec: to.Spec, TemplateID: to.Template, Ports: keepPorts(svc, to), RegistryAuth: to.RegistryAuth}
	if isJob(svc) {
		rev.JobIteration = svc.JobIteration + 1
		return rev
	}
	rev.Update = Begin(svc, rev, swarm.UpdateStateRollbackStarted, message, at)
	return rev
}

// Pause holds a rollout where it is: what is under way comes up, nothing more is replaced. The error is
// FailedPrecondition when none is in progress.
func Pause(svc *model.Service) (model.Change, error) {
	if !inProgress(svc.Update) {
		return model.Change{}, model.Errorf(model.FailedPrecondition, "service %s has no update in progress", svc.Name())
	}
	u := *svc.Update
	if rollingBack(svc.Update) {
		u.State, u.Message = swarm.UpdateStateRollbackPaused, rollbackPaused
	} else {
		u.State, u.Message = swarm.UpdateStatePaused, updatePaused
	}
	return setUpdate(svc, u), nil
}

// Resume lets a paused rollout go on, whoever or whatever paused it. Failures until now are forgiven. at
// is cluster time. The error is FailedPrecondition when none is paused.
func Resume(svc *model.Service, at model.Time) (model.Change, error) {
	if !paused(svc.Update) {
		return model.Change{}, model.Errorf(model.FailedPrecondition, "service %s has no paused update", svc.Name())
	}
	u := *svc.Update
	u.ResumedAt = at
	if u.State == swarm.UpdateStateRollbackPaused {
		u.State, u.Message = swarm.UpdateStateRollbackStarted, rollbackGoesOn
	} else {
		u.State, u.Message = swarm.UpdateStateUpdating, UpdateInProgress
	}
	return setUpdate(svc, u), nil
}

// Cancel gives up an update, in progress or paused: the service goes back to the spec before it, in the
// way of a rollback. at is cluster time. The error is FailedPrecondition when there is none.
func Cancel(svc *model.Service, at model.Time) (*model.NewRevision, error) {
	u := svc.Update
	if u == nil || u.State != swarm.UpdateStateUpdating && u.State != swarm.UpdateStatePaused {
		return nil, model.Errorf(model.FailedPrecondition, "service %s has no update to cancel", svc.Name())
	}
	rev := Rollback(svc, updateCanceled, at)
	if rev == nil {
		return nil, model.Errorf(model.FailedPrecondition, "service %s has no revision to go back to", svc.Name())
	}
	return rev, nil
}

func setUpdate(svc *model.Service, u model.UpdateStatus) model.Change {
	return model.Change{SetUpdate: &model.UpdateSet{Service: svc.ID, Update: &u}}
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
