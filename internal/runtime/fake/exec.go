package fake

import (
	"context"
	"strings"
	"sync"
	"syscall"

	"github.com/skep-swarm/skep/internal/runtime"
)

// Program is a further process of a container: it returns its exit code. Its context ends when it is signalled or its
// container ends.
type Program func(ctx context.Context, container string, spec runtime.ExecSpec) int

// process implements runtime.Process.
type process struct {
	pid    int
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	signal syscall.Signal
	code   int
}

// Exec implements runtime.Controller. Without a Program every command is one that does not exist.
func (c *controller) Exec(ctx context.Context, spec runtime.ExecSpec) (runtime.Process, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	n := c.r.node
	if err := n.enter(ctx, Exec, c.id); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	found := n.containers[c.id]
	switch {
	case found == nil:
		return nil, notFound(c.id)
	case found.State != runtime.Running:
		return nil, runtime.NotRunning(c.id)
	case n.Program == nil || strings.HasPrefix(spec.Args[0], "no-such"):
		return nil, runtime.CommandFailed(`exec: "`+spec.Args[0]+`": executable file not found in $PATH`, nil)
	}
	n.nextPID++
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &process{pid: n.nextPID, cancel: cancel, done: make(chan struct{})}
	program := n.Program
	go func() {
		select {
		case <-found.done:
			cancel()
		case <-p.done:
		}
	}()
	go func() {
		defer close(p.done)
		code := program(running, c.id, spec)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.code = code; p.signal != 0 {
			p.code = 128 + int(p.signal)
		}
	}()
	return p, nil
}

// PID implements runtime.Process.
func (p *process) PID() int { return p.pid }

// Wait implements runtime.Process.
func (p *process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	p.cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.code, nil
}

// Resize implements runtime.Process.
func (p *process) Resize(context.Context, uint16, uint16) error { return nil }

// Signal implements runtime.Process: every signal ends the program.
func (p *process) Signal(_ context.Context, sig syscall.Signal) error {
	p.mu.Lock()
	p.signal = sig
	p.mu.Unlock()
	p.cancel()
	return nil
}
