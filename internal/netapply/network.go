package netapply

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/skep-swarm/skep/internal/netplan"
)

// Config says where a gateway network lives.
type Config struct {
	// Dir is the folder of the namespace files, E/netns. It is made when it is
	// missing, and everything in it belongs to this instance.
	Dir string
	// HostNS is an open network namespace to use as the host's, or 0 for the
	// process's own. It may be closed after New.
	HostNS int
	// OnRepair, when set, is told by Run what it found wrong and mended, or
	// could not mend. It must not block.
	OnRepair func(what string, err error)
}

// A Network is the gateway network of one node. Its methods may be called
// concurrently.
type Network struct {
	cfg    Config
	hostFD int

	// state is held for reading by work on one task or port, and for writing
	// by full passes, which compare everything.
	state  sync.RWMutex
	ready  bool
	node   netplan.Node
	host   *space
	gw     *space
	hostFW *filter
	gwFW   *filter

	mu       sync.Mutex // guards tasks and overlays, and ports together with portMu
	tasks    map[string]*taskState
	overlays map[uint64]*overlay
	netMu    sync.Mutex // orders the coming and going of overlays
	sealMu   sync.Mutex // orders changes of who is sealed
	sealed   []netip.Addr
	nf       nfCache
	portMu   sync.Mutex // orders changes of ports
	ports    map[netplan.PortKey]netplan.Port
	owedUDP  map[uint16]bool // published UDP ports whose flows are to be forgotten; guarded by portMu, or state held for writing

	givenMTU  bool                       // the node's MTU is not that of the way out
	laidMTU   int                        // the node's at the end of the last full pass
	wayOut    atomic.Pointer[kernelLink] // of the host, when it was last looked at; nil before
	hostIndex atomic.Int64               // of the host link, for Run

	slots chan struct{} // bounds threads that wait for the kernel's lock
	wake  chan struct{} // tells Run that namespaces were opened anew
}

// taskState is one task; its lock orders work on it.
type taskState struct {
	mu   sync.Mutex
	task netplan.Task // of its fields, PID and DNS may change
	gone bool
	bad  bool                // its namespace could not be mended the last time
	done bool                // its namespace has been filled
	gen  uint32              // of its namespace's rules when they were last right; 0 is unknown
	owed map[netip.Addr]bool // see owe
}

// ident is the task without what may change.
func (st *taskState) ident() netplan.Task {
	return netplan.Task{ID: st.task.ID, Addr4: st.task.Addr4, Addr6: st.task.Addr6, Nets: st.task.Nets}
}

func (st *taskState) name() string { return netplan.Task{ID: st.task.ID}.Name() }

// maxParallel bounds the tasks being added or removed at the same time: the
// kernel does most of the work under one lock.
const maxParallel = 4

// ErrNotReady is returned before the first Sync and after Destroy.
var ErrNotReady = errors.New("the gateway network is not set up yet: no full table has been applied")

// New returns the gateway network of one node. It changes nothing.
func New(cfg Config) (*Network, error) {
	if cfg.Dir == "" || !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("namespace folder %q: want an absolute path", cfg.Dir)
	}
	fd, err := dupNS(cfg.HostNS)
	if err != nil {
		return nil, err
	}
	return &Network{
		cfg: cfg, hostFD: fd,
		tasks: map[string]*taskState{}, ports: map[netplan.PortKey]netplan.Port{}, owedUDP: map[uint16]bool{}, overlays: map[uint64]*overlay{},
		slots: make(chan struct{}, maxParallel), wake: make(chan struct{}, 1),
	}, nil
}

// Path is where the namespace of a task is bound.
func (n *Network) Path(t netplan.Task) string { return filepath.Join(n.cfg.Dir, t.Name()) }

func (n *Network) gatewayPath() string { return filepath.Join(n.cfg.Dir, netplan.GatewayName) }

