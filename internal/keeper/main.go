package keeper

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/keeper/ports"
)

// readyFD is where the keeper says "ok" or why it cannot start.
const readyFD = 3

// Main is the keeper process; args are the arguments behind the words that
// lead to it, such as those after "skep keeper". It returns the exit code.
// Only Client starts it: descriptor 3 is a pipe for its first words.
func Main(args []string) int {
	flags := flag.NewFlagSet("keeper", flag.ContinueOnError)
	dir := flags.String("dir", "", "the keeper's `directory`")
	build := flags.String("build", "", "what tells this program from a later one")
	takeover := flags.Bool("takeover", false, "replace the running keeper")
	detach := flags.Bool("detach", false, "start the keeper as a process of its own and return")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *dir == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "keeper: started by the daemon with --dir only")
		return 2
	}
	ready := os.NewFile(readyFD, "ready")
	var err error
	if *detach {
		err = detached(args, *dir, ready)
	} else {
		err = serve(*dir, *build, *takeover, ready)
	}
	if err != nil {
		fmt.Fprintln(ready, err) // nobody listens once "ok" was said
		return 1
	}
	return 0
}

// detached starts the keeper in a session of its own. The process between
// ends, so that the keeper is init's child and nobody else must wait for it.
func detached(args []string, dir string, ready *os.File) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the keeper's program: %w", err)
	}
	logFile, err := os.OpenFile(filepath.Join(dir, "keeper.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("opening the keeper's log: %w", err)
	}
	prefix := os.Args[1 : len(os.Args)-len(args)]
	cmd := exec.Command(self, append(append([]string(nil), prefix...), without(args, "-detach")...)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{ready}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the keeper: %w", err)
	}
	return nil
}

func without(args []string, drop string) []string {
	var out []string
	for _, a := range args {
		if a != drop {
			out = append(out, a)
		}
	}
	return out
}

// serve is the keeper's life.
func serve(dir, build string, takeover bool, ready *os.File) error {
	unix.CloseOnExec(readyFD)
	// Little memory matters more here than a little time.
	debug.SetGCPercent(50)
	runtime.GOMAXPROCS(min(runtime.NumCPU(), 4))
	// The keeper is the last one to kill: the tasks lean on it.
	os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0o644)

	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer cancel()
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)

	s := &server{dir: dir, build: build, logs: newLogTable(dir), holder: ports.NewHolder(), names: newNames(dir), ending: ctx}
	s.log = slog.New(slog.NewTextHandler(&boundedLog{file: os.Stderr}, nil)).With("pid", os.Getpid())
	if err := os.MkdirAll(filepath.Join(dir, "table"), 0o700); err != nil {
		return fmt.Errorf("making the keeper's directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("closing the keeper's directory to others: %w", err)
	}
	start := s.claim
	if takeover {
		start = s.takeOver
	}
	if err := start(); err != nil {
		return err
	}
	if _, err := io.WriteString(ready, "ok\n"); err != nil {
		s.log.Warn("whoever started this keeper is gone")
	}
	ready.Close()
	s.log.Info("keeper runs", "build", build, "takeover", takeover)
	stop := context.AfterFunc(ctx, func() { s.keep.Store(true) })
	defer stop()
	err := s.run(ctx)
	s.log.Info("keeper ends", "err", err)
	return err
}

// boundedLog is the keeper's own log; it starts again when it grows long.
type boundedLog struct {
	mu   sync.Mutex
	file *os.File // opened to append
}

func (b *boundedLog) Write(p []byte) (int, error) {
	const limit = 256 << 10
	b.mu.Lock()
	defer b.mu.Unlock()
	if st, err := b.file.Stat(); err == nil && st.Mode().IsRegular() && st.Size() > limit {
		b.file.Truncate(0)
	}
	return b.file.Write(p)
}

func socketPath(dir string) string { return filepath.Join(dir, "keeper.sock") }

// errRuns tells that another keeper holds the lock.
var errRuns = errors.New("another keeper runs in this directory")

// takeLock makes this process the directory's keeper until it ends.
func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the keeper's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, errRuns
		}
		return nil, fmt.Errorf("taking the keeper's lock: %w", err)
	}
	return f, nil
}

// viaDir calls fn with a name for the socket that is short enough for the
// kernel (108 bytes), however long the directory's is.
func viaDir(dir string, fn func(name string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return fn(socketPath("/proc/self/fd/" + strconv.Itoa(int(d.Fd()))))
}

func listen(dir string) (l *net.UnixListener, err error) {
	err = viaDir(dir, func(name string) error {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

func dial(dir string) (c *net.UnixConn, err error) {
	err = viaDir(dir, func(name string) error {
		c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"})
		return err
	})
	return c, err
}
