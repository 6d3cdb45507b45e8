package runtime

import (
	"context"
	"io"
	"regexp"
	"syscall"
)

// MaxExecs bounds the further processes of one container at a time: each costs a program of the host that starts it.
const MaxExecs = 64

var execPattern = regexp.MustCompile(`^[a-z0-9]{1,64}$`)

// ExecSpec is a further process in a running container.
type ExecSpec struct {
	// ID tells it from the container's other processes: 1 to 64 lowercase letters and digits.
	ID   string
	Args []string
	// Env is added to the environment of the container's first process and wins over it.
	Env []string
	// Dir is the working directory; empty means the first process's.
	Dir string
	// User is "name", "uid", or either with ":group", by the container's own files; empty means the first process's.
	User string
	// TTY gives the process a terminal, of Height rows and Width columns when they are not 0; Stderr is not used then.
	TTY           bool
	Height, Width uint16
	// Privileged gives all capabilities.
	Privileged bool
	// Stdin is copied until it ends or the process does; nil is an empty one. Stdout and Stderr may be nil.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Validate reports why a process can never work, as a KindInvalid error.
func (s *ExecSpec) Validate() error {
	switch {
	case !execPattern.MatchString(s.ID):
		return Invalid("exec ID %q is not 1 to 64 lowercase letters and digits", s.ID)
	case len(s.Args) == 0 || s.Args[0] == "":
		return Invalid("no exec command specified")
	}
	return nil
}

// Process is a further process of a container. It ends with its container, and with the daemon: whoever asked for it is gone
// then. All methods are safe for concurrent use.
type Process interface {
	// PID is the process's number on the host.
	PID() int
	// Wait returns the exit code when the process has ended and its output has been written. It may be called again
	// only when its context ended before the process did.
	Wait(ctx context.Context) (int, error)
	// Resize sets the size of the terminal.
	Resize(ctx context.Context, height, width uint16) error
	// Signal sends a signal; a process that has ended is left alone.
	Signal(ctx context.Context, sig syscall.Signal) error
}
