package orchestrate

import (
	"cmp"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Ended are the last tasks of the slots of a service that its restart policy starts no other one after, made from the template in
// force: those that completed, and those that failed or were rejected. A node that has gone keeps none.
func Ended(snap *state.Snapshot, id model.ServiceID) (done, failed []*model.Task) {
	svc := snap.Service(id)
	if svc == nil {
		return nil, nil
	}
	newest := map[slotID]*model.Task{}
	for t := range snap.Tasks(id) {
		if t.JobIteration != svc.JobIteration || t.Desired > model.StateShutdown {
			continue
		}
		at := slotID{t.Slot, globalNode(t)}
		if last := newest[at]; last == nil || last.ID.Num < t.ID.Num {
			newest[at] = t
		}
	}
	policy := newRestartPolicy(svc.Spec().TaskTemplate.RestartPolicy)
	for at, t := range newest {
		if t.Template != svc.Template || policy.again(t) || at.node != 0 && snap.Node(at.node) == nil {
			continue
		}
		switch t.State {
		case model.StateComplete:
			done = append(done, t)
		case model.StateFailed, model.StateRejected:
			failed = append(failed, t)
		}
	}
	byNum := func(a, b *model.Task) int { return cmp.Compare(a.ID.Num, b.ID.Num) }
	slices.SortFunc(done, byNum)
	slices.SortFunc(failed, byNum)
	return done, failed
}
