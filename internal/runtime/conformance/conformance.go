// Package conformance is the suite that every implementation of package runtime passes, so that an agent tested on one
// behaves the same on the other.
//
// It knows the contract and nothing of an implementation: what a test needs of the node behind it, Host provides.
package conformance

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-swarm/skep/internal/runtime"
)

// Image is the image that a Host must have, and Absent one that it must not have.
const (
	Image  = "skep-test:latest"
	Absent = "skep-absent:1"
)

// Host is a node whose daemon may come and go while its containers stay.
type Host interface {
	// Boot starts a daemon and returns its runtime, ready.
	Boot(t *testing.T) runtime.Runtime
	// Halt ends the daemon that Boot started; containers go on.
	Halt(t *testing.T)
}

// Exits is a program that ends at once with the given code, as a digit.
func Exits(code string) []string { return []string{"sh", "-c", "exit " + code} }

// Obeys is a program that runs until SIGTERM and ends with code 0 then.
func Obeys() []string {
	return []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.02; done"}
}

// Ignores is a program that runs until SIGKILL.
func Ignores() []string { return []string{"sh", "-c", "trap '' TERM; while :; do sleep 0.02; done"} }

// Missing is a program that does not exist; Forbidden one that cannot be executed.
func Missing() []string { return []string{"no-such-program"} }

// Forbidden is a file that is not a program.
func Forbidden() []string { return []string{"/noexec"} }

// limit is how long any step of the suite may take.
const limit = 30 * time.Second

// NewSpec returns a spec for a container that runs command, with an ID of its own for each name.
func NewSpec(name string, command []string) runtime.Spec {
	sum := sha256.Sum256([]byte(name))
	grace := 300 * time.Millisecond
	return runtime.Spec{
		ID: hex.EncodeToString(sum[:]), TaskID: "task-" + name, Name: "svc.1." + name,
		Labels: map[string]string{"com.docker.swarm.task.id": "task-" + name},
		Task:   swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: Image, Command: command, StopGracePeriod: &grace}},
	}
}

// Run runs the suite. Each test gets a host of its own.
func Run(t *testing.T, newHost func(t *testing.T) Host) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Host)
	}{
		{"ExitCode", exitCode}, {"Steps", steps}, {"StopObeyed", stopObeyed}, {"StopIgnored", stopIgnored}, {"Kill", kill},
		{"WaitBeforeStart", waitBeforeStart}, {"WaitCancelled", waitCancelled}, {"RemoveRunning", removeRunning},
		{"RemoveWakesWaiter", removeWakesWaiter}, {"Missing", missingThings}, {"Refused", refused}, {"List", list},
		{"Readopt", readopt}, {"ExitWhileDown", exitWhileDown}, {"ExitKept", exitKept}, {"OpenById", openByID}, {"Exec", execs},
		{"ExecSignalled", execSignalled}, {"ExecEnds", execEnds}, {"ExecRefused", execRefused}, {"Healthcheck", healthcheck},
		{"Usage", usage}, {"Signalled", signalled}, {"Root", root},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newHost(t)) })
	}
}

func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func controller(t *testing.T, rt runtime.Runtime, spec runtime.Spec) runtime.Controller {
	t.Helper()
	c, err := rt.Controller(spec)
	must(t, err)
	return c
}

// started returns the controller and the process ID of a container that runs.
func started(t *testing.T, rt runtime.Runtime, spec runtime.Spec) (runtime.Controller, int) {
	t.Helper()
	c := controller(t, rt, spec)
	must(t, c.Prepare(ctx(t)))
	pid, err := c.Start(ctx(t))
	must(t, err)
	if pid <= 0 {
		t.Fatalf("Start returned process ID %d", pid)
	}
	return c, pid
}

func wantState(t *testing.T, c runtime.Controller, want runtime.State) runtime.Status {
	t.Helper()
	got, err := c.Status(ctx(t))
	must(t, err)
	if got.State != want {
		t.Errorf("state = %s, want %s", got.State, want)
	}
	if (got.PID != 0) != (want == runtime.Running) {
		t.Errorf("process ID %d in state %s", got.PID, want)
	}
	return got
}

func wantGone(t *testing.T, c runtime.Controller) {
	t.Helper()
	if got, err := c.Status(ctx(t)); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("Status = %+v, %v; want ErrNotFound", got, err)
	}
}

