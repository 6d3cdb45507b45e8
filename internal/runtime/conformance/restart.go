package conformance

import (
	"slices"
	"strings"
	"testing"

	"github.com/skep-swarm/skep/internal/runtime"
)

func list(t *testing.T, h Host) {
	rt := h.Boot(t)
	running, _ := started(t, rt, NewSpec("running", Obeys()))
	created := controller(t, rt, NewSpec("created", Obeys()))
	must(t, created.Prepare(ctx(t)))
	exited, _ := started(t, rt, NewSpec("exited", Obeys()))
	must(t, exited.Kill(ctx(t)))
	all, err := rt.List(ctx(t))
	must(t, err)
	got := make(map[string]runtime.State)
	for _, c := range all {
		got[c.Name] = c.State
		if c.Labels["com.docker.swarm.task.id"] != c.TaskID || c.Image != Image || c.ImageDigest == "" {
			t.Errorf("container = %+v", c)
		}
	}
	if len(all) != 3 || got["svc.1.running"] != runtime.Running || got["svc.1.created"] != runtime.Created || got["svc.1.exited"] != runtime.Exited {
		t.Errorf("List = %v", got)
	}
	if !slices.IsSortedFunc(all, func(a, b runtime.Container) int { return strings.Compare(a.ID, b.ID) }) {
		t.Error("List is not ordered")
	}
	for _, c := range []runtime.Controller{running, created, exited} {
		must(t, c.Remove(ctx(t)))
	}
}

// readopt ends the daemon under running containers and finds them again, by the same processes.
func readopt(t *testing.T, h Host) {
	rt := h.Boot(t)
	spec := NewSpec("readopt", Obeys())
	_, pid := started(t, rt, spec)
	must(t, controller(t, rt, NewSpec("prepared", Exits("5"))).Prepare(ctx(t)))
	for range 2 {
		h.Halt(t)
		rt = h.Boot(t)
		c := controller(t, rt, spec)
		if got := wantState(t, c, runtime.Running); got.PID != pid {
			t.Fatalf("process ID = %d after a restart, want %d", got.PID, pid)
		}
		_, again := started(t, rt, spec)
		if again != pid {
			t.Fatalf("starting again gave process %d, want %d", again, pid)
		}
	}
	c := controller(t, rt, NewSpec("prepared", Exits("5")))
	wantState(t, c, runtime.Created)
	_, err := c.Start(ctx(t))
	must(t, err)
	exit, err := c.Wait(ctx(t))
	must(t, err)
	if exit.Code != 5 {
		t.Errorf("exit = %+v, want 5", exit)
	}
	c = controller(t, rt, spec)
	settle(t, c)
	must(t, c.Stop(ctx(t)))
	if exit, err = c.Wait(ctx(t)); err != nil || exit.Code > 0 && exit.Code != 137 {
		t.Errorf("exit = %+v, %v", exit, err)
	}
	must(t, c.Remove(ctx(t)))
}

// exitWhileDown lets a container end while no daemon runs.
func exitWhileDown(t *testing.T, h Host) {
	rt := h.Boot(t)
	spec := NewSpec("down", []string{"sh", "-c", "sleep 0.3; exit 42"})
	_, pid := started(t, rt, spec)
	h.Halt(t)
	must(t, awaitEnd(ctx(t), h, spec.ID, pid))
	rt = h.Boot(t)
	c := controller(t, rt, spec)
	exit, err := c.Wait(ctx(t))
	must(t, err)
	if exit.Code != 42 || exit.Err != "" || exit.At.IsZero() {
		t.Errorf("exit = %+v, want 42", exit)
	}
	wantState(t, c, runtime.Exited)
	must(t, c.Remove(ctx(t)))
}

// exitKept restarts the daemon after an exit was seen.
func exitKept(t *testing.T, h Host) {
	spec := NewSpec("kept", Exits("7"))
	c, _ := started2(t, h.Boot(t), spec)
	before, err := c.Wait(ctx(t))
	must(t, err)
	h.Halt(t)
	after, err := controller(t, h.Boot(t), spec).Wait(ctx(t))
	must(t, err)
	if after.Code != 7 || !after.At.Equal(before.At) {
		t.Errorf("exit = %+v after a restart, %+v before", after, before)
	}
}

// started2 starts a container that may have ended when Start returns.
func started2(t *testing.T, rt runtime.Runtime, spec runtime.Spec) (runtime.Controller, int) {
	t.Helper()
	c := controller(t, rt, spec)
	must(t, c.Prepare(ctx(t)))
	pid, err := c.Start(ctx(t))
	must(t, err)
	return c, pid
}

func openByID(t *testing.T, h Host) {
	rt := h.Boot(t)
	spec := NewSpec("open", Obeys())
	_, _ = started(t, rt, spec)
	c, err := rt.Open(spec.ID)
	must(t, err)
	wantState(t, c, runtime.Running)
	if err := c.Prepare(ctx(t)); runtime.KindOf(err) != runtime.KindInvalid {
		t.Errorf("Prepare without a spec = %v", err)
	}
	must(t, c.Remove(ctx(t)))
	wantGone(t, c)
}
