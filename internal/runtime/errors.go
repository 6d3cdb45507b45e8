package runtime

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNotFound is returned for a container that does not exist, wrapped with its ID.
var ErrNotFound = errors.New("no such container")

// Kind classifies an Error by what would make the step succeed.
type Kind int

// The kinds of errors that an agent tells apart. The texts are Docker's where Docker has one.
const (
	KindInvalid      Kind = iota + 1 // the spec can never work: reject the task
	KindImageMissing                 // the image is not on this node
	KindCommand                      // the command cannot be run; Code is 126 or 127 as a shell's, else 128
	KindMount                        // a bind source is missing, a volume cannot be made
	KindRuncMissing                  // the node has no OCI runtime
	KindNotRunning                   // the container does not run now
)

// Error is a failure that the agent handles by kind and the user reads by text.
type Error struct {
	Kind Kind
	Code int // exit code to report for KindCommand, else 0
	Text string
	Err  error // the cause, may be nil; Text includes what matters of it
}

// Error returns the text for the user.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first Error in err's chain, or 0.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return 0
}

// Invalid returns a KindInvalid error.
func Invalid(format string, args ...any) error {
	return &Error{Kind: KindInvalid, Text: fmt.Sprintf(format, args...)}
}

// ImageMissing returns Docker's error for an image that is not here.
func ImageMissing(name string, cause error) error {
	return &Error{Kind: KindImageMissing, Text: "No such image: " + name, Err: cause}
}

// BindSourceMissing returns Docker's error for a bind mount whose source does not exist.
func BindSourceMissing(path string) error {
	return &Error{Kind: KindMount,
		Text: fmt.Sprintf(`invalid mount config for type "bind": bind source path does not exist: %s`, path)}
}

// RuncMissing returns the error for a node without an OCI runtime.
func RuncMissing(name string, cause error) error {
	return &Error{Kind: KindRuncMissing, Err: cause,
		Text: fmt.Sprintf("OCI runtime %q not found: containers cannot start on this node (install it: apt-get install runc)", name)}
}

// CommandFailed classifies the text with which an OCI runtime refused to create or start a container: exit code 127 when
// the command does not exist, 126 when it may not be executed, as Docker reports them. It returns nil when the text
// is about something else.
func CommandFailed(text string, cause error) error {
	text = strings.TrimSuffix(text, ": unknown")
	lower := strings.ToLower(text)
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(lower, p) {
				return true
			}
		}
		return false
	}
	if !has("exec:", "exec \"", "starting container process", "start container process") {
		return nil
	}
	code := 0
	switch {
	case has("executable file not found", "no such file or directory", "system cannot find the file"):
		code = 127
	case has("permission denied", "is a directory", "not a directory", "exec format error"):
		code = 126
	default:
		return nil
	}
	return &Error{Kind: KindCommand, Code: code, Text: text, Err: cause}
}

// NotRunning returns Docker's error for something that only a running container can do.
func NotRunning(id string) error {
	return &Error{Kind: KindNotRunning, Text: fmt.Sprintf("container %s is not running", id)}
}