func exitCode(t *testing.T, h Host) {
	rt := h.Boot(t)
	for _, code := range []struct {
		text string
		want int
	}{{"0", 0}, {"3", 3}, {"255", 255}} {
		c := controller(t, rt, NewSpec("exit"+code.text, Exits(code.text)))
		must(t, c.Prepare(ctx(t)))
		before := time.Now().Add(-time.Second)
		_, err := c.Start(ctx(t))
		must(t, err)
		exit, err := c.Wait(ctx(t))
		must(t, err)
		if exit.Code != code.want || exit.OOMKilled || exit.Err != "" || exit.At.Before(before) {
			t.Errorf("exit = %+v, want code %d", exit, code.want)
		}
		status := wantState(t, c, runtime.Exited)
		if status.Exit.Code != code.want || status.StartedAt.IsZero() || status.CreatedAt.IsZero() {
			t.Errorf("status = %+v", status)
		}
		must(t, c.Remove(ctx(t)))
		wantGone(t, c)
	}
}

// steps repeats every step, by controllers of their own, as an agent that lost its memory does.
func steps(t *testing.T, h Host) {
	rt := h.Boot(t)
	spec := NewSpec("steps", Obeys())
	wantGone(t, controller(t, rt, spec))
	for range 2 {
		must(t, controller(t, rt, spec).Prepare(ctx(t)))
		wantState(t, controller(t, rt, spec), runtime.Created)
	}
	_, first := started(t, rt, spec)
	c, second := started(t, rt, spec)
	if first != second {
		t.Errorf("starting again gave process %d, not %d", second, first)
	}
	if got := wantState(t, c, runtime.Running); got.PID != first {
		t.Errorf("process ID = %d, want %d", got.PID, first)
	}
	for range 2 {
		must(t, controller(t, rt, spec).Stop(ctx(t)))
		must(t, controller(t, rt, spec).Kill(ctx(t)))
		wantState(t, c, runtime.Exited)
	}
	pid, err := c.Start(ctx(t))
	must(t, err)
	if pid != 0 {
		t.Errorf("starting an ended container gave process %d", pid)
	}
	for range 2 {
		must(t, controller(t, rt, spec).Remove(ctx(t)))
	}
	wantGone(t, c)
	must(t, c.Stop(ctx(t)))
	must(t, c.Kill(ctx(t)))
	if _, err := c.Start(ctx(t)); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("Start after Remove = %v", err)
	}
	if _, err := c.Wait(ctx(t)); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("Wait after Remove = %v", err)
	}
	must(t, c.Prepare(ctx(t))) // the ID is free again
	must(t, c.Remove(ctx(t)))
}

func stopObeyed(t *testing.T, h Host) {
	spec := NewSpec("obeys", Obeys())
	grace := limit
	spec.Task.ContainerSpec.StopGracePeriod = &grace
	c, _ := started(t, h.Boot(t), spec)
	settle(t, c)
	must(t, c.Stop(ctx(t)))
	exit, err := c.Wait(ctx(t))
	must(t, err)
	if exit.Code != 0 {
		t.Errorf("exit = %+v, want 0 from the program's own handler", exit)
	}
}

// settle gives the program the time to install its handlers: an early SIGTERM to a first process is lost by the kernel.
// There is no event to wait for but the program's own first child, so the suite asks the host's process table.
func settle(t *testing.T, c runtime.Controller) {
	t.Helper()
	s, ok := c.(interface{ Settled(context.Context) error })
	if ok {
		must(t, s.Settled(ctx(t)))
		return
	}
	status, err := c.Status(ctx(t))
	must(t, err)
	must(t, handlesTERM(ctx(t), status.PID))
}

func stopIgnored(t *testing.T, h Host) {
	c, _ := started(t, h.Boot(t), NewSpec("ignores", Ignores()))
	settle(t, c)
	begin := time.Now()
	must(t, c.Stop(ctx(t)))
	if d := time.Since(begin); d < 290*time.Millisecond {
		t.Errorf("killed after %v, before the grace period of 300ms", d)
	}
	exit, err := c.Wait(ctx(t))
	must(t, err)
	if exit.Code != 137 || exit.OOMKilled {
		t.Errorf("exit = %+v, want 137", exit)
	}
}

func kill(t *testing.T, h Host) {
	c, _ := started(t, h.Boot(t), NewSpec("kill", Obeys()))
	must(t, c.Kill(ctx(t)))
	exit, err := c.Wait(ctx(t))
	must(t, err)
	if exit.Code != 137 || exit.OOMKilled {
		t.Errorf("exit = %+v, want 137", exit)
	}
}

