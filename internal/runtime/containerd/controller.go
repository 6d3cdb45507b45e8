package containerd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/runtime"
)

const (
	defaultGrace = 10 * time.Second
	// startLimit bounds making and starting one container, which goes on when the caller gives up.
	startLimit = 2 * time.Minute
	// snapshotLabel marks our snapshots with their container, and keeps containerd from collecting them.
	snapshotLabel = "skep.container"
	gcRootLabel   = "containerd.io/gc.root"
)

// controller implements runtime.Controller for one container.
type controller struct {
	r    *Runtime
	id   string
	spec *runtime.Spec // nil when it was opened by ID
}

// find returns the container's unit, or ErrNotFound.
func (c *controller) find(ctx context.Context) (*unit, error) {
	if err := c.r.await(ctx); err != nil {
		return nil, err
	}
	u := c.r.unit(c.id, false)
	if u == nil {
		return nil, c.notFound()
	}
	return u, nil
}

func (c *controller) notFound() error { return fmt.Errorf("%w: %s", runtime.ErrNotFound, c.id) }

// Prepare implements runtime.Controller.
func (c *controller) Prepare(ctx context.Context) error {
	if c.spec == nil {
		return runtime.Invalid("container %s cannot be prepared without its spec", c.id)
	}
	if err := c.r.Check(ctx); err != nil {
		return err
	}
	if err := c.r.await(ctx); err != nil {
		return err
	}
	ctx = c.r.namespaced(ctx)
	u := c.r.unit(c.id, true)
	u.step.Lock()
	defer u.step.Unlock()
	if _, ok := u.describe(); ok {
		return nil
	}
	err := c.create(ctx, u)
	if err != nil {
		u.forget()
	}
	return err
}

// Start implements runtime.Controller.
func (c *controller) Start(ctx context.Context) (int, error) {
	u, err := c.find(ctx)
	if err != nil {
		return 0, err
	}
	u.step.Lock()
	defer u.step.Unlock()
	u.mu.Lock()
	if u.rec == nil || u.removed {
		u.mu.Unlock()
		return 0, c.notFound()
	}
	status, rec := u.statusLocked(), *u.rec
	u.mu.Unlock()
	if status.State != runtime.Created {
		return status.PID, nil
	}
	if c.r.life.Err() != nil {
		return 0, errors.New("the container runtime is shutting down")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.namespaced(ctx)), startLimit)
	defer cancel()
	pid, shim, err := c.launch(ctx, &rec)
	if err != nil {
		return 0, err
	}
	u.mu.Lock()
	u.rec.StartedAt, u.rec.PID = time.Now().UTC(), pid
	rec = *u.rec
	u.mu.Unlock()
	// Before the watcher starts, which writes the same record when the container ends.
	if err := c.r.saveRecord(&rec); err != nil {
		c.r.cfg.Log.Warn("the start of a container is kept in memory only", "container", c.id, "err", err)
	}
	u.started(pid, shim, true)
	return pid, nil
}

// Wait implements runtime.Controller.
func (c *controller) Wait(ctx context.Context) (runtime.Exit, error) {
	u, err := c.find(ctx)
	if err != nil {
		return runtime.Exit{}, err
	}
	u.mu.Lock()
	done := u.done
	u.mu.Unlock()
	if done == nil {
		return runtime.Exit{}, c.notFound()
	}
	select {
	case <-done:
	case <-ctx.Done():
		return runtime.Exit{}, context.Cause(ctx)
	case <-c.r.life.Done():
		return runtime.Exit{}, errors.New("the container runtime is shutting down")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.rec == nil || u.rec.Exit == nil {
		return runtime.Exit{}, c.notFound()
	}
	return *u.rec.Exit, nil
}

// Stop implements runtime.Controller.
func (c *controller) Stop(ctx context.Context) error {
	u, err := c.find(ctx)
	if err != nil {
		return ignoreNotFound(err)
	}
	u.step.Lock()
	defer u.step.Unlock()
	u.mu.Lock()
	running, done := u.state == runtime.Running, u.done
	var sig string
	var grace time.Duration
	if u.rec != nil {
		sig, grace = u.rec.StopSignal, u.rec.StopGrace
	}
	u.mu.Unlock()
	if !running {
		return nil
	}
	number, err := signal.ParseSignal(sig)
	if err != nil {
		number = unix.SIGTERM
	}
	if err := u.signal(c.r.namespaced(ctx), number); err != nil {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		if err := c.killUnit(ctx, u); err != nil {
			return err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	u.tell(runtime.ActionStop, 0)
	return nil
}

// Kill implements runtime.Controller.
func (c *controller) Kill(ctx context.Context) error {
	u, err := c.find(ctx)
	if err != nil {
		return ignoreNotFound(err)
	}
	u.step.Lock()
	defer u.step.Unlock()
	return c.killUnit(ctx, u)
}

// killUnit kills a running container and waits until it has ended; under step.
func (c *controller) killUnit(ctx context.Context, u *unit) error {
	if u.stateNow() != runtime.Running {
		return nil
	}
	if err := u.signal(c.r.namespaced(ctx), unix.SIGKILL); err != nil {
		return err
	}
	select {
	case <-u.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Remove implements runtime.Controller.
func (c *controller) Remove(ctx context.Context) error {
	u, err := c.find(ctx)
	if err != nil {
		return ignoreNotFound(err)
	}
	u.step.Lock()
	defer u.step.Unlock()
	if _, ok := u.describe(); !ok {
		return nil
	}
	if err := c.killUnit(ctx, u); err != nil {
		return err
	}
	if u.stateNow() == runtime.Exited {
		select {
		case <-u.gone:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	ctx = c.r.namespaced(ctx)
	if err := c.r.discard(ctx, c.id); err != nil {
		return err
	}
	if err := errors.Join(c.r.releaseVolumes(ctx, u.rec), c.r.dropVolumes(ctx, u.rec)); err != nil {
		return err
	}
	if err := c.r.dropRecord(c.id); err != nil {
		return err
	}
	u.tell(runtime.ActionDestroy, 0)
	u.forget()
	return nil
}

// forget takes the unit out of the runtime and wakes who waits for it; under step.
func (u *unit) forget() {
	u.mu.Lock()
	if u.done != nil && u.state == runtime.Created {
		close(u.done)
	}
	u.removed = true
	u.mu.Unlock()
	u.r.mu.Lock()
	if u.r.units[u.id] == u {
		delete(u.r.units, u.id)
	}
	u.r.mu.Unlock()
}

// Status implements runtime.Controller.
func (c *controller) Status(ctx context.Context) (runtime.Status, error) {
	u, err := c.find(ctx)
	if err != nil {
		return runtime.Status{}, err
	}
	d, ok := u.describe()
	if !ok {
		return runtime.Status{}, c.notFound()
	}
	return d.Status, nil
}

func ignoreNotFound(err error) error {
	if errors.Is(err, runtime.ErrNotFound) {
		return nil
	}
	return err
}
