package conformance

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/runtime"
)

// usage: what a container uses is known while it runs, counters grow, and the machine's memory is the limit of one without.
func usage(t *testing.T, h Host) {
	rt := h.Boot(t)
	c, pid := started(t, rt, NewSpec("usage", Obeys()))
	settle(t, c)
	before, err := c.Usage(ctx(t))
	must(t, err)
	if before.At.IsZero() || before.OnlineCPUs < 1 || before.System == 0 || before.Memory.Limit == 0 || before.Processes == 0 {
		t.Errorf("usage %+v", before)
	}
	if before.Networks["lo"] != (runtime.InterfaceUsage{}) {
		t.Errorf("the loopback interface is counted: %+v", before.Networks)
	}
	list, err := c.Processes(ctx(t))
	must(t, err)
	if !slices.Contains(list, pid) || !slices.IsSorted(list) {
		t.Errorf("processes %v, want %d among them", list, pid)
	}
	until(t, "the counters grow", func() bool {
		after, err := c.Usage(ctx(t))
		must(t, err)
		return after.CPU.Total > before.CPU.Total && after.System > before.System && after.At.After(before.At)
	})
	must(t, c.Kill(ctx(t)))
	if _, err := c.Usage(ctx(t)); runtime.KindOf(err) != runtime.KindNotRunning {
		t.Errorf("usage of an ended container: %v", err)
	}
	if _, err := c.Processes(ctx(t)); runtime.KindOf(err) != runtime.KindNotRunning {
		t.Errorf("processes of an ended container: %v", err)
	}
}

// signalled: a signal reaches the first process, also one that another daemon started.
func signalled(t *testing.T, h Host) {
	spec := NewSpec("signalled", Obeys())
	rt := h.Boot(t)
	if err := controller(t, rt, spec).Signal(ctx(t), syscall.SIGTERM); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("signal to no container: %v", err)
	}
	c, _ := started(t, rt, spec)
	settle(t, c)
	must(t, c.Signal(ctx(t), syscall.SIGWINCH))
	status := wantState(t, c, runtime.Running)
	if status.StopSignal != "SIGTERM" || status.StopGrace != *spec.Task.ContainerSpec.StopGracePeriod {
		t.Errorf("stops by %s in %s", status.StopSignal, status.StopGrace)
	}
	h.Halt(t)
	c, err := h.Boot(t).Open(spec.ID)
	must(t, err)
	must(t, c.Signal(ctx(t), syscall.SIGTERM))
	exit, err := c.Wait(ctx(t))
	must(t, err)
	if exit.Code != 0 {
		t.Errorf("exit %+v, want the program's own", exit)
	}
	if err := c.Signal(ctx(t), syscall.SIGTERM); runtime.KindOf(err) != runtime.KindNotRunning {
		t.Errorf("signal to an ended container: %v", err)
	}
}

// until waits for something to come true.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// root: a container's files can be reached while it runs and after.
func root(t *testing.T, h Host) {
	rt := h.Boot(t)
	if _, _, err := controller(t, rt, NewSpec("root", Obeys())).Root(ctx(t)); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("the root of no container: %v", err)
	}
	c, _ := started(t, rt, NewSpec("root", Obeys()))
	settle(t, c)
	for _, state := range []runtime.State{runtime.Running, runtime.Exited} {
		wantState(t, c, state)
		dir, release, err := c.Root(ctx(t))
		must(t, err)
		if dir == nil || dir.Name() == "" {
			t.Errorf("%s: no directory", state)
		}
		release()
		layers, err := c.Layers(ctx(t))
		must(t, err)
		if layers.Upper == "" || len(layers.Lower) == 0 {
			t.Errorf("%s: layers %+v", state, layers)
		}
		must(t, c.Kill(ctx(t)))
	}
}
