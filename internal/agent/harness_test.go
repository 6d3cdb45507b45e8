package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/keeper"
	"github.com/skep-swarm/skep/internal/keeper/dns"
	"github.com/skep-swarm/skep/internal/keeper/ports"
	"github.com/skep-swarm/skep/internal/netapply"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/fake"
	"github.com/skep-swarm/skep/internal/vault"
	"github.com/skep-swarm/skep/internal/wire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// The parts that a daemon puts here.
var (
	_ Network  = (*netapply.Network)(nil)
	_ Keeper   = (*keeper.Client)(nil)
	_ Managers = (*wire.Managers)(nil)
	_ Files    = (*vault.Store)(nil)
)

// fakeNet is a gateway network in memory.
type fakeNet struct {
	mu    sync.Mutex
	syncs int
	tasks map[string]netplan.Task
	ports map[netplan.PortKey]netplan.Port
	nets  map[uint64]map[netip.Addr][]netip.Addr // virtual addresses and their backends
	onSet func()                                 // told before ports change
	fail  error
	// refused are networks that the kernel refuses, locked those with a task that keeps its old virtual addresses.
	refused, locked map[uint64]bool
}

func newFakeNet() *fakeNet {
	return &fakeNet{tasks: map[string]netplan.Task{}, ports: map[netplan.PortKey]netplan.Port{}, nets: map[uint64]map[netip.Addr][]netip.Addr{},
		refused: map[uint64]bool{}, locked: map[uint64]bool{}}
}

func (n *fakeNet) Sync(_ context.Context, in netplan.Input) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := in.Validate(); err != nil {
		return 0, err
	}
	n.syncs++
	clear(n.tasks)
	clear(n.ports)
	clear(n.nets)
	var errs []error
	for _, o := range in.Overlays {
		n.lay(o)
		errs = append(errs, n.trouble(o.Num))
	}
	for _, t := range in.Tasks {
		n.tasks[t.ID] = t
	}
	for _, p := range in.Ports {
		n.ports[p.PortKey] = p
	}
	return 0, errors.Join(append(errs, n.fail)...)
}

func (n *fakeNet) lay(o netplan.Overlay) {
	n.nets[o.Num] = map[netip.Addr][]netip.Addr{}
	for _, v := range o.VIPs {
		n.nets[o.Num][v.Addr] = v.Backends
	}
}

// trouble is what a network or a task of it has.
func (n *fakeNet) trouble(num uint64) error {
	switch {
	case n.refused[num]:
		return &netplan.PartError{Network: num, Err: errors.New("another program of this host uses it")}
	case n.locked[num]:
		return &netplan.PartError{Task: "locked", Nets: []uint64{num}, Err: errors.New("not permitted")}
	}
	return nil
}

func (n *fakeNet) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *fakeNet) AddTask(_ context.Context, t netplan.Task) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return "", n.fail
	}
	n.tasks[t.ID] = t
	return "/netns/" + t.Name(), nil
}

func (n *fakeNet) RemoveTask(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.tasks, id)
	return nil
}

func (n *fakeNet) SetPorts(_ context.Context, set []netplan.Port, del []netplan.PortKey) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.onSet != nil {
		n.onSet()
	}
	for _, p := range set {
		n.ports[p.PortKey] = p
	}
	for _, k := range del {
		delete(n.ports, k)
	}
	return nil
}

func (n *fakeNet) SetOverlay(_ context.Context, o netplan.Overlay) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := (netplan.Node{}).CheckOverlay(o); err != nil {
		return err
	}
	n.lay(o)
	return n.trouble(o.Num)
}

func (n *fakeNet) SetVIPs(_ context.Context, num uint64, set []netplan.VIP, del []netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nets[num] == nil {
		return netapply.ErrUnknownNetwork
	}
	for _, v := range set {
		n.nets[num][v.Addr] = v.Backends
	}
	for _, a := range del {
		delete(n.nets[num], a)
	}
	if n.locked[num] {
		return n.trouble(num)
	}
	return nil
}

func (n *fakeNet) RemoveOverlay(_ context.Context, num uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.tasks {
		for _, a := range t.Nets {
			if a.Network == num {
				return errors.New("a task is attached")
			}
		}
	}
	delete(n.nets, num)
	return nil
}

