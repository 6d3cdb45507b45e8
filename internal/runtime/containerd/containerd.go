// Package containerd runs containers by containerd, which lives inside this process, or by one of the system's.
//
// It stands below the agent as the real implementation of package runtime, and lends its client to the image store. A
// container's parent is a shim process that outlives the daemon; this package finds its shims again after a restart
// and learns what ended meanwhile. It must not know about the cluster, about networks beyond a namespace's path, or
// about log files beyond a FIFO's path.
//
// Three records describe a container: containerd's own (for its task manager), a snapshot (the file system), and
// a file of ours under Root/skep with what containerd has no place for. The file is the authority on labels and exits.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/skep-swarm/skep/internal/runtime"
)

// Volumes makes the named volumes that tasks mount. Implementations are safe for concurrent use.
type Volumes interface {
	// Mount returns the directory of a volume for a container, ready for use. The volume is made if it does not exist. It may
	// be repeated.
	Mount(ctx context.Context, container, name string, labels, options map[string]string) (path string, err error)
	// Fill copies what is in a directory to a volume if that one is empty, after a Mount.
	Fill(ctx context.Context, name, source string) error
	// Unmount says that the container does not use the volume any more. It may be repeated.
	Unmount(ctx context.Context, container, name string) error
	// Sweep comes once, after a Mount for each container that lives: what others used is not in use any more.
	Sweep(ctx context.Context) error
	// Remove deletes the volume; one that does not exist is no error.
	Remove(ctx context.Context, name string) error
}

// maxSocketDir is containerd's limit for the folder of shim sockets, in bytes.
const maxSocketDir = 42

// Config is what an instance needs. Several instances may live in one process, each with roots of its own.
type Config struct {
	// Root keeps images, snapshots and records over reboots; State keeps sockets and bundles until the next boot.
	// State must be at most 40 bytes long, for sockets are made in it.
	Root, State string
	// Instance is the daemon's 6 hex characters, which keep its names on the host apart from another's.
	Instance string
	// Shim is the absolute path of the shim program, the same after an upgrade, for containers remember it. With
	// Address it is needed only for tasks that want an init process.
	Shim string
	// Runc is the name or path of the OCI runtime; empty means "runc".
	Runc string
	// Address is the socket of a containerd to use instead of one in this process; empty for none.
	Address string
	// Volumes makes volumes; required when tasks mount any.
	Volumes Volumes
	// Notify hears what happens to containers; nil is fine. It returns at once, and is called from many goroutines.
	Notify func(runtime.Event)
	// Log receives what containerd has to say; required.
	Log *slog.Logger
}

// Runtime implements runtime.Runtime.
type Runtime struct {
	cfg    Config
	ready  chan struct{} // closed when Run has opened everything, or failed to
	failed error         // why it could not be opened; read after ready

	client  *client.Client
	images  *imageCache
	filters seccompCache
	closer  func() error

	life     context.Context // ends with Run; watchers live in it
	watchers sync.WaitGroup

	visits atomic.Int64 // how often an ended container's files were looked at

	mu    sync.Mutex
	units map[string]*unit
}

var _ runtime.Runtime = (*Runtime)(nil)

// New returns a runtime that does nothing until Run is called. It fails for a configuration that cannot work.
func New(cfg Config) (*Runtime, error) {
	if cfg.Runc == "" {
		cfg.Runc = "runc"
	}
	switch {
	case !filepath.IsAbs(cfg.Root) || !filepath.IsAbs(cfg.State):
		return nil, fmt.Errorf("containerd root %q and state %q must be absolute paths", cfg.Root, cfg.State)
	case cfg.Instance == "":
		return nil, errors.New("containerd instance name is empty")
	case cfg.Log == nil:
		return nil, errors.New("containerd needs a logger")
	case cfg.Address == "" && !filepath.IsAbs(cfg.Shim):
		return nil, fmt.Errorf("shim path %q must be absolute", cfg.Shim)
	}
	if dir := filepath.Join(cfg.State, "s"); len(dir) > maxSocketDir {
		return nil, fmt.Errorf("state directory %s is too long: sockets need %d bytes or less (choose a shorter --exec-root)",
			cfg.State, maxSocketDir-2)
	}
	return &Runtime{cfg: cfg, ready: make(chan struct{}), units: make(map[string]*unit)}, nil
}

// Run opens the stores, adopts the containers that live, and serves until ctx ends. It stops no container.
func (r *Runtime) Run(ctx context.Context) error {
	life, cancel := context.WithCancel(r.namespaced(ctx))
	defer cancel()
	r.life = life
	silenceDefaultLog()
	if r.failed = r.open(life); r.failed != nil {
		close(r.ready)
		return r.failed
	}
	close(r.ready)
	<-ctx.Done()
	r.watchers.Wait()
	// Not before: runc makes a container's group in two steps, and its parent must not go in between.
	r.removeCgroupParents()
	if err := r.closer(); err != nil {
		return fmt.Errorf("close containerd: %w", err)
	}
	return nil
}

// Namespace is the containerd namespace of this instance; contexts for Client must carry it.
func (r *Runtime) Namespace() string { return "skep-" + r.cfg.Instance }

func (r *Runtime) namespaced(ctx context.Context) context.Context {
	return namespaces.WithNamespace(withLog(ctx, r.cfg.Log), r.Namespace())
}

// Client returns the containerd client once Run has opened it. Its default namespace is Namespace.
func (r *Runtime) Client(ctx context.Context) (*client.Client, error) {
	if err := r.await(ctx); err != nil {
		return nil, err
	}
	return r.client, nil
}

// await blocks until Run has opened the runtime.
func (r *Runtime) await(ctx context.Context) error {
	select {
	case <-r.ready:
		if r.failed != nil {
			return fmt.Errorf("container runtime is not available: %w", r.failed)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Check implements runtime.Runtime: it looks for runc and, in process, for the shim.
func (r *Runtime) Check(ctx context.Context) error {
	if _, err := r.runcPath(); err != nil {
		return err
	}
	if r.cfg.Address == "" {
		if _, err := os.Stat(r.cfg.Shim); err != nil {
			return fmt.Errorf("find the container shim: %w", err)
		}
	}
	return ctx.Err()
}

func (r *Runtime) runcPath() (string, error) {
	path, err := exec.LookPath(r.cfg.Runc)
	if err != nil {
		return "", runtime.RuncMissing(r.cfg.Runc, err)
	}
	return path, nil
}

// Controller implements runtime.Runtime.
func (r *Runtime) Controller(spec runtime.Spec) (runtime.Controller, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	return &controller{r: r, id: spec.ID, spec: &spec}, nil
}

// Open implements runtime.Runtime.
func (r *Runtime) Open(id string) (runtime.Controller, error) {
	return &controller{r: r, id: id}, nil
}

// List implements runtime.Runtime.
func (r *Runtime) List(ctx context.Context) ([]runtime.Container, error) {
	if err := r.await(ctx); err != nil {
		return nil, err
	}
	r.mu.Lock()
	units := make([]*unit, 0, len(r.units))
	for _, u := range r.units {
		units = append(units, u)
	}
	r.mu.Unlock()
	list := make([]runtime.Container, 0, len(units))
	for _, u := range units {
		if c, ok := u.describe(); ok {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b runtime.Container) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// unit returns the unit of a container, or nil. With make it is added when it is missing.
func (r *Runtime) unit(id string, add bool) *unit {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.units[id]
	if u == nil && add {
		u = &unit{r: r, id: id}
		r.units[id] = u
	}
	return u
}
