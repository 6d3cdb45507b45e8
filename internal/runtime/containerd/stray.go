package containerd

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/runtime"
)

// endStrayShims ends what a killed daemon left half made: shims that it had started and containerd does not know, and what
// they had runc make. It comes after adoption, when every container that lives has been found.
func (r *Runtime) endStrayShims(ctx context.Context) {
	known, names := make(map[string]bool), make(map[string]bool)
	r.mu.Lock()
	for id, u := range r.units {
		if u.stateNow() == runtime.Running {
			known[id], names[filepath.Base(r.socket(id))] = true, true
		}
	}
	r.mu.Unlock()
	dir := filepath.Join(r.cfg.State, "s")
	sockets, _ := os.ReadDir(dir)
	for _, s := range sockets {
		if names[s.Name()] {
			continue
		}
		path := filepath.Join(dir, s.Name())
		if len(s.Name()) == socketName {
			if err := endShim(ctx, path); err != nil {
				r.cfg.Log.Debug("end a stray shim", "socket", path, "err", err)
			}
		}
		_ = os.Remove(path)
	}
	r.deleteStrayContainers(ctx, known)
}

// endShim kills the shim behind a socket; the runc that it may have started dies with it.
func endShim(ctx context.Context, socket string) error {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return err // nobody listens
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, shimPatience)
	defer cancel()
	resp, err := taskapi.NewTTRPCTaskClient(client).Connect(ctx, &taskapi.ConnectRequest{})
	if err != nil {
		return fmt.Errorf("ask for its process: %w", err)
	}
	fd, err := unix.PidfdOpen(int(resp.ShimPid), 0)
	if err != nil {
		return fmt.Errorf("find its process: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("kill it: %w", err)
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(shimPatience.Milliseconds()))
	return err
}

// deleteStrayContainers has runc forget containers that no shim holds.
func (r *Runtime) deleteStrayContainers(ctx context.Context, known map[string]bool) {
	root := filepath.Join(r.cfg.State, "runc", r.Namespace())
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		if known[e.Name()] {
			continue
		}
		path, err := r.runcPath()
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, 2*shimPatience)
		out, err := exec.CommandContext(ctx, path, "--root", root, "delete", "--force", e.Name()).CombinedOutput()
		cancel()
		if err != nil {
			r.cfg.Log.Warn("delete a container nobody holds", "container", e.Name(), "err", err, "output", string(out))
		}
	}
}
