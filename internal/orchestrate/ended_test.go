package orchestrate_test

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
)

// What the policy does not start again has ended, well or badly; what it does has not.
func TestEnded(t *testing.T) {
	for _, test := range []struct {
		condition    swarm.RestartPolicyCondition
		state        model.TaskState
		done, failed int
	}{
		{swarm.RestartPolicyConditionNone, model.StateComplete, 1, 0},
		{swarm.RestartPolicyConditionNone, model.StateFailed, 0, 1},
		{swarm.RestartPolicyConditionNone, model.StateRejected, 0, 1},
		{swarm.RestartPolicyConditionOnFailure, model.StateComplete, 1, 0},
		{swarm.RestartPolicyConditionOnFailure, model.StateFailed, 0, 0},
		{swarm.RestartPolicyConditionAny, model.StateComplete, 0, 0},
		{swarm.RestartPolicyConditionNone, model.StateRunning, 0, 0},
	} {
		w := newWorld(t, 1)
		id := w.service(0, func(s *swarm.ServiceSpec) {
			s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: test.condition}
		})
		w.plan()
		w.report(w.live(id)[0], test.state)
		w.plan()
		done, failed := orchestrate.Ended(w.snap, id)
		if len(done) != test.done || len(failed) != test.failed {
			t.Errorf("%s, %s: %d done, %d failed", test.condition, test.state, len(done), len(failed))
		}
	}
	w := newWorld(t, 1)
	if done, failed := orchestrate.Ended(w.snap, 7); done != nil || failed != nil {
		t.Error("a service that is not there has ended")
	}
}
