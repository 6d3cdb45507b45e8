package fake

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/conformance"
)

// host opens runtimes on one node, one after the other.
type host struct {
	node   *Node
	cancel context.CancelFunc
	ended  chan error
}

func (h *host) Boot(t *testing.T) runtime.Runtime {
	ctx, cancel := context.WithCancel(context.Background())
	rt := h.node.Runtime()
	h.cancel, h.ended = cancel, make(chan error, 1)
	go func() { h.ended <- rt.Run(ctx) }()
	t.Cleanup(cancel)
	return rt
}

func (h *host) Halt(t *testing.T) {
	h.cancel()
	if err := <-h.ended; err != nil {
		t.Error(err)
	}
}

// AwaitEnd ends the container whose program would end while no daemon runs.
func (h *host) AwaitEnd(_ context.Context, id string) error {
	if !h.node.End(id, runtime.Exit{Code: 42}) {
		return errors.New("the container does not run")
	}
	return nil
}

// behave knows the programs of the conformance suite.
func behave(s runtime.Spec) Behaviour {
	command := s.Task.ContainerSpec.Command
	switch {
	case slices.Equal(command, conformance.Missing()):
		return Behaviour{StartError: runtime.CommandFailed(`runc: exec: "no-such-program": executable file not found in $PATH`, nil)}
	case slices.Equal(command, conformance.Forbidden()):
		return Behaviour{StartError: runtime.CommandFailed(`runc: exec: "/noexec": permission denied`, nil)}
	case slices.Equal(command, conformance.Ignores()):
		return Behaviour{IgnoresStop: true}
	}
	for _, e := range []struct {
		text string
		code int
	}{{"0", 0}, {"3", 3}, {"4", 4}, {"5", 5}, {"7", 7}, {"255", 255}} {
		if slices.Equal(command, conformance.Exits(e.text)) {
			return Behaviour{ExitAtOnce: true, Exit: runtime.Exit{Code: e.code}}
		}
	}
	return Behaviour{}
}

func TestConformance(t *testing.T) {
	conformance.Run(t, func(*testing.T) conformance.Host {
		node := NewNode(conformance.Image)
		node.Program = conformance.Programs
		node.Behave = behave
		return &host{node: node}
	})
}

func TestFailAndBlock(t *testing.T) {
	node := NewNode(conformance.Image)
	node.Program = conformance.Programs
	spec := conformance.NewSpec("x", conformance.Obeys())
	c, err := node.Runtime().Controller(spec)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	broken := errors.New("broken")
	node.Fail(Prepare, "", broken)
	if err := c.Prepare(ctx); !errors.Is(err, broken) {
		t.Errorf("Prepare = %v", err)
	}
	node.Fail(Prepare, "", nil)
	if err := c.Prepare(ctx); err != nil {
		t.Error(err)
	}
	release := node.Block(Start, spec.ID)
	done := make(chan error, 1)
	go func() {
		_, err := c.Start(ctx)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("a blocked Start returned %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := node.Steps(); len(got) != 3 || !strings.HasPrefix(got[2], "start ") {
		t.Errorf("steps = %q", got)
	}
	gone, cancel := context.WithCancel(ctx)
	node.Block(Stop, "")
	cancel()
	if err := c.Stop(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("Stop = %v", err)
	}
}
