package containerd

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// shimProcess is a shim that this process started, and must therefore reap. A nil one is somebody else's.
type shimProcess struct {
	process *os.Process
	socket  string
}

// shimPatience is how long a shim may take to end after it was told to.
const shimPatience = 5 * time.Second

// socketName is the length of a shim socket's name: the beginning of the container's ID, for paths of sockets are short.
const socketName = 24

// maxShimLog is the size at which the shims' common error log starts anew, in bytes.
const maxShimLog = 1 << 20

// socket is where the shim of a container listens.
func (r *Runtime) socket(id string) string { return filepath.Join(r.cfg.State, "s", id[:socketName]) }

// exitFile is where the shim of a container leaves its exit when its task is deleted.
func (r *Runtime) exitFile(id string) string { return r.socket(id) + ".exit" }

// dropSocket removes what a shim that is gone leaves in the socket folder.
func (r *Runtime) dropSocket(id string) {
	if r.cfg.Address == "" {
		_ = os.Remove(r.socket(id))
		_ = os.Remove(r.exitFile(id))
	}
}

// startShim starts the shim for a container, with a listening socket as its file descriptor 3. It returns at once: who
// connects before the shim has started waits in the socket's queue.
func (r *Runtime) startShim(id string) (*shimProcess, error) {
	socket := r.socket(id)
	_ = os.Remove(socket) // of an attempt that failed
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the shim's socket: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	inherited, err := listener.File()
	if err != nil {
		return nil, fmt.Errorf("share the shim's socket: %w", err)
	}
	defer inherited.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the shim's streams: %w", err)
	}
	defer null.Close()
	errors, err := r.shimLog()
	if err != nil {
		return nil, err
	}
	defer errors.Close()
	process, err := os.StartProcess(r.cfg.Shim, []string{r.cfg.Shim, "serve", r.Namespace(), socket}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + os.Getenv("PATH"), "GOMAXPROCS=1"}, // one at a time is enough, and each more costs memory
		Files: []*os.File{null, null, errors, inherited},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		_ = os.Remove(socket)
		return nil, fmt.Errorf("start the container's shim: %w", err)
	}
	return &shimProcess{process: process, socket: socket}, nil
}

// shimLog opens the file in which shims leave their last words.
func (r *Runtime) shimLog() (*os.File, error) {
	path := filepath.Join(r.cfg.State, "shims.log")
	flags := os.O_APPEND | os.O_CREATE | os.O_WRONLY
	if info, err := os.Stat(path); err == nil && info.Size() > maxShimLog {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the shims' log: %w", err)
	}
	return f, nil
}

// reap waits for a shim that was told to end, and kills it if it does not.
func (s *shimProcess) reap(ctx context.Context) {
	if s == nil {
		return
	}
	overdue := time.AfterFunc(shimPatience, func() { _ = s.process.Kill() })
	defer overdue.Stop()
	stop := context.AfterFunc(ctx, func() { _ = s.process.Kill() })
	defer stop()
	_, _ = s.process.Wait()
}

// kill ends a shim whose container was never made.
func (s *shimProcess) kill(ctx context.Context) {
	if s == nil {
		return
	}
	_ = s.process.Kill()
	s.reap(ctx)
}
