package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/runc"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skep-swarm/skep/internal/runtime"
)

// killed is the exit code of a process that ended by SIGKILL.
const killed = 128 + 9

// unit is one container as this process knows it. A container starts at most once, so its life is a line: prepared,
// running, exited, removed.
type unit struct {
	r  *Runtime
	id string

	step  sync.Mutex   // held for a whole step
	execs atomic.Int32 // further processes

	mu      sync.Mutex // guards what is below
	rec     *record    // nil until prepared
	state   runtime.State
	done    chan struct{} // closed when it has ended or was removed
	gone    chan struct{} // closed when nothing of a started task is left in containerd
	removed bool
	shim    *shimProcess // nil when another daemon started it
}

// settle sets the unit's first state; only before the unit is shared or under step.
func (u *unit) settle(rec *record, state runtime.State) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rec, u.state = rec, state
	u.done, u.gone = make(chan struct{}), make(chan struct{})
	if state == runtime.Exited {
		close(u.done)
		close(u.gone)
	}
}

// started notes that the container runs, and watches it until it ends or Run does; now says that it has just begun to.
func (u *unit) started(pid int, shim *shimProcess, now bool) {
	u.mu.Lock()
	u.state, u.shim = runtime.Running, shim
	u.rec.PID = pid
	u.mu.Unlock()
	if now {
		u.tell(runtime.ActionStart, 0)
	}
	u.r.watchers.Add(1)
	go u.watch()
}

func (u *unit) describe() (runtime.Container, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.rec == nil || u.removed {
		return runtime.Container{}, false
	}
	return runtime.Container{
		ID: u.id, TaskID: u.rec.TaskID, Name: u.rec.Name, Image: u.rec.Image, ImageDigest: u.rec.ImageDigest,
		Labels: u.rec.Labels, Volumes: u.rec.Mounted, Mounts: u.rec.Mounts, Status: u.statusLocked(),
	}, true
}

func (u *unit) statusLocked() runtime.Status {
	s := runtime.Status{State: u.state, CreatedAt: u.rec.CreatedAt, StartedAt: u.rec.StartedAt, Healthcheck: u.rec.Health,
		StopSignal: u.rec.StopSignal, StopGrace: u.rec.StopGrace}
	if u.state == runtime.Running {
		s.PID = u.rec.PID
	}
	if u.rec.Exit != nil {
		s.Exit = *u.rec.Exit
	}
	return s
}

func (u *unit) stateNow() runtime.State {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state
}

// watch waits for the container's end, notes it, and clears away what containerd and runc hold of it.
func (u *unit) watch() {
	defer u.r.watchers.Done()
	ctx := u.r.life
	exit, ok := u.awaitExit(ctx)
	if !ok {
		return // the daemon ends; the next one takes over
	}
	exit.OOMKilled = u.r.oomKilled(u.id)
	u.mu.Lock()
	u.rec.Exit, u.state = &exit, runtime.Exited
	rec := *u.rec
	shim := u.shim
	u.mu.Unlock()
	if err := u.r.saveRecord(&rec); err != nil {
		u.r.cfg.Log.Warn("the exit of a container is kept in memory only", "container", u.id, "err", err)
	}
	u.tellExit()
	close(u.done)
	defer close(u.gone)
	// Deleting must not be cut short by the daemon's end: a task half deleted is found in no list.
	clear, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := u.r.deleteTask(clear, u.id); err != nil {
		u.r.cfg.Log.Warn("clear away an ended container", "container", u.id, "err", err)
	}
	shim.reap(clear)
	u.r.dropSocket(u.id)
	if err := u.r.releaseVolumes(clear, &rec); err != nil {
		u.r.cfg.Log.Warn("unmount the volumes of an ended container", "container", u.id, "err", err)
	}
}

