package containerd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
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

// create makes the records and the file system of a container that does not exist.
func (c *controller) create(ctx context.Context, u *unit) (err error) {
	s, t := c.spec, c.spec.Task.ContainerSpec
	img, err := c.r.images.find(ctx, t.Image, s.ImageDigest)
	if err != nil {
		return err
	}
	rec, err := newRecord(s, img)
	if err != nil {
		return err
	}
	passwd, group, err := c.r.images.userFiles(ctx, img)
	if err != nil {
		return err
	}
	execUser, err := lookupUser(t, img, passwd, group)
	if err != nil {
		return err
	}
	mounts, anonymous, err := c.r.mounts(ctx, s, img)
	if err != nil {
		return err
	}
	rec.Volumes = anonymous
	spec, err := c.r.ociSpec(s, img, execUser, mounts)
	if err != nil {
		return err
	}
	body, err := typeurl.MarshalAny(spec)
	if err != nil {
		return fmt.Errorf("encode the container's spec: %w", err)
	}
	sn := c.r.client.SnapshotService(snapshotter)
	labels := snapshots.WithLabels(map[string]string{gcRootLabel: "skep", snapshotLabel: c.id})
	if _, err := sn.Prepare(ctx, c.id, img.chain, labels); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("make the container's file system: %w", err)
	}
	if err := c.r.saveRecord(rec); err != nil {
		return errors.Join(err, c.r.discard(ctx, c.id))
	}
	record, err := c.r.containerRecord(c.id, body)
	if err == nil {
		_, err = c.r.client.ContainerService().Create(ctx, record)
	}
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return errors.Join(fmt.Errorf("record the container: %w", err), c.r.discard(ctx, c.id))
	}
	u.settle(rec, runtime.Created)
	return nil
}

// containerRecord is what containerd's task manager reads when the container starts.
func (r *Runtime) containerRecord(id string, spec typeurl.Any) (containers.Container, error) {
	runc, err := r.runcPath()
	if err != nil {
		return containers.Container{}, err
	}
	opts := &options.Options{BinaryName: runc}
	c := containers.Container{ID: id, Spec: spec, Snapshotter: snapshotter, SnapshotKey: id}
	if r.cfg.Address == "" {
		opts.Root = filepath.Join(r.cfg.State, "runc")
		c.Runtime.Name, c.SandboxID = r.cfg.Shim, sandboxID
	} else {
		c.Runtime.Name = "io.containerd.runc.v2"
	}
	if c.Runtime.Options, err = typeurl.MarshalAny(opts); err != nil {
		return containers.Container{}, fmt.Errorf("encode the runtime's options: %w", err)
	}
	return c, nil
}

func newRecord(s *runtime.Spec, img *image) (*record, error) {
	t := s.Task.ContainerSpec
	rec := &record{
		ID: s.ID, TaskID: s.TaskID, Name: s.Name, Image: t.Image, ImageDigest: img.manifest.String(), Labels: s.Labels,
		StopSignal: firstOf(t.StopSignal, img.config.StopSignal, "SIGTERM"), StopGrace: defaultGrace,
		Stdout: s.Stdout, Stderr: s.Stderr, TTY: t.TTY, CreatedAt: time.Now().UTC(),
	}
	if t.StopGracePeriod != nil {
		rec.StopGrace = max(*t.StopGracePeriod, 0)
	}
	if _, err := signal.ParseSignal(rec.StopSignal); err != nil {
		return nil, runtime.Invalid("invalid signal: %s", rec.StopSignal)
	}
	return rec, nil
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
	u.started(pid, shim)
	if err := c.r.saveRecord(&rec); err != nil {
		c.r.cfg.Log.Warn("the start of a container is kept in memory only", "container", c.id, "error", err)
	}
	return pid, nil
}

// launch makes the task and starts it. When it fails nothing is left of the task.
func (c *controller) launch(ctx context.Context, rec *record) (pid int, shim *shimProcess, err error) {
	mounts, err := c.r.client.SnapshotService(snapshotter).Mounts(ctx, c.id)
	if err != nil {
		return 0, nil, fmt.Errorf("find the container's file system: %w", err)
	}
	request := &tasks.CreateTaskRequest{ContainerID: c.id, Stdout: rec.Stdout, Stderr: rec.Stderr, Terminal: rec.TTY}
	for _, m := range mounts {
		request.Rootfs = append(request.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if rec.TTY {
		request.Stderr = "" // a terminal has one stream
	}
	if c.r.cfg.Address == "" {
		if shim, err = c.r.startShim(c.id); err != nil {
			return 0, nil, err
		}
		request.TaskApiAddress, request.TaskApiVersion = "ttrpc+unix://"+shim.socket, 3
	}
	defer func() {
		if err != nil {
			shim.kill(ctx)
			c.r.dropSocket(c.id)
		}
	}()
	created, err := c.r.client.TaskService().Create(ctx, request)
	if err != nil {
		return 0, nil, startError(err)
	}
	if _, err = c.r.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: c.id}); err != nil {
		return 0, nil, errors.Join(startError(err), c.r.deleteTask(ctx, c.id))
	}
	return int(created.Pid), shim, nil
}

// startError finds the kind of error in what containerd, the shim and runc made of it.
func startError(err error) error {
	err = errgrpc.ToNative(err)
	text := err.Error()
	if e := runtime.CommandFailed(text, err); e != nil {
		return e
	}
	if strings.Contains(text, "failed to create shim task") && strings.Contains(text, "executable file not found") {
		return runtime.RuncMissing("runc", err)
	}
	return fmt.Errorf("start container: %w", err)
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
		return nil
	case <-timer.C:
		return c.killUnit(ctx, u)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
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
	if c.r.cfg.Volumes != nil {
		for _, name := range u.rec.Volumes {
			if err := c.r.cfg.Volumes.Remove(ctx, name); err != nil {
				return fmt.Errorf("remove anonymous volume %s: %w", name, err)
			}
		}
	}
	if err := c.r.dropRecord(c.id); err != nil {
		return err
	}
	u.forget()
	return nil
}

// discard removes what containerd keeps of a container without a task.
func (r *Runtime) discard(ctx context.Context, id string) error {
	if err := r.client.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the record of container %s: %w", id, err)
	}
	if err := r.client.SnapshotService(snapshotter).Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the file system of container %s: %w", id, err)
	}
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
	empty := len(u.r.units) == 0
	u.r.mu.Unlock()
	if empty {
		u.r.removeCgroupParents()
	}
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
