// Package agent is the node's end of the swarm: it keeps a session with a manager, drives each task of the node one step
// at a time through the runtime, gives tasks their network, logs and files, and reports what became of them.
//
// It stands between dispatch (through wire) and the node's means: runtime, netapply, keeper. What it was told last is on
// disk, so that a daemon that starts again, even without any manager, adopts its tasks as they are. It must not know
// why a task is here or what others run: it does not plan, it never replaces a task, and a failed one stays failed.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/keeper"
	"github.com/skep-swarm/skep/internal/keeper/dns"
	"github.com/skep-swarm/skep/internal/keeper/jsonlog"
	"github.com/skep-swarm/skep/internal/keeper/ports"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/vault"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
)

// Network is the node's networks; *netapply.Network is one. All methods may be called concurrently and repeated.
type Network interface {
	Sync(ctx context.Context, in netplan.Input) (changes int, err error)
	AddTask(ctx context.Context, t netplan.Task) (path string, err error)
	RemoveTask(ctx context.Context, id string) error
	SetPorts(ctx context.Context, set []netplan.Port, del []netplan.PortKey) error
	// SetOverlay comes before AddTask for a task of the network; RemoveOverlay after the last of them is removed.
	SetOverlay(ctx context.Context, o netplan.Overlay) error
	SetVIPs(ctx context.Context, network uint64, set []netplan.VIP, del []netip.Addr) error
	RemoveOverlay(ctx context.Context, network uint64) error
	// SetDNS says where in a task's namespace its resolver listens.
	SetDNS(ctx context.Context, id string, ports netplan.DNSPorts) error
}

// Keeper holds logs, ports and names over restarts of the daemon; *keeper.Client is one.
type Keeper interface {
	Open(ctx context.Context, spec keeper.LogSpec) (keeper.Files, error)
	Close(ctx context.Context, id string) error
	Remove(ctx context.Context, dir, id string) error
	Hold(ctx context.Context, list []ports.Port) ([]error, error)
	Probe(ctx context.Context, list []ports.Port) ([]error, error)
	Release(ctx context.Context, list []ports.Port) error
	OpenNames(ctx context.Context, cfg dns.TaskNames) (dns.Ports, error)
	CloseNames(ctx context.Context, id string) error
	SetNames(ctx context.Context, t dns.Table) error
	List(ctx context.Context) (keeper.Listing, error)
}

// Files keeps the files of containers' secrets and configs in memory, over restarts of the daemon; *vault.Store is one.
type Files interface {
	Find(id string, n int) (paths []string, ok bool, err error)
	Put(id string, files []vault.File) (paths []string, err error)
	Remove(id string) error
	List() ([]string, error)
}

// Managers are the node's ways to a manager; *wire.Managers is one.
type Managers interface {
	// Dial connects to one of them, another one after a failure. The caller closes the connection.
	Dial(ctx context.Context) (*grpc.ClientConn, error)
	// Set replaces the addresses (host:port) that are known.
	Set(addrs []string)
}

// Description is what a node says of itself.
type Description struct {
	Node swarm.NodeDescription
	// Routes are prefixes that the host reaches by other ways than skep.
	Routes []netip.Prefix
}

// Config is what an Agent needs; fields without a default in brackets are required.
type Config struct {
	// Dir is the agent's own directory (D/agent), Containers that of logs and files of containers (D/containers).
	Dir, Containers string
	// Node has the parts of the gateway network that are this host's to choose: Instance, Link4, Link6. The
	// pools and blocks come from the managers. With a zero Link6 the node has no IPv6.
	Node netplan.Node

	Managers Managers
	Runtime  runtime.Runtime
	Network  Network
	Keeper   Keeper
	Files    Files
	// API serves one connection of a manager to the API of this node's containers, until it or ctx ends; nil means the node
	// has none.
	API func(ctx context.Context, conn net.Conn)
	// Describe is called when a session begins and every minute.
	Describe func(ctx context.Context) (Description, error)
	Log      *slog.Logger
	// Images gets tasks' images [they have to be here].
	Images Images

	// OnHealth hears when a container's health check begins to say something else; nil is fine. It returns at once.
	OnHealth func(container string, now container.HealthStatus)

	// Version is the daemon's.
	Version string
	// ResolvConf is the host's resolver configuration [/etc/resolv.conf].
	ResolvConf string
	// Hosts is the host's own table of names [/etc/hosts].
	Hosts string
	// Parallel bounds the tasks that are prepared, started or removed at a time [8].
	Parallel int
	// FlushDelay is how long a status waits for others to be reported with [10 ms].
	FlushDelay time.Duration
	// PortRange are the host ports that are given out where the user names none [32768–60999].
	PortRange [2]uint16
}

