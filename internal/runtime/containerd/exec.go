package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/runtime"
)

const (
	// execLimit bounds making and starting a further process.
	execLimit = 30 * time.Second
	// drainLimit is how long the output of an ended process is waited for: a child of it that lives on in the
	// background holds the pipe open.
	drainLimit = time.Second
)

// Exec implements runtime.Controller.
func (c *controller) Exec(ctx context.Context, s runtime.ExecSpec) (runtime.Process, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	u, err := c.find(ctx)
	if err != nil {
		return nil, err
	}
	status, ok := u.describe()
	if !ok {
		return nil, c.notFound()
	}
	if status.State != runtime.Running {
		return nil, runtime.NotRunning(c.id)
	}
	if n := u.execs.Add(1); n > runtime.MaxExecs {
		u.execs.Add(-1)
		return nil, runtime.Invalid("container %s runs %d further processes already, which is its limit", c.id[:12], runtime.MaxExecs)
	}
	p, err := c.exec(ctx, u, status.PID, &s)
	if err != nil {
		u.execs.Add(-1)
		return nil, err
	}
	return p, nil
}

func (c *controller) exec(ctx context.Context, u *unit, pid int, s *runtime.ExecSpec) (runtime.Process, error) {
	ctx = c.r.namespaced(ctx)
	limited, cancel := context.WithTimeout(ctx, execLimit)
	defer cancel()
	container, err := c.r.client.LoadContainer(limited, c.id)
	if err != nil {
		return nil, fmt.Errorf("find container %s: %w", c.id[:12], err)
	}
	spec, err := container.Spec(limited)
	if err != nil {
		return nil, fmt.Errorf("read the spec of container %s: %w", c.id[:12], err)
	}
	process, err := c.r.execProcess(spec, pid, s)
	if err != nil {
		return nil, err
	}
	task, err := container.Task(limited, nil)
	if errdefs.IsNotFound(err) {
		return nil, runtime.NotRunning(c.id)
	}
	if err != nil {
		return nil, fmt.Errorf("find the process of container %s: %w", c.id[:12], err)
	}
	p := &execProcess{u: u, stdin: &stdinEnd{from: s.Stdin, ended: make(chan struct{})}}
	stdout, stderr := p.output.to(s.Stdout), p.output.to(s.Stderr)
	streams := cio.WithStreams(nil, stdout, stderr)
	if s.Stdin != nil {
		streams = cio.WithStreams(p.stdin, stdout, stderr)
	}
	opts := []cio.Opt{streams, cio.WithFIFODir(filepath.Join(c.r.cfg.State, "exec"))}
	if s.TTY {
		opts = append(opts, cio.WithTerminal)
	}
	if p.process, err = task.Exec(limited, s.ID, process, cio.NewCreator(opts...)); err != nil {
		return nil, execError(err, c.id)
	}
	// The caller's context bounds the start only.
	if p.exit, err = p.process.Wait(c.r.namespaced(c.r.life)); err == nil {
		err = p.process.Start(limited)
	}
	if err != nil {
		_, gone := p.process.Delete(context.WithoutCancel(limited))
		if errdefs.IsNotFound(gone) {
			gone = nil
		}
		return nil, errors.Join(execError(err, c.id), gone)
	}
	if s.TTY && s.Height != 0 && s.Width != 0 {
		_ = p.Resize(limited, s.Height, s.Width) // a process that has ended needs no size
	}
	p.closing.Go(func() { p.closeStdin(ctx) })
	return p, nil
}

// execProcess is the further process for runc: the first process's, with what the caller asks for otherwise.
func (r *Runtime) execProcess(spec *specs.Spec, pid int, s *runtime.ExecSpec) (*specs.Process, error) {
	p := *spec.Process
	p.Args, p.Terminal = s.Args, s.TTY
	p.Env = mergeEnv(p.Env, s.Env)
	if s.TTY && s.Height != 0 && s.Width != 0 {
		// Also before it starts: a program that looks at once must see it.
		p.ConsoleSize = &specs.Box{Height: uint(s.Height), Width: uint(s.Width)}
	}
	if s.TTY && !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	if s.Dir != "" {
		if !filepath.IsAbs(s.Dir) {
			return nil, runtime.Invalid("the working directory '%s' is invalid, it needs to be an absolute path", s.Dir)
		}
		p.Cwd = s.Dir
	}
	caps := []string(nil)
	if p.Capabilities != nil {
		caps = p.Capabilities.Bounding
	}
	if s.Privileged {
		all, err := capabilities([]string{"ALL"}, nil)
		if err != nil {
			return nil, err
		}
		caps = all
		p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	}
	if s.User == "" {
		return &p, nil
	}
	root := filepath.Join("/proc", strconv.Itoa(pid), "root")
	passwd, err := readRunning(root, "etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := readRunning(root, "etc/group")
	if err != nil {
		return nil, err
	}
	u, err := lookupUser(&swarm.ContainerSpec{User: s.User}, &image{}, passwd, group)
	if err != nil {
		return nil, err
	}
	p.User = execUser(u)
	if !s.Privileged {
		p.Capabilities = grantedTo(u, caps)
	}
	return &p, nil
}

// mergeEnv adds variables; a later one of the same name wins, and a bare name takes a variable away.
func mergeEnv(base, more []string) []string {
	out := slices.Clone(base)
	for _, e := range more {
		name, _, set := strings.Cut(e, "=")
		out = slices.DeleteFunc(out, func(o string) bool { return strings.HasPrefix(o, name+"=") })
		if set {
			out = append(out, e)
		}
	}
	return out
}

// readRunning reads a file of a running container, which may change its links at any moment: the kernel keeps the lookup
// inside of root. A file that is not there is an empty one.
func readRunning(root, name string) ([]byte, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the container's file system: %w", err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, nil // a file that cannot be opened is as good as none
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, nil // the same
	}
	return io.ReadAll(io.LimitReader(f, maxUserFile))
}

