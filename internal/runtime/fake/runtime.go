package fake

import (
	"context"
	"errors"

	"github.com/skep-swarm/skep/internal/runtime"
)

// Runtime is one daemon's runtime on a Node.
type Runtime struct {
	node  *Node
	ended chan struct{}
}

var _ runtime.Runtime = (*Runtime)(nil)

// Runtime returns a runtime on the node. Unlike a real one it serves before Run is called, and until Run has ended.
func (n *Node) Runtime() *Runtime { return &Runtime{node: n, ended: make(chan struct{})} }

// Run implements runtime.Runtime. It may be called once.
func (r *Runtime) Run(ctx context.Context) error {
	<-ctx.Done()
	close(r.ended)
	return nil
}

// Check implements runtime.Runtime.
func (r *Runtime) Check(context.Context) error {
	r.node.mu.Lock()
	defer r.node.mu.Unlock()
	return r.node.checkErr
}

// Controller implements runtime.Runtime.
func (r *Runtime) Controller(spec runtime.Spec) (runtime.Controller, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	return &controller{r: r, id: spec.ID, spec: &spec}, nil
}

// Open implements runtime.Runtime.
func (r *Runtime) Open(id string) (runtime.Controller, error) {
	return &controller{r: r, id: id}, nil
}

// List implements runtime.Runtime.
func (r *Runtime) List(ctx context.Context) ([]runtime.Container, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return r.node.Containers(), nil
}

type controller struct {
	r    *Runtime
	id   string
	spec *runtime.Spec
}

// find returns the container, its steps locked, or nil. The caller unlocks.
func (c *controller) find() *container {
	n := c.r.node
	n.mu.Lock()
	found := n.containers[c.id]
	n.mu.Unlock()
	return found
}

// Prepare implements runtime.Controller.
func (c *controller) Prepare(ctx context.Context) error {
	if c.spec == nil {
		return runtime.Invalid("container %s cannot be prepared without its spec", c.id)
	}
	n := c.r.node
	if err := n.enter(ctx, Prepare, c.id); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.checkErr != nil {
		return n.checkErr
	}
	if n.containers[c.id] != nil {
		return nil
	}
	return n.create(*c.spec)
}

// Start implements runtime.Controller.
func (c *controller) Start(ctx context.Context) (int, error) {
	n := c.r.node
	if err := n.enter(ctx, Start, c.id); err != nil {
		return 0, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	found := n.containers[c.id]
	if found == nil {
		return 0, notFound(c.id)
	}
	if found.State != runtime.Created {
		return found.PID, nil
	}
	if err := found.behaviour.StartError; err != nil {
		return 0, err
	}
	n.nextPID++
	found.State, found.PID, found.StartedAt = runtime.Running, n.nextPID, n.now()
	pid := found.PID
	if found.behaviour.ExitAtOnce {
		n.end(found, found.behaviour.Exit)
	}
	return pid, nil
}

// Wait implements runtime.Controller.
func (c *controller) Wait(ctx context.Context) (runtime.Exit, error) {
	if ctx.Err() != nil {
		return runtime.Exit{}, context.Cause(ctx)
	}
	found := c.find()
	if found == nil {
		return runtime.Exit{}, notFound(c.id)
	}
	select {
	case <-found.done:
	case <-ctx.Done():
		return runtime.Exit{}, context.Cause(ctx)
	case <-c.r.ended:
		return runtime.Exit{}, errors.New("the container runtime is shutting down")
	}
	n := c.r.node
	n.mu.Lock()
	defer n.mu.Unlock()
	if found.State != runtime.Exited {
		return runtime.Exit{}, notFound(c.id) // removed before it started
	}
	return found.Exit, nil
}

// Stop implements runtime.Controller.
func (c *controller) Stop(ctx context.Context) error {
	n := c.r.node
	if err := n.enter(ctx, Stop, c.id); err != nil {
		return err
	}
	found := c.find()
	if found == nil {
		return nil
	}
	found.step.Lock()
	defer found.step.Unlock()
	n.mu.Lock()
	running := found.State == runtime.Running
	if running && !found.behaviour.IgnoresStop {
		n.end(found, found.behaviour.Exit)
		running = false
	}
	n.mu.Unlock()
	if !running {
		return nil
	}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		select {
		case <-found.done:
			cancel()
		case <-waiting.Done():
		}
	}()
	n.waitGrace(waiting, found.StopGrace)
	cancel()
	<-stop
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.kill(found)
	return nil
}

// kill ends the container if it runs.
func (c *controller) kill(found *container) {
	n := c.r.node
	n.mu.Lock()
	defer n.mu.Unlock()
	if found.State == runtime.Running {
		n.end(found, runtime.Exit{Code: 137})
	}
}

// Kill implements runtime.Controller.
func (c *controller) Kill(ctx context.Context) error {
	if err := c.r.node.enter(ctx, Kill, c.id); err != nil {
		return err
	}
	found := c.find()
	if found == nil {
		return nil
	}
	found.step.Lock()
	defer found.step.Unlock()
	c.kill(found)
	return nil
}

// Remove implements runtime.Controller.
func (c *controller) Remove(ctx context.Context) error {
	n := c.r.node
	if err := n.enter(ctx, Remove, c.id); err != nil {
		return err
	}
	found := c.find()
	if found == nil {
		return nil
	}
	found.step.Lock()
	defer found.step.Unlock()
	c.kill(found)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.containers[c.id] == found {
		delete(n.containers, c.id)
		if found.State == runtime.Created {
			close(found.done)
		}
	}
	return nil
}

// Status implements runtime.Controller.
func (c *controller) Status(ctx context.Context) (runtime.Status, error) {
	if ctx.Err() != nil {
		return runtime.Status{}, context.Cause(ctx)
	}
	n := c.r.node
	n.mu.Lock()
	defer n.mu.Unlock()
	found := n.containers[c.id]
	if found == nil {
		return runtime.Status{}, notFound(c.id)
	}
	return found.Status, nil
}

// Settled reports at once that the program has installed its handlers; a real one needs a moment.
func (c *controller) Settled(context.Context) error { return nil }