func (c *Config) check() error {
	if c.Dir == "" || c.Containers == "" || c.Managers == nil || c.Runtime == nil || c.Network == nil || c.Keeper == nil || c.Files == nil || c.Describe == nil || c.Log == nil {
		return errors.New("agent: Dir, Containers, Managers, Runtime, Network, Keeper, Files, Describe and Log are required")
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Hosts == "" {
		c.Hosts = "/etc/hosts"
	}
	if c.Parallel <= 0 {
		c.Parallel = 8
	}
	if c.FlushDelay <= 0 {
		c.FlushDelay = 10 * time.Millisecond
	}
	if c.PortRange == [2]uint16{} {
		c.PortRange = [2]uint16{32768, 60999}
	}
	if c.PortRange[0] == 0 || c.PortRange[0] > c.PortRange[1] {
		return fmt.Errorf("agent: port range %d–%d", c.PortRange[0], c.PortRange[1])
	}
	return nil
}

// Agent is the node's end. Safe for concurrent use.
type Agent struct {
	cfg        Config
	store      *store
	slots      *semaphore.Weighted // first come, first served
	probes     *semaphore.Weighted // health checks under way
	withdrawn  *withdrawn
	rep        *reporter
	net        *network
	safe       *safe
	overlays   *overlays
	names      *names
	logs       jsonlog.Reader
	streams    chan struct{} // one token for each stream that is served
	redescribe chan struct{} // holds a token when the description changed

	life  context.Context // of Run
	tasks sync.WaitGroup

	mu        sync.Mutex
	byID      map[model.TaskID]*task
	templates map[uint64]*template
	node      *pb.NodeInfo
	applied   place // of assignments
	session   uint64
	draft     *draft        // a complete set whose parts are arriving
	known     bool          // what the node should run is known: from disk or from a manager
	knowing   chan struct{} // closed when known
	status    SessionStatus
	hostname  string
	platform  swarm.Platform
}

// place is a place in the history of the cluster.
type place struct {
	Incarnation uint64 `cbor:"1,keyasint"`
	Index       uint64 `cbor:"2,keyasint"`
}

func placeOf(p *pb.Position) place { return place{p.GetIncarnation(), p.GetIndex()} }

func (p place) message() *pb.Position {
	return &pb.Position{Incarnation: p.Incarnation, Index: p.Index}
}

// before reports whether p is older than o.
func (p place) before(o place) bool {
	return p.Incarnation < o.Incarnation || p.Incarnation == o.Incarnation && p.Index < o.Index
}

// SessionStatus is how the node stands with its managers.
type SessionStatus struct {
	Connected bool
	// Manager is the address of the manager of the session, or of the last attempt.
	Manager string
	// Err is why there is no session; empty when there is one.
	Err string
	// Session is the number of the last session.
	Session uint64
}

// New reads what the node knew and makes an Agent. It starts nothing.
func New(cfg Config) (*Agent, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	st, err := openStore(cfg.Dir)
	if err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, store: st, slots: semaphore.NewWeighted(int64(cfg.Parallel)), probes: semaphore.NewWeighted(maxProbes), withdrawn: newWithdrawn(),
		byID: map[model.TaskID]*task{}, templates: map[uint64]*template{}, knowing: make(chan struct{}),
		streams: make(chan struct{}, maxStreams), redescribe: make(chan struct{}, 1)}
	a.rep = newReporter(a)
	a.net = newNetwork(cfg)
	a.safe = newSafe()
	a.overlays = newOverlays()
	a.names = newNames(cfg)
	if err := a.load(); err != nil {
		return nil, errors.Join(err, st.close())
	}
	a.net.follow(a.overlays)
	return a, nil
}

// Run drives the tasks and keeps the session until ctx is cancelled (then it returns nil). No task is stopped by its end.
// It may be called once.
func (a *Agent) Run(ctx context.Context) error {
	defer a.store.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	a.life = ctx
	list := make([]*task, 0, len(a.byID))
	for _, t := range a.byID {
		list = append(list, t)
	}
	a.mu.Unlock()
	if d, err := a.cfg.Describe(ctx); err == nil {
		a.remember(d)
	}
	var wg sync.WaitGroup
	wg.Go(func() { a.net.run(ctx, a) })
	wg.Go(func() { a.names.run(ctx, a) })
	wg.Go(func() { a.prune(ctx) })
	for _, t := range list {
		a.launch(t)
	}
	wg.Go(func() { a.keepSession(ctx) })
	<-ctx.Done()
	wg.Wait()
	a.tasks.Wait()
	return nil
}

// remember keeps what templates may refer to.
func (a *Agent) remember(d Description) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hostname, a.platform = d.Node.Hostname, d.Node.Platform
}

// launch starts a task's goroutine; Run joins it.
func (a *Agent) launch(t *task) {
	ctx := a.life
	a.tasks.Go(func() { t.run(ctx) })
}

// Status is how the node stands with its managers.
func (a *Agent) Status() SessionStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status
}

// TaskInfo is one task as this node sees it.
type TaskInfo struct {
	ID          model.TaskID
	ExternalID  string
	ContainerID string
	ServiceName string
	Desired     model.TaskState
	State       model.TaskState
	Message     string
	Err         string
	PID         uint32
	ExitCode    int32
	HostPorts   []swarm.PortConfig
	// Health is what its health check says, nil without one.
	Health *container.Health
}

// Tasks lists the node's tasks, in no order.
func (a *Agent) Tasks() []TaskInfo {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]TaskInfo, 0, len(a.byID))
	for _, t := range a.byID {
		out = append(out, t.info())
	}
	return out
}

// Forget makes the node forget the swarm when it leaves: every task is stopped and removed with its network, logs and ports, and the
// agent's own record is deleted. The session must be over: call it after Run returned.
func (a *Agent) Forget(ctx context.Context) error {
	a.mu.Lock()
	list := make([]*task, 0, len(a.byID))
	for _, t := range a.byID {
		list = append(list, t)
	}
	a.mu.Unlock()
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, t := range list {
		wg.Go(func() {
			// Removing kills; stopping gives the program its grace period to put its data away.
			if errs[i] = t.do.Stop(ctx); errs[i] == nil {
				errs[i] = t.do.Remove(ctx)
			}
		})
	}
	wg.Wait()
	held, err := a.cfg.Keeper.List(ctx)
	errs = append(errs, err, a.names.prune(ctx, newOverlays(), held, nil, nil))
	files, err := a.cfg.Files.List()
	errs = append(errs, err, a.pruneFiles(files, nil, nil), a.net.releaseAll(ctx), a.pruneContainers(ctx, map[string]bool{}), removeStore(a.cfg.Dir))
	return errors.Join(errs...)
}
