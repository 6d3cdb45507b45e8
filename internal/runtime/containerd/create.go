package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/sys/signal"

	"github.com/skep-swarm/skep/internal/runtime"
)

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
	set := &mountSet{r: c.r, s: s, img: img}
	mounts, err := set.make(ctx)
	rec.Mounts, rec.Parts = set.points, set.parts
	for _, m := range rec.Mounts {
		if m.Name != "" {
			rec.Mounted = append(rec.Mounted, m.Name)
		}
		if m.Anonymous {
			rec.Volumes = append(rec.Volumes, m.Name)
		}
	}
	defer func() {
		if err != nil {
			ctx := context.WithoutCancel(ctx)
			err = errors.Join(err, c.r.releaseVolumes(ctx, rec), c.r.dropVolumes(ctx, rec))
		}
	}()
	if err != nil {
		return err
	}
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
	u.tell(runtime.ActionCreate, 0)
	return nil
}

// releaseVolumes says that a container that runs no more uses its volumes no more.
func (r *Runtime) releaseVolumes(ctx context.Context, rec *record) error {
	if r.cfg.Volumes == nil {
		return nil
	}
	var errs []error
	for _, name := range rec.Mounted {
		errs = append(errs, r.cfg.Volumes.Unmount(ctx, rec.ID, name))
	}
	return errors.Join(errs...)
}

// claimVolumes says that a container of an earlier daemon uses its volumes.
func (r *Runtime) claimVolumes(ctx context.Context, rec *record) {
	if r.cfg.Volumes == nil {
		return
	}
	for _, name := range rec.Mounted {
		if _, err := r.cfg.Volumes.Mount(ctx, rec.ID, name, nil, nil); err != nil {
			r.cfg.Log.Warn("a container's volume cannot be mounted", "container", rec.ID, "volume", name, "err", err)
		}
	}
}

// dropVolumes removes a container's anonymous volumes.
func (r *Runtime) dropVolumes(ctx context.Context, rec *record) error {
	if r.cfg.Volumes == nil {
		return nil
	}
	for _, name := range rec.Volumes {
		if err := r.cfg.Volumes.Remove(ctx, name); err != nil {
			return fmt.Errorf("remove anonymous volume %s: %w", name, err)
		}
	}
	return nil
}

// containerRecord is what containerd's task manager reads when the container starts.
func (r *Runtime) containerRecord(id string, spec typeurl.Any) (containers.Container, error) {
	runc, err := r.runcPath()
	if err != nil {
		return containers.Container{}, err
	}
	opts := &options.Options{BinaryName: runc, Root: filepath.Join(r.cfg.State, "runc")}
	c := containers.Container{ID: id, Spec: spec, Snapshotter: snapshotter, SnapshotKey: id}
	if r.cfg.Address == "" {
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
		Health: runtime.Healthcheck(t.Healthcheck, img.health),
	}
	if t.StopGracePeriod != nil {
		rec.StopGrace = max(*t.StopGracePeriod, 0)
	}
	if _, err := signal.ParseSignal(rec.StopSignal); err != nil {
		return nil, runtime.Invalid("invalid signal: %s", rec.StopSignal)
	}
	return rec, nil
}

// launch makes the task and starts it. When it fails nothing is left of the task.
func (c *controller) launch(ctx context.Context, rec *record) (int, *shimProcess, error) {
	mounts, err := c.r.client.SnapshotService(snapshotter).Mounts(ctx, c.id)
	if err != nil {
		return 0, nil, fmt.Errorf("find the container's file system: %w", err)
	}
	if err := c.r.clearBundle(c.id); err != nil {
		return 0, nil, err
	}
	release, err := c.r.mountParts(ctx, rec)
	if err != nil {
		return 0, nil, err
	}
	defer release()
	request := &tasks.CreateTaskRequest{ContainerID: c.id, Stdout: rec.Stdout, Stderr: rec.Stderr, Terminal: rec.TTY}
	for _, m := range mounts {
		request.Rootfs = append(request.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if rec.TTY {
		request.Stderr = "" // a terminal has one stream
	}
	var shim *shimProcess
	if c.r.cfg.Address == "" {
		if shim, err = c.r.startShim(c.id); err != nil {
			return 0, nil, err
		}
		request.TaskApiAddress, request.TaskApiVersion = "ttrpc+unix://"+shim.socket, 3
	}
	pid, err := c.r.runTask(ctx, request)
	if err != nil {
		shim.kill(ctx)
		c.r.dropSocket(c.id)
		return 0, nil, err
	}
	return pid, shim, nil
}

// runTask has containerd make a task and start it.
func (r *Runtime) runTask(ctx context.Context, request *tasks.CreateTaskRequest) (pid int, err error) {
	created, err := r.client.TaskService().Create(ctx, request)
	if err != nil {
		return 0, startError(err)
	}
	if _, err = r.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: request.ContainerID}); err != nil {
		return 0, errors.Join(startError(err), r.deleteTask(ctx, request.ContainerID))
	}
	return int(created.Pid), nil
}

// clearBundle removes the folder of a task that is not: containerd makes no task when there is one. runc, killed with its daemon while it
// makes a container, may make its mount points anew in a folder that is removed meanwhile.
func (r *Runtime) clearBundle(id string) error {
	if r.cfg.Address != "" {
		return nil
	}
	dir := r.bundle(id)
	if !exists(dir) {
		return nil
	}
	// Nothing must be mounted in what is deleted.
	if err := mount.UnmountRecursive(dir, 0); err != nil {
		return fmt.Errorf("unmount what is left of a task: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove what is left of a task: %w", err)
	}
	return nil
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

// discard removes what containerd keeps of a container without a task.
func (r *Runtime) discard(ctx context.Context, id string) error {
	if err := r.client.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the record of container %s: %w", id, err)
	}
	if err := r.client.SnapshotService(snapshotter).Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the file system of container %s: %w", id, err)
	}
	return r.clearBundle(id)
}
