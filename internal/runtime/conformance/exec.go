package conformance

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/skep-swarm/skep/internal/runtime"
)

// Echoes copies its input to its output; Hangs runs until it is signalled.
func Echoes() []string { return []string{"cat"} }

// Hangs is a further process that runs until it is signalled.
func Hangs() []string { return []string{"sh", "-c", "while :; do sleep 0.02; done"} }

func execs(t *testing.T, h Host) {
	c, _ := started(t, h.Boot(t), NewSpec("exec", Obeys()))
	settle(t, c)
	for _, test := range []struct {
		name, in, out string
		args          []string
		code          int
	}{
		{"code", "", "", Exits("7"), 7},
		{"stdin", "honey\n", "honey\n", Echoes(), 0},
	} {
		var out bytes.Buffer
		spec := runtime.ExecSpec{ID: test.name, Args: test.args, Stdout: &out}
		if test.in != "" {
			spec.Stdin = strings.NewReader(test.in)
		}
		p, err := c.Exec(ctx(t), spec)
		must(t, err)
		code, err := p.Wait(ctx(t))
		must(t, err)
		if code != test.code || out.String() != test.out {
			t.Errorf("%s: code %d, output %q; want %d, %q", test.name, code, out.String(), test.code, test.out)
		}
	}
	wantState(t, c, runtime.Running)
}

func execSignalled(t *testing.T, h Host) {
	c, _ := started(t, h.Boot(t), NewSpec("execsignal", Obeys()))
	settle(t, c)
	p, err := c.Exec(ctx(t), runtime.ExecSpec{ID: "hang", Args: Hangs()})
	must(t, err)
	must(t, p.Signal(ctx(t), syscall.SIGKILL))
	code, err := p.Wait(ctx(t))
	must(t, err)
	if code != 137 {
		t.Errorf("code %d, want 137", code)
	}
	must(t, p.Signal(ctx(t), syscall.SIGKILL)) // it has ended
}

// execEnds: a further process ends with its container.
func execEnds(t *testing.T, h Host) {
	c, _ := started(t, h.Boot(t), NewSpec("execends", Obeys()))
	settle(t, c)
	in, stop := io.Pipe()
	defer stop.Close()
	p, err := c.Exec(ctx(t), runtime.ExecSpec{ID: "hang", Args: Hangs(), Stdin: in})
	must(t, err)
	must(t, c.Kill(ctx(t)))
	_, err = p.Wait(ctx(t))
	must(t, err)
	_, err = c.Exec(ctx(t), runtime.ExecSpec{ID: "late", Args: Exits("0")})
	if runtime.KindOf(err) != runtime.KindNotRunning {
		t.Errorf("exec in an ended container: %v", err)
	}
}

func execRefused(t *testing.T, h Host) {
	rt := h.Boot(t)
	c := controller(t, rt, NewSpec("execrefused", Obeys()))
	_, err := c.Exec(ctx(t), runtime.ExecSpec{ID: "x", Args: Exits("0")})
	if !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("exec in no container: %v", err)
	}
	must(t, c.Prepare(ctx(t)))
	_, err = c.Exec(ctx(t), runtime.ExecSpec{ID: "x", Args: Exits("0")})
	if runtime.KindOf(err) != runtime.KindNotRunning {
		t.Errorf("exec in a container that was not started: %v", err)
	}
	_, err = c.Start(ctx(t))
	must(t, err)
	settle(t, c)
	for name, spec := range map[string]runtime.ExecSpec{
		"no command": {ID: "x"}, "bad ID": {ID: "../x", Args: Exits("0")},
	} {
		if _, err := c.Exec(ctx(t), spec); runtime.KindOf(err) != runtime.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = c.Exec(ctx(t), runtime.ExecSpec{ID: "y", Args: Missing()})
	e, ok := errors.AsType[*runtime.Error](err)
	if !ok || e.Kind != runtime.KindCommand || e.Code != 127 {
		t.Errorf("a missing command: %v", err)
	}
}

// healthcheck: the check in force is known of a container that another daemon prepared.
func healthcheck(t *testing.T, h Host) {
	spec := NewSpec("health", Obeys())
	spec.Task.ContainerSpec.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "true"}, Retries: 2}
	must(t, controller(t, h.Boot(t), spec).Prepare(ctx(t)))
	h.Halt(t)
	c, err := h.Boot(t).Open(spec.ID)
	must(t, err)
	s, err := c.Status(ctx(t))
	must(t, err)
	if s.Healthcheck == nil || s.Healthcheck.Retries != 2 || s.Healthcheck.Interval != 30e9 || s.Healthcheck.StartInterval != 5e9 {
		t.Errorf("health check %+v", s.Healthcheck)
	}
}

// Programs is what Echoes, Hangs and Exits do, for a runtime whose processes are not real.
func Programs(ctx context.Context, _ string, spec runtime.ExecSpec) int {
	switch text := strings.Join(spec.Args, " "); {
	case text == strings.Join(Echoes(), " "):
		if spec.Stdin != nil {
			if _, err := io.Copy(spec.Stdout, spec.Stdin); err != nil {
				return 1
			}
		}
		return 0
	case text == strings.Join(Hangs(), " "):
		<-ctx.Done()
		return 137
	default:
		return int(text[len(text)-1] - '0')
	}
}
