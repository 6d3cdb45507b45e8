package agent

import (
	"context"
	"errors"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	"pgregory.net/rapid"
)

// world is a container in a few variables; errs fail the action of that name.
type world struct {
	prepared, running, exited bool
	exit                      runtime.Exit
	errs                      map[string]error
	calls                     []string
}

func (w *world) did(name string) error {
	w.calls = append(w.calls, name)
	return w.errs[name]
}

func (w *world) Prepare(context.Context) ([]swarm.PortConfig, error) {
	if err := w.did("prepare"); err != nil {
		return nil, err
	}
	w.prepared = true
	return nil, nil
}

func (w *world) Start(context.Context) (int, error) {
	if err := w.did("start"); err != nil {
		return 0, err
	}
	if w.exited {
		return 0, nil
	}
	w.running = true
	return 7, nil
}

func (w *world) Healthy(context.Context) (runtime.Exit, bool, error) {
	if err := w.did("healthy"); err != nil {
		return runtime.Exit{}, false, err
	}
	return w.exit, !w.exited, nil
}

func (w *world) Wait(context.Context) (runtime.Exit, error) {
	if err := w.did("wait"); err != nil {
		return runtime.Exit{}, err
	}
	if !w.exited {
		return runtime.Exit{}, errors.New("would block")
	}
	return w.exit, nil
}

func (w *world) Ended(context.Context) (runtime.Exit, bool) { return w.exit, w.exited }

func (w *world) Stop(context.Context) error {
	if err := w.did("stop"); err != nil {
		return err
	}
	if w.running {
		w.running, w.exited, w.exit = false, true, runtime.Exit{Code: 143}
	}
	return nil
}

func TestStep(t *testing.T) {
	const run, ready, stop = model.StateRunning, model.StateReady, model.StateShutdown
	boom := errors.New("boom")
	for _, c := range []struct {
		name     string
		from     model.TaskState
		desired  model.TaskState
		prepared bool
		w        world
		to       model.TaskState
		err      string // of the status
		code     int32
		again    error // the step's error
		call     string
	}{
		{"accept", model.StateAssigned, run, false, world{}, model.StateAccepted, "", 0, nil, ""},
		{"begin to prepare", model.StateAccepted, run, false, world{}, model.StatePreparing, "", 0, nil, ""},
		{"prepare", model.StatePreparing, run, false, world{}, model.StateReady, "", 0, nil, "prepare"},
		{"cannot prepare", model.StatePreparing, run, false, world{errs: map[string]error{"prepare": boom}}, model.StateRejected, "boom", 0, nil, "prepare"},
		{"the node is in trouble", model.StatePreparing, run, false, world{errs: map[string]error{"prepare": temporary{boom}}}, model.StatePreparing, "", 0, boom, "prepare"},
		{"hold ready", model.StateReady, ready, true, world{}, model.StateReady, "", 0, errPark, ""},
		{"prepare again after a restart", model.StateReady, ready, false, world{}, model.StateReady, "", 0, errPark, "prepare"},
		{"go", model.StateReady, run, true, world{}, model.StateStarting, "", 0, nil, ""},
		{"start", model.StateStarting, run, true, world{}, model.StateRunning, "", 0, nil, "start"},
		{"start fails", model.StateStarting, run, true, world{errs: map[string]error{"start": &runtime.Error{Kind: runtime.KindCommand, Code: 126, Text: "no"}}},
			model.StateFailed, "starting container failed: no", 126, nil, "start"},
		{"not healthy yet", model.StateStarting, run, true, world{errs: map[string]error{"healthy": boom}}, model.StateStarting, "", 0, boom, "start"},
		{"never becomes healthy", model.StateStarting, run, true, world{exited: true, exit: runtime.Exit{Code: 143, Err: "unhealthy container"}},
			model.StateFailed, "task: non-zero exit (143): unhealthy container", 143, nil, "start"},
		{"ends before it is healthy", model.StateStarting, run, true, world{exited: true}, model.StateComplete, "", 0, nil, "start"},
		{"vanishes before it is healthy", model.StateStarting, run, true, world{errs: map[string]error{"healthy": runtime.ErrNotFound}},
			model.StateFailed, "the container is gone", 0, nil, "start"},
		{"ends well", run, run, true, world{exited: true}, model.StateComplete, "", 0, nil, "wait"},
		{"ends badly", run, run, true, world{exited: true, exit: runtime.Exit{Code: 3}}, model.StateFailed, "task: non-zero exit (3)", 3, nil, "wait"},
		{"shim dies", run, run, true, world{exited: true, exit: runtime.Exit{Code: 137, Err: "the shim died"}}, model.StateFailed, "task: non-zero exit (137): the shim died", 137, nil, "wait"},
		{"container vanished", run, run, true, world{errs: map[string]error{"wait": runtime.ErrNotFound}}, model.StateFailed, "the container is gone", 0, nil, "wait"},
		{"never began", model.StateAssigned, stop, false, world{}, stop, "", 0, nil, ""},
		{"stop while preparing", model.StatePreparing, stop, false, world{}, stop, "", 0, nil, "stop"},
		{"stop", run, stop, true, world{running: true}, stop, "", 0, nil, "stop"},
		{"had ended by itself", run, stop, true, world{exited: true, exit: runtime.Exit{Code: 1}}, model.StateFailed, "task: non-zero exit (1)", 1, nil, ""},
		{"cannot stop", run, stop, true, world{running: true, errs: map[string]error{"stop": boom}}, run, "", 0, boom, "stop"},
		{"over", model.StateFailed, run, true, world{}, model.StateFailed, "", 0, errPark, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			st, err := step(t.Context(), status{State: c.from}, c.desired, c.prepared, &c.w)
			call := ""
			if len(c.w.calls) > 0 {
				call = c.w.calls[0]
			}
			if st.State != c.to || st.Err != c.err || st.ExitCode != c.code || !errors.Is(err, c.again) || (err == nil) != (c.again == nil) || call != c.call {
				t.Errorf("→ %s %q code %d, error %v, called %v", st.State, st.Err, st.ExitCode, err, c.w.calls)
			}
		})
	}
}