func waitBeforeStart(t *testing.T, h Host) {
	c := controller(t, h.Boot(t), NewSpec("early", Exits("4")))
	must(t, c.Prepare(ctx(t)))
	type result struct {
		exit runtime.Exit
		err  error
	}
	done := make(chan result, 1)
	waitCtx := ctx(t)
	go func() {
		exit, err := c.Wait(waitCtx)
		done <- result{exit, err}
	}()
	_, err := c.Start(ctx(t))
	must(t, err)
	got := <-done
	if got.err != nil || got.exit.Code != 4 {
		t.Errorf("Wait = %+v, %v", got.exit, got.err)
	}
}

func waitCancelled(t *testing.T, h Host) {
	c, _ := started(t, h.Boot(t), NewSpec("cancel", Obeys()))
	short, cancel := context.WithCancel(ctx(t))
	cancel()
	if exit, err := c.Wait(short); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %+v, %v; want cancelled", exit, err)
	}
	must(t, c.Remove(ctx(t)))
}

func removeRunning(t *testing.T, h Host) {
	rt := h.Boot(t)
	c, _ := started(t, rt, NewSpec("remove", Ignores()))
	must(t, c.Remove(ctx(t)))
	wantGone(t, c)
	if all, err := rt.List(ctx(t)); err != nil || len(all) != 0 {
		t.Errorf("List = %+v, %v", all, err)
	}
}

func removeWakesWaiter(t *testing.T, h Host) {
	c := controller(t, h.Boot(t), NewSpec("waiter", Obeys()))
	must(t, c.Prepare(ctx(t)))
	done := make(chan error, 1)
	begun := make(chan struct{})
	waitCtx := ctx(t)
	go func() {
		close(begun)
		_, err := c.Wait(waitCtx)
		done <- err
	}()
	<-begun
	must(t, c.Remove(ctx(t)))
	if err := <-done; !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("Wait = %v, want ErrNotFound", err)
	}
}

func missingThings(t *testing.T, h Host) {
	rt := h.Boot(t)
	spec := NewSpec("image", Obeys())
	spec.Task.ContainerSpec.Image = Absent
	err := controller(t, rt, spec).Prepare(ctx(t))
	if runtime.KindOf(err) != runtime.KindImageMissing || !strings.Contains(err.Error(), "No such image: "+Absent) {
		t.Errorf("without an image: %v", err)
	}
	spec = NewSpec("bind", Obeys())
	spec.Task.ContainerSpec.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: "/no/such/dir", Target: "/x"}}
	err = controller(t, rt, spec).Prepare(ctx(t))
	const text = `invalid mount config for type "bind": bind source path does not exist: /no/such/dir`
	if runtime.KindOf(err) != runtime.KindMount || err.Error() != text {
		t.Errorf("without a bind source: %v", err)
	}
	for _, test := range []struct {
		name    string
		command []string
		code    int
		text    string
	}{
		{"missing", Missing(), 127, `exec: "no-such-program": executable file not found in $PATH`},
		{"forbidden", Forbidden(), 126, `exec: "/noexec": permission denied`},
	} {
		c := controller(t, rt, NewSpec(test.name, test.command))
		must(t, c.Prepare(ctx(t)))
		_, err := c.Start(ctx(t))
		e, ok := errors.AsType[*runtime.Error](err)
		if !ok || e.Kind != runtime.KindCommand || e.Code != test.code || !strings.Contains(e.Text, test.text) {
			t.Errorf("%s command: %v", test.name, err)
		}
		wantState(t, c, runtime.Created)
		must(t, c.Remove(ctx(t)))
	}
	if all, err := rt.List(ctx(t)); err != nil || len(all) != 0 {
		t.Errorf("left over: %+v, %v", all, err)
	}
}

func refused(t *testing.T, h Host) {
	rt := h.Boot(t)
	for name, change := range map[string]func(*runtime.Spec){
		"id":       func(s *runtime.Spec) { s.ID = "../x" },
		"no image": func(s *runtime.Spec) { s.Task.ContainerSpec.Image = "" },
		"no spec":  func(s *runtime.Spec) { s.Task.ContainerSpec = nil },
		"memory": func(s *runtime.Spec) {
			s.Task.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{MemoryBytes: runtime.MinMemory - 1}}
		},
	} {
		spec := NewSpec("refused", Obeys())
		change(&spec)
		if _, err := rt.Controller(spec); runtime.KindOf(err) != runtime.KindInvalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}
