// Package runtime says what a node can do with one task's container, without saying how.
//
// It stands between the agent, which decides the next step of a task, and an implementation that takes that step
// (runtime/containerd on a real node, runtime/fake in tests; runtime/conformance is the suite that both pass). It knows
// the task's spec as the user wrote it and the paths that the node prepared for it. It must not know about the cluster:
// no services, no desired state, no restarts, no networks beyond the path of a namespace, no log files.
package runtime

import (
	"context"
	"os"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
)

// Spec is all that an implementation needs to make one container. It is a value: two Specs with the same ID describe
// the same container, and an implementation may ignore all but the ID when that container exists already.
type Spec struct {
	// ID is the container's ID, 64 lowercase hex characters.
	ID string
	// TaskID and Name identify the container to people; Name is unique on the node by construction, not by check.
	TaskID, Name string
	// Labels are the container's labels as Docker shows them, the orchestrator's own included.
	Labels map[string]string
	// Task is the task's spec; its ContainerSpec must be set. Resources, mounts and the rest are read from it.
	Task swarm.TaskSpec
	// ImageDigest is the digest the image's name is pinned to ("sha256:…"); empty means whatever the name says now.
	ImageDigest string
	// Hostname is the container's host name, templates expanded. Empty means the first 12 characters of ID.
	Hostname string
	// NetNS is the path of the network namespace to join; it must exist before Start. Empty means a new, empty one,
	// HostNetNS that of the host.
	NetNS string
	// Stdout and Stderr are FIFO paths that exist and have a reader before Start. Empty means the stream is discarded.
	Stdout, Stderr string
	// ResolvConf, HostsFile and HostnameFile are bound over the files of those names in /etc; empty leaves the image's.
	ResolvConf, HostsFile, HostnameFile string
	// Env replaces the spec's environment when it is not nil, for templates that only the node can expand.
	Env []string
	// Mounts are binds beyond the user's own: secrets, configs. Sources must exist before Prepare.
	Mounts []Mount
}

// HostNetNS as a Spec's NetNS leaves the container in the host's network namespace.
const HostNetNS = "host"

// Mount is a file or directory of the host that the container sees at Target.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// State is where a container is in its life.
type State string

// The states of a container, in order. A container that is in none of them does not exist.
const (
	Created State = "created" // prepared, never started
	Running State = "running"
	Exited  State = "exited" // started once, runs no more
)

// Exit is how a container's first process ended.
type Exit struct {
	// Code is the exit code, 128+n for a death by signal n, as a shell has it.
	Code int
	// OOMKilled reports that the kernel killed a process of the container for lack of memory.
	OOMKilled bool
	// At is when it ended, by the node's clock. Zero when nobody saw it.
	At time.Time
	// Err says what is unusual about this end (the shim died, the node rebooted); empty for an ordinary one.
	Err string
}

// Status is what is known of a container now.
type Status struct {
	State     State
	PID       int // of the first process, as the host numbers it; 0 unless Running
	CreatedAt time.Time
	StartedAt time.Time
	Exit      Exit // valid when State is Exited
	// StopSignal is the name or number of the signal that asks it to end, StopGrace how long it may take.
	StopSignal string
	StopGrace  time.Duration
	// Healthcheck is what the task's spec asks for, or else its image, Docker's defaults filled in; nil when neither
	// asks for one.
	Healthcheck *container.HealthConfig
}

// Container is one entry of List.
type Container struct {
	ID, TaskID, Name string
	Image            string // as the task's spec names it
	ImageDigest      string // of the manifest it was made from
	Labels           map[string]string
	// Volumes are the names of the volumes it mounts: those of its task's mounts in their order, then those that its
	// image asks for.
	Volumes []string
	// Mounts are what its task and its image asked for, in the same order; nil for a container of an earlier version.
	Mounts []MountPoint
	Status
}

// Details is what an implementation made of a container's spec and its image: what really runs, placeholders expanded.
type Details struct {
	Args, Env                       []string
	Dir, Hostname                   string
	NetNS                           string // path of its network namespace; empty for the host's
	ResolvConf, Hosts, HostnameFile string // paths on the host of what is bound over them
	MaskedPaths, ReadonlyPaths      []string
	Sysctls                         map[string]string
	// Layers are the directories of its file system by Docker's names: LowerDir, UpperDir, WorkDir, MergedDir.
	Layers map[string]string
}