func (n *fakeNet) SetDNS(_ context.Context, id string, p netplan.DNSPorts) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	t, ok := n.tasks[id]
	if !ok {
		return fmt.Errorf("no task %s", id)
	}
	t.DNS = p
	n.tasks[id] = t
	return nil
}

// dns is where a task's questions are led.
func (n *fakeNet) dns(id string) netplan.DNSPorts {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.tasks[id].DNS
}

func (n *fakeNet) port(k netplan.PortKey) (netplan.Port, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, ok := n.ports[k]
	return p, ok
}

func (n *fakeNet) numTasks() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.tasks)
}

// fakeKeeper is a keeper in memory; foreign are ports that another program has.
type fakeKeeper struct {
	mu      sync.Mutex
	logs    map[string]bool
	held    map[ports.Port]bool
	foreign map[ports.Port]string
	named   map[string]dns.TaskNames
	ports   map[string]dns.Ports // of named
	tables  map[uint64][]dns.Table
	opened  int
}

func newFakeKeeper() *fakeKeeper {
	return &fakeKeeper{logs: map[string]bool{}, held: map[ports.Port]bool{}, foreign: map[ports.Port]string{},
		named: map[string]dns.TaskNames{}, ports: map[string]dns.Ports{}, tables: map[uint64][]dns.Table{}}
}

func (k *fakeKeeper) OpenNames(_ context.Context, cfg dns.TaskNames) (dns.Ports, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.named[cfg.ID]; !ok {
		k.opened++
		k.ports[cfg.ID] = dns.Ports{UDP: uint16(40000 + k.opened), TCP: uint16(40000 + k.opened)}
	}
	k.named[cfg.ID] = cfg
	return k.ports[cfg.ID], nil
}

func (k *fakeKeeper) CloseNames(_ context.Context, id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.named, id)
	return nil
}

// SetNames keeps every table since the last complete one.
func (k *fakeKeeper) SetNames(_ context.Context, t dns.Table) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case t.Gone:
		delete(k.tables, t.Network)
	case t.Complete:
		k.tables[t.Network] = []dns.Table{t}
	case k.tables[t.Network] == nil:
		return errors.New("changes to a table that is not known")
	default:
		k.tables[t.Network] = append(k.tables[t.Network], t)
	}
	return nil
}

func (k *fakeKeeper) names(id string) (dns.TaskNames, dns.Ports, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, ok := k.named[id]
	return c, k.ports[id], ok
}

// listen moves a task's resolver to other ports.
func (k *fakeKeeper) listen(id string, udp, tcp uint16) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ports[id] = dns.Ports{UDP: udp, TCP: tcp}
}

func (k *fakeKeeper) table(id uint64) []dns.Table {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.tables[id])
}

func (k *fakeKeeper) numNamed() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.named) + len(k.tables)
}

func (k *fakeKeeper) Open(_ context.Context, s keeper.LogSpec) (keeper.Files, error) {
	if err := keeper.ValidateLog(s.Driver, s.Options); err != nil {
		return keeper.Files{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.logs[s.ContainerID] = true
	return keeper.Files{Stdout: "/fifo/" + s.ContainerID + "/stdout", Stderr: "/fifo/" + s.ContainerID + "/stderr"}, nil
}

func (k *fakeKeeper) Close(_ context.Context, id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.logs, id)
	return nil
}

func (k *fakeKeeper) Remove(ctx context.Context, _, id string) error { return k.Close(ctx, id) }

func (k *fakeKeeper) Hold(_ context.Context, list []ports.Port) ([]error, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := make([]error, len(list))
	for i, p := range list {
		if who, ok := k.foreign[p]; ok {
			errs[i] = &ports.InUseError{Port: p, PID: 123, Command: who}
			continue
		}
		k.held[p] = true
	}
	return errs, nil
}

func (k *fakeKeeper) Probe(_ context.Context, list []ports.Port) ([]error, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := make([]error, len(list))
	for i, p := range list {
		if who, ok := k.foreign[p]; ok {
			errs[i] = &ports.InUseError{Port: p, PID: 123, Command: who}
		}
	}
	return errs, nil
}

func (k *fakeKeeper) Release(_ context.Context, list []ports.Port) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range list {
		delete(k.held, p)
	}
	return nil
}

