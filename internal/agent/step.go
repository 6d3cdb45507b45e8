package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

// status is what the node knows of a task: what it reports, and what it keeps over a restart.
type status struct {
	State     model.TaskState    `cbor:"1,keyasint"`
	Message   string             `cbor:"2,keyasint,omitempty"`
	Err       string             `cbor:"3,keyasint,omitempty"`
	PID       uint32             `cbor:"4,keyasint,omitempty"`
	ExitCode  int32              `cbor:"5,keyasint,omitempty"`
	HostPorts []swarm.PortConfig `cbor:"6,keyasint,omitempty"`
	Health    model.Health       `cbor:"7,keyasint,omitempty"`
	// Left says that the task is taken out of what clients are led to, for a stop that the managers did not order.
	Left bool `cbor:"8,keyasint,omitempty"`
}

// health is what the managers are told: to them a task that has left is one whose checks begin to fail.
func (s *status) health() model.Health {
	if s.Left && s.Health.Serves() {
		return model.HealthFailing
	}
	return s.Health
}

// actions are what the machine can do to a task. Each may be repeated, after a restart too.
type actions interface {
	// Prepare makes everything but the running process, and returns the ports that were bound on the host.
	Prepare(ctx context.Context) ([]swarm.PortConfig, error)
	// Start starts the process; an error of kind KindCommand carries the exit code of a shell.
	Start(ctx context.Context) (pid int, err error)
	// Healthy returns true when the task may be called running: at once without a health check. It returns false with
	// the exit when the process ended before.
	Healthy(ctx context.Context) (runtime.Exit, bool, error)
	// Wait returns when the process has ended, be it for want of health.
	Wait(ctx context.Context) (runtime.Exit, error)
	// Ended tells how the process ended if it did so by itself.
	Ended(ctx context.Context) (runtime.Exit, bool)
	// Stop ends the process within its grace period.
	Stop(ctx context.Context) error
}

// errPark says that nothing can be done until the task's desired state changes.
var errPark = errors.New("nothing to do until the desired state changes")

// temporary is an error after which the same step is to be tried again.
type temporary struct{ error }

func (t temporary) Unwrap() error { return t.error }

// step takes a task one step further and returns its next status. It holds the whole life of a task; whoever
// calls it does nothing but keep the status and call again. An error other than errPark means that the step is to be
// repeated (the context was cancelled, or the node is in trouble); whatever is wrong with the task itself becomes a status.
func step(ctx context.Context, st status, desired model.TaskState, prepared bool, do actions) (status, error) {
	if st.State.Terminal() {
		return st, errPark
	}
	if desired >= model.StateShutdown {
		return shutdown(ctx, st, do)
	}
	// A node that lost its memory of a task's preparations makes them again, without saying so.
	if !prepared && st.State > model.StatePreparing && st.State < model.StateRunning {
		ports, err := do.Prepare(ctx)
		if err != nil {
			return refused(ctx, st, err)
		}
		st.HostPorts = ports
	}
	switch {
	case st.State < model.StateAccepted:
		return st.to(model.StateAccepted, "accepted"), nil
	case st.State < model.StatePreparing:
		return st.to(model.StatePreparing, "preparing"), nil
	case st.State < model.StateReady:
		ports, err := do.Prepare(ctx)
		if err != nil {
			return refused(ctx, st, err)
		}
		st.HostPorts = ports
		return st.to(model.StateReady, "prepared"), nil
	case st.State < model.StateStarting:
		if desired < model.StateRunning {
			return st, errPark
		}
		return st.to(model.StateStarting, "starting"), nil
	case st.State < model.StateRunning:
		pid, err := do.Start(ctx)
		if err != nil {
			return failedStart(ctx, st, err)
		}
		st.PID = uint32(pid)
		exit, up, err := do.Healthy(ctx)
		switch {
		case errors.Is(err, runtime.ErrNotFound) && ctx.Err() == nil:
			return gone(st), nil
		case err != nil:
			return st, err
		case !up:
			return ended(st, exit), nil
		}
		return st.to(model.StateRunning, "started"), nil
	}
	exit, err := do.Wait(ctx)
	switch {
	case err == nil:
		return ended(st, exit), nil
	case errors.Is(err, runtime.ErrNotFound) && ctx.Err() == nil:
		return gone(st), nil
	}
	return st, err
}

func gone(st status) status {
	st.Err, st.PID = "the container is gone", 0
	return st.to(model.StateFailed, "started")
}

func (st status) to(s model.TaskState, message string) status {
	st.State, st.Message = s, message
	return st
}

// shutdown stops what may run. A task that had ended by itself before says how.
func shutdown(ctx context.Context, st status, do actions) (status, error) {
	if st.State < model.StatePreparing {
		return st.to(model.StateShutdown, "shutdown"), nil
	}
	if st.State >= model.StateStarting {
		if exit, ok := do.Ended(ctx); ok {
			return ended(st, exit), nil
		}
	}
	if err := do.Stop(ctx); err != nil {
		return st, err
	}
	st.PID = 0
	return st.to(model.StateShutdown, "shutdown"), nil
}

// ended is the status after the process ended by itself.
func ended(st status, exit runtime.Exit) status {
	st.PID, st.ExitCode = 0, int32(exit.Code)
	if exit.Code == 0 && exit.Err == "" && !exit.OOMKilled {
		return st.to(model.StateComplete, "finished")
	}
	st.Err = fmt.Sprintf("task: non-zero exit (%d)", exit.Code)
	switch {
	case exit.Err != "":
		st.Err += ": " + exit.Err
	case exit.OOMKilled:
		st.Err += ": OOMKilled: the container used more memory than its limit"
	}
	return st.to(model.StateFailed, "started")
}

// refused is the status of a task that this node cannot prepare.
func refused(ctx context.Context, st status, err error) (status, error) {
	if again(ctx, err) {
		return st, err
	}
	st.Err = err.Error()
	if st.State >= model.StateStarting {
		return st.to(model.StateFailed, st.Message), nil
	}
	return st.to(model.StateRejected, "preparing"), nil
}

func failedStart(ctx context.Context, st status, err error) (status, error) {
	if again(ctx, err) {
		return st, err
	}
	st.Err = "starting container failed: " + err.Error()
	if re, ok := errors.AsType[*runtime.Error](err); ok {
		st.ExitCode = int32(re.Code)
	}
	return st.to(model.StateFailed, "starting"), nil
}

// again reports whether an error says nothing of the task.
func again(ctx context.Context, err error) bool {
	_, temp := errors.AsType[temporary](err)
	return temp || ctx.Err() != nil
}