// MountPoint is a place in a container that its task or its image asked for.
type MountPoint struct {
	Type mount.Type `json:"type"`
	// Name is a volume's; Source is the path on the host, empty when there is none.
	Name        string `json:"name,omitempty"`
	Source      string `json:"source,omitempty"`
	Target      string `json:"target"`
	ReadOnly    bool   `json:"readOnly,omitempty"`
	Propagation string `json:"propagation,omitempty"`
	// Anonymous volumes go with their container.
	Anonymous bool `json:"anonymous,omitempty"`
}

// Layers are the directories of an overlay file system: what the container changed is in Upper, what it began with in
// Lower, highest first. Mounted are the paths in the container at which something else is mounted.
type Layers struct {
	Upper          string
	Lower, Mounted []string
}

// Controller drives one container, one step at a time. Every step may be repeated: a step that was already taken
// returns as if it had just been taken, so that an agent that lost its memory starts again from Prepare.
//
// Wait may run beside any other method; the others of one container are taken one after the other, and an
// implementation serialises them itself. Cancelling a context abandons the step without undoing it.
type Controller interface {
	// Prepare makes the container without starting it: the image is found and unpacked, volumes are made, bind
	// sources are checked. Errors: KindImageMissing, KindMount, KindInvalid, KindRuncMissing, or plain.
	Prepare(ctx context.Context) error
	// Start starts a prepared container and returns the process ID of its first process. A container that runs or
	// has ended is left alone (the process ID is then 0 if it has ended). Errors: KindCommand with the exit code a
	// shell would give, KindMount for a part of a volume that is not there any more, KindRuncMissing, or plain.
	Start(ctx context.Context) (pid int, err error)
	// Wait returns when a started container has ended. A container that was never started blocks until it is
	// started and ends, or ctx is cancelled; one that is removed meanwhile gives ErrNotFound.
	Wait(ctx context.Context) (Exit, error)
	// Stop asks the container to end by its stop signal, kills it when its grace period is over, and returns when
	// it has ended. One that does not run is left alone.
	Stop(ctx context.Context) error
	// Kill ends the container at once and returns when it has ended. One that does not run is left alone.
	Kill(ctx context.Context) error
	// Remove kills the container if it runs and forgets it: its file system, its anonymous volumes, its exit.
	// Removing what does not exist is no error.
	Remove(ctx context.Context) error
	// Exec starts a further process in a running container. It may run beside any other method. The context bounds the
	// start only. Errors: KindNotRunning, KindInvalid, KindCommand with the exit code a shell would give, or plain.
	Exec(ctx context.Context, spec ExecSpec) (Process, error)
	// Signal sends a signal to the first process of a running container, and does not wait for what comes of it. Errors:
	// KindNotRunning or plain. Signal, Usage, Processes, Root and Layers may run beside any other method.
	Signal(ctx context.Context, sig syscall.Signal) error
	// Usage reports what a running container uses. Errors: KindNotRunning or plain.
	Usage(ctx context.Context) (Usage, error)
	// Processes returns the processes of a running container as the host numbers them, in order. Errors: KindNotRunning
	// or plain.
	Processes(ctx context.Context) ([]int, error)
	// Root opens the root directory of a container as its programs see it, or saw it before it ended, with what is mounted
	// there. It is good until release is called, which closes it. Errors: ErrNotFound or plain.
	Root(ctx context.Context) (dir *os.File, release func(), err error)
	// Layers tells of what directories of the host a container's file system is made. Errors: ErrNotFound or plain.
	Layers(ctx context.Context) (Layers, error)
	// Status reports the container's state, or ErrNotFound.
	Status(ctx context.Context) (Status, error)
}

// Runtime owns the containers of one node. All methods are safe for concurrent use.
type Runtime interface {
	// Run serves until ctx is cancelled, and stops no container then. The other methods wait for it to be ready.
	Run(ctx context.Context) error
	// Check reports whether containers could be made now, with an error that says what to install or repair.
	Check(ctx context.Context) error
	// Controller returns the controller for spec. It fails with KindInvalid for a spec that can never work.
	Controller(spec Spec) (Controller, error)
	// Open returns a controller for a container that List named, whose spec is no longer known. Its Prepare fails;
	// all other steps work.
	Open(id string) (Controller, error)
	// List returns every container it knows, ended ones included, ordered by ID.
	List(ctx context.Context) ([]Container, error)
}
