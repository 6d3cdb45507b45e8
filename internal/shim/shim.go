// Package shim is the small program that stands between the daemon and one container, and how the daemon gets it on disk.
//
// The daemon starts a shim with a listening socket, containerd's task manager (inside the daemon) talks ttrpc to it, and it
// drives runc. It outlives the daemon: a restarted one finds the socket again. It must not know about tasks or the
// cluster, and everything it imports costs every container memory and start time, so it imports as little as it can.
//
// It differs from containerd's own shim in what it leaves out: no second exec of itself (the daemon passes the socket),
// no event publishing (the daemon waits on the task and reads the exit record), no plugin graph, no flag parsing.
package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	runc "github.com/containerd/go-runc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// idleLimit is how long a shim without a container lives: one whose daemon died between starting it and creating the
// container must not stay for ever.
const idleLimit = time.Minute

// quietLimit is the memory up to which a shim collects no garbage, in bytes; a fresh one has about 5 MB mapped.
const quietLimit = 10 << 20

// Main runs the shim program and returns its exit code. Its command lines are
//
//	shim serve NAMESPACE SOCKET   serve the task API on file descriptor 3, a listening socket at path SOCKET
//	shim [flags] delete           clean up after a shim that died, as containerd's runtime v2 asks for it
//	shim -info                    describe the runtime, as containerd's runtime v2 asks for it
//	docker-init -- COMMAND        be the first process of a container, by the name it was started with
func Main(args []string, stdout, stderr io.Writer) int {
	var err error
	switch {
	case filepath.Base(args[0]) == InitName:
		return beInit(args[1:], stderr)
	case len(args) == 4 && args[1] == "serve":
		err = serve(args[2], args[3])
	case len(args) > 1 && args[len(args)-1] == "delete":
		err = cleanup(args[1:], stdout)
	case len(args) > 1 && args[1] == "-info":
		err = info(stdout)
	default:
		err = errors.New("this program is started by the skep daemon, not by hand")
	}
	if err != nil {
		fmt.Fprintf(stderr, "skep-shim: %v\n", err)
		return 1
	}
	return 0
}

// serve runs until the daemon shuts it down, which it does after deleting the container.
func serve(namespace, socket string) error {
	// A shim allocates its megabyte as it starts and next to nothing later. Collecting garbage, the collection that
	// Go forces every two minutes included, would touch more memory than it frees, so there is none up to a limit.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(quietLimit)
	signals := make(chan os.Signal, 32)
	signal.Notify(signals, unix.SIGCHLD)
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of the container's processes: %w", err)
	}
	ctx, down := shutdown.WithShutdown(namespaces.WithNamespace(context.Background(), namespace))
	service, err := task.NewTaskService(ctx, silent{}, down)
	if err != nil {
		return fmt.Errorf("make the task service: %w", err)
	}
	listener, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return fmt.Errorf("use the inherited socket: %w", err)
	}
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return fmt.Errorf("make the ttrpc server: %w", err)
	}
	watched := &watchedService{TTRPCTaskService: service, exits: ExitPath(socket)}
	taskapi.RegisterTTRPCTaskService(server, watched)
	go func() {
		if err := server.Serve(ctx, listener); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
			down.Shutdown()
		}
	}()
	supervise(signals, watched, down)
	// The daemon removes the socket when it has seen the shim go; this is for the one that went alone.
	_ = os.Remove(socket)
	return nil
}

// supervise reaps children until the service is shut down or nobody uses it.
func supervise(signals <-chan os.Signal, service *watchedService, down shutdown.Service) {
	idle := time.NewTimer(idleLimit)
	defer idle.Stop()
	for {
		select {
		case <-signals:
			// An error here is "no child", which says nothing.
			_ = reaper.Reap()
		case <-idle.C:
			collectAsUsual()
			if service.containers.Load() == 0 {
				down.Shutdown()
			}
			idle.Reset(idleLimit)
		case <-down.Done():
			return
		}
	}
}

// collectAsUsual goes over to Go's ordinary collection once the limit was reached: this shim is a busy one, and a fixed
// limit could make it collect without end.
func collectAsUsual() {
	var stats debug.GCStats
	if debug.ReadGCStats(&stats); stats.NumGC > 0 {
		debug.SetGCPercent(100)
		debug.SetMemoryLimit(math.MaxInt64)
	}
}

// watchedService counts containers, so that an unused shim can end, and keeps their exits.
type watchedService struct {
	taskapi.TTRPCTaskService
	exits      string
	containers atomic.Int32
}

func (w *watchedService) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	w.containers.Add(1)
	resp, err := w.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		w.containers.Add(-1)
	}
	return resp, err
}

func (w *watchedService) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := w.TTRPCTaskService.Delete(ctx, r)
	if err == nil && r.ExecID == "" {
		w.containers.Add(-1)
		w.keepExit(r.ID, resp)
	}
	return resp, err
}

// keepExit writes the exit where the daemon finds it although the bundle is removed next: when a container ends just as
// a daemon starts, containerd deletes the task before the daemon could ask how it ended.
func (w *watchedService) keepExit(id string, resp *taskapi.DeleteResponse) {
	data, err := json.Marshal(runc.Exit{Pid: int(resp.Pid), Status: int(resp.ExitStatus), Timestamp: resp.ExitedAt.AsTime()})
	if err == nil {
		err = os.WriteFile(w.exits, data, 0o600)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "skep-shim: keep the exit of container %s: %v\n", id, err)
	}
}

// ExitPath is the file in which the shim at a socket leaves its container's exit, as containerd's exit record is written.
func ExitPath(socket string) string { return socket + ".exit" }

// silent drops the shim's events. The daemon learns of an end by waiting on the task, and after a restart from the exit
// record in the bundle and the cgroup's counters; events would be a third way, lost whenever the daemon is away.
type silent struct{}

func (silent) Publish(context.Context, string, events.Event) error { return nil }
func (silent) Close() error                                        { return nil }
