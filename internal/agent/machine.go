package agent

import (
	"context"

	"github.com/skep-swarm/skep/internal/model"
)

// Status, Actions and Step are the task machine for one who drives it himself, a step at a time and
// without an agent around it: the simulator.
type (
	Status  = status
	Actions = actions
)

// Step takes a task one step further, as an agent's own tasks do; see step. A cancelled ctx makes a failed action a
// step that has to be repeated. ErrPark says that nothing is to do until the desired state changes.
func Step(ctx context.Context, st Status, desired model.TaskState, prepared bool, do Actions) (Status, error) {
	return step(ctx, st, desired, prepared, do)
}

// ErrPark is what Step returns when a task has to wait for another desired state.
var ErrPark = errPark