// Whatever happens in whatever order, a task's state never goes back, one that is to be stopped ends, and nothing runs after.
func TestStepProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{errs: map[string]error{}}
		st, desired, prepared := status{State: model.StateAssigned}, model.StateReady, false
		take := func() {
			next, _ := step(context.Background(), st, desired, prepared, w)
			if next.State < st.State {
				t.Fatalf("went back from %s to %s", st.State, next.State)
			}
			if next.State != st.State && !model.CanMove(st.State, next.State) {
				t.Fatalf("moved from %s to %s", st.State, next.State)
			}
			prepared = prepared || next.State >= model.StateReady
			st = next
		}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0:
				desired = max(desired, rapid.SampledFrom([]model.TaskState{model.StateReady, model.StateRunning, model.StateShutdown, model.StateRemove}).Draw(t, "desired"))
			case 1:
				prepared = false // the daemon was killed and started again
			case 2:
				if w.running {
					w.running, w.exited, w.exit = false, true, runtime.Exit{Code: rapid.IntRange(0, 2).Draw(t, "code")}
				}
			case 3:
				action := rapid.SampledFrom([]string{"prepare", "start", "wait", "stop"}).Draw(t, "action")
				w.errs[action] = rapid.SampledFrom([]error{nil, temporary{errors.New("trouble")}, errors.New("broken")}).Draw(t, "error")
			default:
				take()
			}
		}
		clear(w.errs)
		desired = max(desired, model.StateShutdown)
		for range 3 {
			take()
		}
		if !st.State.Terminal() {
			t.Fatalf("still %s after it was to be stopped", st.State)
		}
		if w.running && st.State != model.StateFailed && st.State != model.StateRejected {
			t.Fatalf("its container runs on, and the task is %s", st.State)
		}
	})
}
