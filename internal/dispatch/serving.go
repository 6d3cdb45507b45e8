package dispatch

import (
	"iter"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// isBackend is the rule for who gets new traffic: the task runs, shall run, and its health check, if it has one, succeeds.
func isBackend(t *model.Task) bool { return canServe(t) && t.Health.Serves() }

// canServe is isBackend without regard to health.
func canServe(t *model.Task) bool {
	return t != nil && t.State == model.StateRunning && t.Desired == model.StateRunning
}

// serving lists the tasks of a service that get new traffic. When the checks of all fail at once, which is more often a database
// that all of them ask than all of them broken, all get it: a slow answer is better than none.
func serving(snap *state.Snapshot, id model.ServiceID) iter.Seq[*model.Task] {
	rule := canServe
	for t := range snap.Tasks(id) {
		if isBackend(t) {
			rule = isBackend
			break
		}
	}
	return func(yield func(*model.Task) bool) {
		for t := range snap.Tasks(id) {
			if rule(t) && !yield(t) {
				return
			}
		}
	}
}