func (k *fakeKeeper) List(context.Context) (keeper.Listing, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := keeper.Listing{Logs: slices.Sorted(maps.Keys(k.logs)), Ports: slices.Collect(maps.Keys(k.held)), Networks: slices.Sorted(maps.Keys(k.tables))}
	for id := range k.named {
		l.Names = append(l.Names, keeper.Named{ID: id, Ports: k.ports[id]})
	}
	return l, nil
}

func (k *fakeKeeper) holds(p ports.Port) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held[p]
}

func (k *fakeKeeper) take(p ports.Port, who string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if who == "" {
		delete(k.foreign, p)
		return
	}
	k.foreign[p] = who
}

func (k *fakeKeeper) numLogs() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.logs)
}

// fakeFiles keeps files in memory.
type fakeFiles struct {
	mu   sync.Mutex
	all  map[string][]vault.File
	fail error
}

func newFakeFiles() *fakeFiles { return &fakeFiles{all: map[string][]vault.File{}} }

func (f *fakeFiles) Find(id string, n int) ([]string, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list, ok := f.all[id]
	return f.paths(id), ok && len(list) == n, nil
}

func (f *fakeFiles) paths(id string) []string {
	var out []string
	for i := range f.all[id] {
		out = append(out, fmt.Sprintf("/vault/%s/%d", id, i))
	}
	return out
}

func (f *fakeFiles) Put(id string, files []vault.File) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	list := slices.Clone(files)
	for i := range list {
		list[i].Data = slices.Clone(list[i].Data) // the caller wipes its own
	}
	f.all[id] = list
	return f.paths(id), nil
}

func (f *fakeFiles) Remove(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, id)
	return nil
}

func (f *fakeFiles) List() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.all)), nil
}

func (f *fakeFiles) of(id string) []vault.File {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all[id]
}

// fakeManagers dial in memory.
type fakeManagers struct {
	ln *bufconn.Listener
}

func (m *fakeManagers) Dial(context.Context) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///manager", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return m.ln.DialContext(ctx) }))
}
func (m *fakeManagers) Set([]string) {}

// host is a node that outlives the agents that run on it.
type host struct {
	dir    string
	node   *fake.Node
	net    *fakeNet
	keeper *fakeKeeper
	files  *fakeFiles
	images Images // nil: they are all here
	ln     *bufconn.Listener
}

const testImage = "busybox"

func newHost(t testing.TB) *host {
	return &host{dir: t.TempDir(), node: fake.NewNode(testImage), net: newFakeNet(), keeper: newFakeKeeper(), files: newFakeFiles(), ln: bufconn.Listen(1 << 20)}
}

func (h *host) config() Config {
	return Config{
		Dir: filepath.Join(h.dir, "agent"), Containers: filepath.Join(h.dir, "containers"),
		Node:     netplan.Node{Instance: "abcdef", Link4: netip.MustParsePrefix("192.168.77.0/30")},
		Managers: &fakeManagers{h.ln}, Runtime: h.node.Runtime(), Network: h.net, Keeper: h.keeper, Files: h.files, Images: h.images,
		Describe: func(context.Context) (Description, error) {
			return Description{Node: swarm.NodeDescription{Hostname: "host1", Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"}}}, nil
		},
		Log: slog.New(slog.DiscardHandler), ResolvConf: filepath.Join(h.dir, "resolv.conf"), Hosts: filepath.Join(h.dir, "hosts"),
	}
}

// start runs an agent; stop ends it as the end of the daemon does.
func (h *host) start(t testing.TB) (a *Agent, stop func()) {
	t.Helper()
	a, err := New(h.config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return a, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
}

// kill copies what is on disk now to a new place and goes on from there, as if the process had been killed at this moment.
func (h *host) fork(t testing.TB) *host {
	t.Helper()
	n := *h
	n.dir = t.TempDir()
	if err := os.CopyFS(filepath.Join(n.dir, "agent"), os.DirFS(filepath.Join(h.dir, "agent"))); err != nil {
		t.Fatal(err)
	}
	return &n
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func containerState(n *fake.Node, id string) runtime.State {
	for _, c := range n.Containers() {
		if c.ID == id {
			return c.State
		}
	}
	return ""
}

func (k *fakeKeeper) numHeld() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.held)
}
