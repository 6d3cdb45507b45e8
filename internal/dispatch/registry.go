package dispatch

import (
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// withRegistryAuth adds what the node may need to pull the task's image: the credentials of the newest revision that
// makes such tasks. They are not sent with tasks that have a container.
func withRegistryAuth(m *pb.Task, snap *state.Snapshot, t *model.Task) *pb.Task {
	svc := snap.Service(t.ID.Service)
	if svc == nil || t.State >= model.StateRunning || t.Desired > model.StateRunning {
		return m
	}
	for _, rev := range slices.Backward(svc.Revisions) {
		if rev.Template == t.Template && len(rev.RegistryAuth) > 0 {
			m.WithRegistryAuth, m.RegistryAuth = true, rev.RegistryAuth
			return m
		}
	}
	return m
}