// awaitExit returns how the container ended; false when ctx ended first.
func (u *unit) awaitExit(ctx context.Context) (runtime.Exit, bool) {
	for {
		resp, err := u.r.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: u.id})
		if err == nil {
			return runtime.Exit{Code: int(resp.ExitStatus), At: resp.ExitedAt.AsTime()}, true
		}
		if ctx.Err() != nil {
			return runtime.Exit{}, false
		}
		if u.r.cfg.Address == "" || status.Code(err) != codes.Unavailable {
			return u.lostShim(ctx)
		}
		// The system's containerd restarts; its shims wait for it and so do we.
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return runtime.Exit{}, false
		}
	}
}

// lostShim says how a container ended whose shim is gone. Without its shim a container is killed, unless it ended before.
func (u *unit) lostShim(ctx context.Context) (runtime.Exit, bool) {
	exit := runtime.Exit{Code: killed, At: time.Now(), Err: "the container's shim died and the container was killed"}
	if e, err := runc.ReadExitStatus(u.r.bundle(u.id)); err == nil {
		exit = runtime.Exit{Code: e.Status, At: e.Timestamp}
	}
	// containerd kills and forgets the container on its own; what follows must find it done.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for {
		if _, err := u.r.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: u.id}); err != nil && errdefs.IsNotFound(errgrpc.ToNative(err)) {
			return exit, true
		}
		select {
		case <-tick.C:
		case <-limit:
			return exit, true
		case <-ctx.Done():
			return runtime.Exit{}, false
		}
	}
}

// bundle is the folder in which the in-process containerd and the shim keep a running container's files.
func (r *Runtime) bundle(id string) string {
	return filepath.Join(r.cfg.State, taskPlugin, r.Namespace(), id)
}

// deleteTask removes a task that does not run; one that does not exist is no error.
func (r *Runtime) deleteTask(ctx context.Context, id string) error {
	_, err := r.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	if err != nil {
		if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("delete task: %w", err)
	}
	return nil
}

// signal sends a signal to the container's first process. It goes there directly: asking runc to do it starts a program
// that does the same. The descriptor is taken first and the task is asked second, so that a process that took over the
// number is never hit.
func (u *unit) signal(ctx context.Context, sig unix.Signal) error {
	u.mu.Lock()
	pid := u.rec.PID
	u.mu.Unlock()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it ended; the watcher hears of it
	}
	if err == nil {
		defer unix.Close(fd)
		held, err := u.holds(ctx, pid)
		if err != nil || !held {
			return err
		}
		if sig != unix.SIGKILL {
			awaitProgram(ctx, filepath.Join("/proc", strconv.Itoa(pid), "comm"))
		}
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err == nil || errors.Is(err, unix.ESRCH) {
			u.tell(runtime.ActionKill, sig)
			return nil
		}
	}
	_, err = u.r.client.TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: u.id, Signal: uint32(sig)})
	if err != nil {
		if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("signal container %s: %w", u.id, err)
	}
	u.tell(runtime.ActionKill, sig)
	return nil
}

const (
	// runcInit is what runc calls the first process of a container until it has become the container's program.
	runcInit = "runc:[2:INIT]\n"
	// programWait bounds how long a signal waits for the program, and programCheck is how often it looks.
	programWait  = time.Second
	programCheck = 2 * time.Millisecond
)

// awaitProgram waits until a started container's first process, whose name is in the file comm, is the container's program and no longer
// runc: that one would answer SIGQUIT, for example, with its own stack in the container's log.
func awaitProgram(ctx context.Context, comm string) {
	limit := time.NewTimer(programWait)
	defer limit.Stop()
	tick := time.NewTicker(programCheck)
	defer tick.Stop()
	for {
		name, err := os.ReadFile(comm)
		if err != nil || string(name) != runcInit {
			return // its program, or it has ended
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// holds reports whether the container's first process runs and has the number.
func (u *unit) holds(ctx context.Context, pid int) (bool, error) {
	resp, err := u.r.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: u.id})
	if err != nil {
		if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
			return false, nil
		}
		return false, fmt.Errorf("look at container %s: %w", u.id, err)
	}
	ended := resp.Process != nil && resp.Process.ExitedAt != nil && !resp.Process.ExitedAt.AsTime().Before(time.Unix(1, 0))
	return resp.Process != nil && int(resp.Process.Pid) == pid && !ended, nil
}