// Sync makes the kernel what in says: what is missing is added, what differs
// is mended, and what nobody asked for is removed, leftover task namespaces
// included. It returns how many requests it wrote: 0 when all was right. What
// the kernel refuses of one network or task (netplan.Parts tells which) keeps
// nothing else from being done. A node without an MTU gets that of the interface
// that the host's default route leaves by, also when it changes later.
func (n *Network) Sync(ctx context.Context, in netplan.Input) (int, error) {
	if err := in.Validate(); err != nil {
		return 0, fmt.Errorf("gateway network: %w", err)
	}
	n.state.Lock()
	defer n.state.Unlock()
	if n.ready && n.node.Instance != in.Node.Instance {
		return 0, fmt.Errorf("gateway network: instance %s cannot become %s", n.node.Instance, in.Node.Instance)
	}
	n.node, n.givenMTU = in.Node, in.Node.MTU != 0
	n.takeMTU()
	n.mu.Lock()
	old := n.tasks
	n.tasks = map[string]*taskState{}
	for _, t := range in.Tasks {
		st := &taskState{task: t}
		if o, ok := old[t.Name()]; ok {
			st.done, st.owed = o.done, o.owed // but not gen: its rules are to be compared with what is asked for now
			if t.PID == 0 {
				st.task.PID = o.task.PID
			}
		}
		n.tasks[t.Name()] = st
	}
	before := n.ports
	n.ports = map[netplan.PortKey]netplan.Port{}
	for _, p := range in.Ports {
		n.ports[p.PortKey] = p
	}
	n.mu.Unlock()
	n.oweUDP(touchedUDP(before, in.Ports))
	lost := n.takeOverlays(in.Overlays)
	for _, st := range n.listTasks() {
		for _, a := range st.task.Nets {
			st.owe(lost[a.Network])
		}
	}
	changes, err := n.pass(ctx)
	if _, rest := netplan.Parts(err); rest == nil {
		n.ready = true
	}
	return changes, n.thenForget(err)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// pass compares everything with the kernel. What is wrong with one network or
// task does not end it. state is held for writing.
func (n *Network) pass(ctx context.Context) (int, error) {
	if err := os.MkdirAll(n.cfg.Dir, 0o755); err != nil {
		return 0, fmt.Errorf("make namespace folder: %w", err)
	}
	total, err := n.openGateway()
	if err == nil {
		err = n.followUnderlay()
	}
	if err != nil {
		return total, err
	}
	in := n.input()
	plan, err := netplan.Make(in)
	if err != nil {
		return total, fmt.Errorf("gateway network: %w", err)
	}
	c, err := n.passBase(ctx, plan)
	total += c
	if err != nil {
		return total, err
	}
	errs := []error{n.prune(in.Tasks)}
	for _, step := range []func(context.Context, netplan.Plan) (int, error){
		n.passSandboxes, n.passTasks, n.passPorts, n.passSandboxPorts, n.passFilters, n.passTables,
	} {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		c, err := step(ctx, plan)
		total += c
		errs = append(errs, err)
	}
	err = onePerPart(errs)
	if _, rest := netplan.Parts(err); rest == nil {
		n.laidMTU = n.node.MTU
	}
	return total, err
}

// input is everything that is asked for now.
func (n *Network) input() netplan.Input {
	n.mu.Lock()
	defer n.mu.Unlock()
	in := netplan.Input{Node: n.node}
	for _, st := range n.tasks {
		in.Tasks = append(in.Tasks, st.task)
	}
	for _, p := range n.ports {
		in.Ports = append(in.Ports, p)
	}
	for _, ov := range n.overlays {
		in.Overlays = append(in.Overlays, ov.full())
	}
	return in
}

// passBase mends host link and sandbox, without the tasks' ports.
func (n *Network) passBase(_ context.Context, plan netplan.Plan) (int, error) {
	total, err := n.gw.sysctls(netplan.GatewaySpace(n.node, nil).Sysctls)
	if err != nil {
		return total, err
	}
	// The link first: its sysctls exist only with it.
	c, err := n.host.reconcile(plan.Host, n.resolve, nil)
	total += c
	if err != nil {
		// Where IPv6 is turned off, the link takes an address only once its own settings say otherwise.
		if set, e := n.host.sysctls(plan.Host.Sysctls); e == nil && set > 0 {
			c, err = n.host.reconcile(plan.Host, n.resolve, nil)
			total += set + c
		}
	}
	if errors.Is(err, syscall.EEXIST) {
		return total, fmt.Errorf("another program of this host uses an address or a route of the gateway network, choose another pool: %w", err)
	}
	if err != nil {
		return total, err
	}
	c, err = n.host.sysctls(plan.Host.Sysctls)
	total += c
	if err != nil {
		return total, err
	}
	links, err := n.host.links(n.node.HostLink())
	if err != nil {
		return total, err
	}
	n.hostIndex.Store(int64(links[n.node.HostLink()].index))
	names := map[string]bool{}
	for _, l := range plan.Gateway.Links {
		names[l.Name] = true
	}
	have, err := n.gw.links("")
	if err != nil {
		return total, err
	}
	rm := &batch{}
	for name, l := range have {
		if !names[name] && isPort(name) {
			rm.delLink(l.index, name)
		}
	}
	// Not counted as a repair: the kernel takes the ports of removed tasks down in its own time.
	if err := n.gw.rt.run(rm); err != nil {
		return total, err
	}
	if _, ok := have[netplan.Bridge]; !ok {
		b := &batch{}
		for _, l := range plan.Gateway.Links {
			if l.Kind == "bridge" {
				b.addLink(l, 0, -1)
			}
		}
		total += b.len()
		if err := n.gw.rt.run(b); err != nil {
			return total, err
		}
	}
	return total, nil
}

// isPort tells whether a sandbox interface is a task's bridge port.
func isPort(name string) bool { return len(name) == 13 && name[0] == 't' }

// passTasks mends all tasks' namespaces.
func (n *Network) passTasks(ctx context.Context, _ netplan.Plan) (int, error) {
	n.mu.Lock()
	list := make([]*taskState, 0, len(n.tasks))
	for _, st := range n.tasks {
		list = append(list, st)
	}
	n.mu.Unlock()
	return n.mendTasks(ctx, list)
}

// mendTasks mends tasks' namespaces, some at a time. Its errors are those of
// parts, or the context's.
func (n *Network) mendTasks(ctx context.Context, list []*taskState) (int, error) {
	var mu sync.Mutex
	var errs []error
	total := 0
	var wg sync.WaitGroup
	for part := range slices.Chunk(list, max(1, (len(list)+maxParallel-1)/maxParallel)) {
		wg.Go(func() {
			for _, st := range part {
				if ctx.Err() != nil {
					return
				}
				st.mu.Lock()
				c, err := n.mendTask(st)
				st.mu.Unlock()
				mu.Lock()
				total += c
				errs = append(errs, st.part(err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return total, errors.Join(append(errs, ctx.Err())...)
}

// passPorts mends the sandbox with the tasks' ports, which exist now but for
// those of tasks that could not be mended.
func (n *Network) passPorts(_ context.Context, plan netplan.Plan) (int, error) {
	have, err := n.gw.links("")
	if err != nil {
		return 0, err
	}
	gw := plan.Gateway.Without(func(link string) bool { return isPort(link) && have[link].index == 0 })
	c, err := n.gw.reconcile(gw, n.resolve, isPort)
	if c == 0 || err != nil {
		return c, err
	}
	// See awaitLink.
	_, err = n.host.links(n.node.HostLink())
	for _, name := range []string{netplan.Uplink, netplan.Bridge} {
		if err == nil {
			_, err = n.gw.links(name)
		}
	}
	return c, err
}

// passFilters mends the tables, and the accepts in other programs' tables.
func (n *Network) passFilters(_ context.Context, plan netplan.Plan) (int, error) {
	total := 0
	var errs []error
	for _, v := range []struct {
		fw    *filter
		table *netplan.Table
	}{{n.gwFW, plan.Gateway.Table}, {n.hostFW, plan.Host.Table}} {
		changed, err := v.fw.reconcile(v.table)
		total += b2i(changed)
		errs = append(errs, err)
	}
	n.sealMu.Lock()
	n.sealed = nil // compare once more when it is asked for
	n.sealMu.Unlock()
	c, err := n.hostFW.acceptForwarding(n.node.HostLink())
	return total + c, errors.Join(append(errs, err)...)
}

// resolve finds the namespaces that a plan names.
func (n *Network) resolve(name string) (*space, error) {
	switch name {
	case netplan.HostName:
		return n.host, nil
	case netplan.GatewayName:
		return n.gw, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for num, ov := range n.overlays {
		if netplan.OverlayName(num) == name && ov.space != nil {
			return ov.space, nil
		}
	}
	return nil, fmt.Errorf("no namespace is called %s", name)
}