// output tells whether what a process wrote is still on its way to a reader who takes his time.
type output struct {
	writing atomic.Int32
	written atomic.Int64
}

func (o *output) to(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return &outputWriter{o, w}
}

type outputWriter struct {
	o *output
	w io.Writer
}

func (w *outputWriter) Write(b []byte) (int, error) {
	w.o.writing.Add(1)
	defer w.o.writing.Add(-1)
	n, err := w.w.Write(b)
	w.o.written.Add(int64(n))
	return n, err
}

// drain waits for the output of an ended process, and gives up when no more has come for drainLimit.
func (o *output) drain(streams cio.IO) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		streams.Wait()
	}()
	tick := time.NewTicker(drainLimit)
	defer tick.Stop()
	for before := int64(-1); ; {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		if now := o.written.Load(); now == before && o.writing.Load() == 0 {
			streams.Cancel()
		} else {
			before = now
		}
	}
}

// execError finds the kind of error in what containerd and runc say of a further process.
func execError(err error, id string) error {
	if e := runtime.CommandFailed(err.Error(), err); e != nil {
		return e
	}
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) || strings.Contains(err.Error(), "process already finished") {
		return runtime.NotRunning(id)
	}
	return fmt.Errorf("exec in container %s: %w", id[:12], err)
}

// stdinEnd tells when its reader has come to its end.
type stdinEnd struct {
	from  io.Reader
	once  sync.Once
	ended chan struct{}
}

func (s *stdinEnd) Read(b []byte) (int, error) {
	n, err := s.from.Read(b)
	if err != nil {
		s.once.Do(func() { close(s.ended) })
	}
	return n, err
}

// execProcess implements runtime.Process.
type execProcess struct {
	u       *unit
	process client.Process
	exit    <-chan client.ExitStatus
	stdin   *stdinEnd
	output  output
	closing sync.WaitGroup
}

// PID implements runtime.Process.
func (p *execProcess) PID() int { return int(p.process.Pid()) }

// Wait implements runtime.Process.
func (p *execProcess) Wait(ctx context.Context) (int, error) {
	var status client.ExitStatus
	select {
	case status = <-p.exit:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	defer p.u.execs.Add(-1)
	streams := p.process.IO()
	p.output.drain(streams)
	p.stdin.once.Do(func() { close(p.stdin.ended) })
	p.closing.Wait()
	clear, cancel := context.WithTimeout(context.WithoutCancel(p.u.r.namespaced(ctx)), execLimit)
	defer cancel()
	if err := p.clear(clear); err != nil {
		return 0, fmt.Errorf("clear away an ended process: %w", err)
	}
	if err := status.Error(); err != nil {
		// Its shim went, and with it the container.
		return killed, nil // this is how the process ended
	}
	return int(status.ExitCode()), nil
}

// clear removes an ended process from its shim, which tells of an exit a moment before it takes note itself.
func (p *execProcess) clear(ctx context.Context) error {
	for {
		_, err := p.process.Delete(ctx)
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if !errdefs.IsFailedPrecondition(err) {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// closeStdin lets the process see the end of its input; the shim holds the pipe open until it is told.
func (p *execProcess) closeStdin(ctx context.Context) {
	if p.stdin.from == nil {
		return
	}
	<-p.stdin.ended
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), execLimit)
	defer cancel()
	_ = p.process.CloseIO(limited, client.WithStdinCloser) // a process that has ended reads no more
}

// Resize implements runtime.Process.
func (p *execProcess) Resize(ctx context.Context, height, width uint16) error {
	err := p.process.Resize(p.u.r.namespaced(ctx), uint32(width), uint32(height))
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("resize a terminal: %w", err)
	}
	return nil
}

// Signal implements runtime.Process.
func (p *execProcess) Signal(ctx context.Context, sig syscall.Signal) error {
	err := p.process.Kill(p.u.r.namespaced(ctx), sig)
	if err != nil && !errdefs.IsNotFound(err) && !strings.Contains(err.Error(), "process already finished") {
		return fmt.Errorf("signal a process: %w", err)
	}
	return nil
}
