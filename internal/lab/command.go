package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Exit codes of a Command whose program could not be started, as a shell's.
const (
	exitCannotRun = 126
	exitNotFound  = 127
)

// waitDelay is how long after a program's end its output is still read.
const waitDelay = 5 * time.Second

// Command is a command that will run inside the host, with the caller's
// environment and working directory unless they are set on it, in the host's
// sub-group "init". Signals sent to it reach the program; its exit status is the
// program's (128 + the signal when one killed it). When ctx ends it is killed.
// It cannot be started while the host is down.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	space, err := networkInode(h.Pid())
	if err != nil {
		cmd.Err = fmt.Errorf("lab: host %s is down", h.name)
		return cmd
	}
	// A program may leave children that hold its output open; do not wait for them.
	cmd.WaitDelay = waitDelay
	cmd.Args = append([]string{argEnter, strconv.Itoa(h.Pid()), strconv.FormatUint(space, 10), h.Group(), name}, args...)
	return cmd
}

// Output runs a command inside the host and returns its standard output; its
// standard error becomes part of the error.
func (h *Host) Output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := h.Command(ctx, name, args...).Output()
	if err != nil {
		err = fmt.Errorf("on %s: %s %s: %w", h.name, name, strings.Join(args, " "), err)
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
	}
	return string(out), err
}

// enter is the process behind Command: it moves into the host and runs the program
// there as its child, because only a child can be in the host's PID namespace.
func enter(args []string) error {
	if len(args) < 4 {
		return errors.New("want a pid, an inode, a group and a command")
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	wantNet, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	group := args[2]

	runtime.LockOSThread() // the namespaces are this thread's; its child gets them
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := moveInto(pid, wantNet, group); err != nil {
		return fmt.Errorf("entering the host: %w", err)
	}
	if err := os.Chdir(dir); err != nil { // setns leaves us at the host's root
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	child, err := os.StartProcess("/proc/self/exe", append([]string{argRun}, args[3:]...), &os.ProcAttr{Files: inheritedFiles(), Env: os.Environ()})
	if err != nil {
		return err
	}
	go func() {
		for s := range signals {
			_ = child.Signal(s) // it may have ended meanwhile
		}
	}()
	state, err := child.Wait()
	if err != nil {
		return err
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		os.Exit(128 + int(ws.Signal()))
	}
	os.Exit(state.ExitCode())
	return nil
}

// runProgram turns this process, inside the host already, into the program. In
// between it arranges to die with the process outside, which the parent cannot do
// over the border of a PID namespace: Go takes a parent it cannot see for dead.
func runProgram(args []string) error {
	runtime.LockOSThread() // the arrangement is this thread's, and stays with its exec
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	if args[0] == argSnapshot {
		return printSnapshot()
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitNotFound)
	}
	return unix.Exec(path, args, os.Environ())
}

// inheritedFiles are the descriptors that the caller of Command passed on: the
// standard three and its ExtraFiles. Go opens its own with close-on-exec.
func inheritedFiles() []*os.File {
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	for fd := 3; ; fd++ {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			return files
		}
		files = append(files, os.NewFile(uintptr(fd), "inherited"))
	}
}

// moveInto puts the calling thread into the host's namespaces and this process into
// its group, after it has made sure that pid still is that host.
func moveInto(pid int, wantNet uint64, group string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	have, err := networkInode(pid)
	if err != nil {
		return err
	}
	if have != wantNet {
		return fmt.Errorf("process %d is another host by now", pid)
	}
	if err := joinGroup(filepath.Join(group, initGroup), os.Getpid()); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns to a mount namespace wants it
		return err
	}
	return unix.Setns(fd, unix.CLONE_NEWCGROUP|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS|unix.CLONE_NEWNET|unix.CLONE_NEWPID|unix.CLONE_NEWNS)
}

// InNetNS runs f on a thread that is in the host's network namespace. Goroutines
// that f starts are not. The mounts stay the caller's.
func (h *Host) InNetNS(f func() error) error {
	h.mu.Lock()
	if h.init == nil || h.net <= 0 {
		h.mu.Unlock()
		return fmt.Errorf("lab: host %s is down", h.name)
	}
	dup, err := unix.FcntlInt(uintptr(h.net), unix.F_DUPFD_CLOEXEC, 0)
	h.mu.Unlock()
	if err != nil {
		return fmt.Errorf("lab: entering %s: %w", h.name, err)
	}
	defer unix.Close(dup)
	return onThread(func() error {
		if err := netns.Set(netns.NsHandle(dup)); err != nil {
			return fmt.Errorf("lab: entering %s: %w", h.name, err)
		}
		if err := Inside(); err != nil {
			return err
		}
		return f()
	})
}

// Dial connects from inside the host. For TCP and UDP the address must be numeric;
// for a unix socket it is the path inside the host.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	if network == "unix" {
		return d.DialContext(ctx, network, h.Path(address))
	}
	// A name would be looked up on another thread, outside of the host.
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("lab: dialling from %s: want a numeric address: %w", h.name, err)
	}
	var conn net.Conn
	err := h.InNetNS(func() error {
		var err error
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen opens a listener inside the host, at a numeric address or a path inside it.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	if network == "unix" {
		return net.Listen(network, h.Path(address))
	}
	var l net.Listener
	err := h.InNetNS(func() error {
		var err error
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// HTTPClient is a client whose connections come from the host. It keeps none open
// and follows no redirect.
func (h *Host) HTTPClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DialContext: h.Dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
