package shim

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// InitName is the name by which the shim program, bound into a container, knows that it is to be its first process.
const InitName = "docker-init"

// beInit runs a command as the first process of a container should: it passes signals on, reaps every orphan, and ends as
// the command ends. A command that cannot be run gives the exit code a shell would give.
func beInit(args []string, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(stderr, InitName+": no command")
		return 127
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals) // before the command starts, so that none is lost
	path, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", InitName, err)
		return cannotRun(err)
	}
	attr := &os.ProcAttr{Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}}
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		// On a terminal the keys' signals go to the command alone, not to it and once more through here.
		attr.Sys = &syscall.SysProcAttr{Setpgid: true, Foreground: true, Ctty: 0}
	}
	child, err := os.StartProcess(path, args, attr)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", InitName, err)
		return cannotRun(err)
	}
	for s := range signals {
		switch s {
		case unix.SIGCHLD:
			if code, ended := reapAll(child.Pid); ended {
				return code
			}
		case unix.SIGURG, unix.SIGTTIN, unix.SIGTTOU, unix.SIGPIPE:
			// Go's own business, or the terminal's.
		default:
			_ = syscall.Kill(child.Pid, s.(syscall.Signal))
		}
	}
	return 0
}

func cannotRun(err error) int {
	if errors.Is(err, fs.ErrPermission) {
		return 126
	}
	return 127
}

// reapAll reaps what has ended, and reports how the process pid did if it was among it.
func reapAll(pid int) (code int, ended bool) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || got == 0:
			return code, ended
		case got == pid && status.Signaled():
			code, ended = 128+int(status.Signal()), true
		case got == pid:
			code, ended = status.ExitStatus(), true
		}
	}
}
