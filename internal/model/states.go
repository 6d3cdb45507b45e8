package model

import "github.com/moby/moby/api/types/swarm"

// TaskState is how far a task has come. The numbers are swarmkit's, so that an observed
// state compares with < as Docker's does; a task's state never goes back.
type TaskState uint16

const (
	StateNew       TaskState = 0
	StatePending   TaskState = 64
	StateAssigned  TaskState = 192
	StateAccepted  TaskState = 256
	StatePreparing TaskState = 320
	StateReady     TaskState = 384
	StateStarting  TaskState = 448
	StateRunning   TaskState = 512
	StateComplete  TaskState = 576
	StateShutdown  TaskState = 640
	StateFailed    TaskState = 704
	StateRejected  TaskState = 768
	StateRemove    TaskState = 800
	StateOrphaned  TaskState = 832
)

var stateNames = map[TaskState]swarm.TaskState{
	StateNew: swarm.TaskStateNew, StatePending: swarm.TaskStatePending, StateAssigned: swarm.TaskStateAssigned,
	StateAccepted: swarm.TaskStateAccepted, StatePreparing: swarm.TaskStatePreparing, StateReady: swarm.TaskStateReady,
	StateStarting: swarm.TaskStateStarting, StateRunning: swarm.TaskStateRunning, StateComplete: swarm.TaskStateComplete,
	StateShutdown: swarm.TaskStateShutdown, StateFailed: swarm.TaskStateFailed, StateRejected: swarm.TaskStateRejected,
	StateRemove: swarm.TaskStateRemove, StateOrphaned: swarm.TaskStateOrphaned,
}

// String is Docker's name of the state.
func (s TaskState) String() string { return string(stateNames[s]) }

// API is Docker's value for the state.
func (s TaskState) API() swarm.TaskState { return stateNames[s] }

// ParseTaskState reads Docker's name of a state.
func ParseTaskState(name string) (TaskState, bool) {
	for s, n := range stateNames {
		if string(n) == name {
			return s, true
		}
	}
	return 0, false
}

// Terminal reports whether a task in this state will never run again.
func (s TaskState) Terminal() bool { return s > StateRunning }

// Dead reports whether nothing of the task uses its node any more.
func (s TaskState) Dead() bool { return s.Terminal() && s != StateRemove }

// CanMove reports whether a task may go from one observed state to another: forward only, and
// out of a terminal state only to orphaned or remove, which no agent reports.
func CanMove(from, to TaskState) bool {
	if _, ok := stateNames[to]; !ok || to <= from {
		return false
	}
	if from.Terminal() {
		return to == StateOrphaned || to == StateRemove
	}
	return true
}

// Health is what a task's health check says of it. Its values are stored: never renumber.
type Health uint8

const (
	HealthNone      Health = 0 // there is no check
	HealthStarting  Health = 1 // no check has succeeded yet, and failures do not end the task yet
	HealthHealthy   Health = 2
	HealthFailing   Health = 3 // the last checks failed, not yet as often as ends the task: it gets no new traffic
	HealthUnhealthy Health = 4 // the task is being ended because of it
)

// String is Docker's word for a health; it has none for a failing task that it does not end yet.
func (h Health) String() string {
	switch h {
	case HealthStarting:
		return "starting"
	case HealthHealthy:
		return "healthy"
	case HealthFailing:
		return "failing"
	case HealthUnhealthy:
		return "unhealthy"
	}
	return "none"
}

// Serves reports whether a running task of this health may get new traffic.
func (h Health) Serves() bool { return h == HealthNone || h == HealthHealthy }
