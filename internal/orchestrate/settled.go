package orchestrate

import (
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Settles reports whether what Plan wants of a service (txns, next) is all that it will want of it: the first tasks of a
// replicated service that has none yet, with no rollout to account for them. When each of them then gets a
// node that is up and matches, planning the service again finds nothing to do, so a large service
// need not be gone through a second time to learn that.
func Settles(snap *state.Snapshot, id model.ServiceID, txns []model.Txn, next model.Time) bool {
	svc := snap.Service(id)
	if svc == nil || svc.Spec().Mode.Replicated == nil || inProgress(svc.Update) || len(txns) == 0 || next != 0 {
		return false
	}
	for i := range txns {
		if len(txns[i].Changes) != 1 || txns[i].Changes[0].PutTasks == nil {
			return false
		}
	}
	first, ok := snap.NextServiceWithTasks(id)
	return !ok || first != id
}
