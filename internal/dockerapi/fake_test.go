package dockerapi

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/volume"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/pki"
	fakeruntime "github.com/skep-swarm/skep/internal/runtime/fake"
	"github.com/skep-swarm/skep/internal/state"
)

// fake is a whole daemon in memory: the real state, a log of one member, and an orchestrator of a
// few lines that makes what services ask for run at once.
type fake struct {
	now func() time.Time

	localMu sync.Mutex // on its own: observers ask for Local while a batch is applied
	local   Local

	mu       sync.Mutex
	snap     *state.Snapshot
	index    uint64
	watchers map[int]func(Applied)
	news     chan ContainerEvent
	nextID   int
	lines    map[model.TaskID][]LogLine
	images   []Image
	registry fakeRegistry
	vols     []volume.Volume
	taken    map[uint32]string // host ports that a program holds
	node     *fakeruntime.Node
	others   map[model.NodeID]string // addresses of other nodes' APIs
	// withdrawn are the states of the containers that were withdrawn, and "back" for one that was taken back.
	withdrawn []string
	// beforePropose, when set, runs before a batch is applied: others may write in between.
	beforePropose func(*model.Batch)
	manual        bool // no orchestrator
}

func newFake(now func() time.Time) *fake {
	return &fake{now: now, snap: state.New(), local: Local{State: swarm.LocalNodeStateInactive}, watchers: map[int]func(Applied){}, news: make(chan ContainerEvent, 16),
		lines: map[model.TaskID][]LogLine{}, taken: map[uint32]string{}, node: newFakeNode(), others: map[model.NodeID]string{}}
}

func (f *fake) State(context.Context) (*state.Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snap, nil
}

func (f *fake) Local() Local {
	f.localMu.Lock()
	defer f.localMu.Unlock()
	return f.local
}

func (f *fake) setLocal(l Local) {
	f.localMu.Lock()
	defer f.localMu.Unlock()
	f.local = l
}

func (f *fake) Propose(_ context.Context, b *model.Batch) (*model.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if hook := f.beforePropose; hook != nil {
		f.beforePropose = nil
		hook(b)
	}
	// What is proposed must survive the log's encoding.
	data, err := state.EncodeBatch(b)
	if err != nil {
		return nil, err
	}
	if b, err = state.DecodeBatch(data); err != nil {
		return nil, err
	}
	out := f.apply(b)
	if !f.manual {
		f.orchestrate()
	}
	return out, nil
}

// apply is called with mu held.
func (f *fake) apply(b *model.Batch) *model.Outcome {
	f.index++
	before := f.snap
	after, out := before.Apply(f.index, b)
	f.snap = after
	for _, w := range f.watchers {
		w(Applied{before, after, out})
	}
	return out
}

func (f *fake) change(changes ...model.Change) {
	out := f.apply(&model.Batch{Actor: "fake", Time: model.Time(f.now().UnixNano()), Txns: []model.Txn{{Changes: changes}}})
	if out.Results[0] != nil {
		panic(fmt.Sprintf("fake change %+v: %v", changes, out.Results[0]))
	}
}

func (f *fake) Watch(ctx context.Context, fn func(Applied)) error {
	f.mu.Lock()
	id := f.nextID
	f.nextID++
	f.watchers[id] = fn
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	delete(f.watchers, id)
	f.mu.Unlock()
	return nil
}

// WatchContainers tells what tests put into news.
func (f *fake) WatchContainers(ctx context.Context, fn func(ContainerEvent)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-f.news:
			fn(e)
		}
	}
}

func (f *fake) watching() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watchers) > 0
}

// orchestrate makes what services ask for so: tasks of the right template run, the others stop.
func (f *fake) orchestrate() {
	for svc := range f.snap.Services() {
		want := uint32(1)
		if r := svc.Spec().Mode.Replicated; r != nil {
			want = uint32(*r.Replicas)
		}
		for t := range f.snap.Tasks(svc.ID) {
			if t.Desired <= model.StateRunning && (t.Template != svc.Template || t.Slot > want) {
				f.stop(t.ID)
			}
		}
		for slot := uint32(1); slot <= want; slot++ {
			f.fill(svc.ID, slot)
		}
		svc = f.snap.Service(svc.ID)
		if u := svc.Update; u != nil && u.CompletedAt == 0 {
			done := *u
			done.CompletedAt = f.snap.Time()
			done.State, done.Message = swarm.UpdateStateCompleted, "update completed"
			if u.State == swarm.UpdateStateRollbackStarted {
				done.State, done.Message = swarm.UpdateStateRollbackCompleted, "rollback completed"
			}
			f.change(model.Change{SetUpdate: &model.UpdateSet{Service: svc.ID, Update: &done}})
		}
	}
	for t := range f.snap.AllTasks() {
		if f.snap.Service(t.ID.Service) == nil {
			f.change(model.Change{DeleteTask: &t.ID})
		}
	}
}

func (f *fake) report(id model.TaskID, st model.TaskState, pid uint32) {
	n := f.snap.Node(f.snap.Task(id).Node)
	f.change(model.Change{Report: &model.Report{Node: n.ID, Session: 1, Seq: n.Seq + 1, Tasks: []model.TaskReport{{Task: id, State: st, Message: st.String(), PID: pid}}}})
}

func (f *fake) stop(id model.TaskID) {
	f.change(model.Change{SetTaskDesired: &model.TaskDesiredSet{Task: id, Desired: model.StateShutdown}})
	f.report(id, model.StateShutdown, 0)
}

func (f *fake) fill(id model.ServiceID, slot uint32) {
	svc := f.snap.Service(id)
	for t := range f.snap.Tasks(id) {
		if t.Slot == slot && t.Desired <= model.StateRunning {
			return
		}
	}
	tid := model.TaskID{Service: id, Num: svc.LastTask + 1}
	node := f.Local().Node
	f.change(model.Change{PutTask: &model.Task{ID: tid, Slot: slot, Template: svc.Template, Desired: model.StateRunning, State: model.StateNew}})
	addr := netip.AddrFrom4([4]byte{172, 20 + byte(node), byte(id), byte(tid.Num)})
	if f.snap.Template(svc.Template).NetMode != "" {
		addr = netip.Addr{}
	}
	place := model.TaskPlaceSet{Task: tid, Node: node, Gateway4: addr}
	if txn := allocate.VIPs(f.snap, id); len(txn.Changes) > 0 {
		f.change(txn.Changes...)
	}
	planned := allocate.Addresses(f.snap, []model.Txn{{Changes: []model.Change{{SetTaskPlace: &place}}}}, f.snap.Time())
	if p := planned.Txns[0].Changes[0].SetTaskPlace; p != nil {
		place.Nets = p.Nets
	}
	f.change(model.Change{SetTaskPlace: &place})
	f.report(tid, model.StateRunning, uint32(4000+100*uint64(id)+tid.Num))
	for i, text := range []string{"hello from slot %d\n", "ready, slot %d\n"} {
		f.lines[tid] = append(f.lines[tid], LogLine{Task: tid, Node: node, Stderr: i == 1, Time: f.now().Add(time.Duration(i) * time.Millisecond),
			Text: fmt.Appendf(nil, text, slot)})
	}
}

func (f *fake) CheckPorts(_ context.Context, ports []swarm.PortConfig) (out []PortRefusal, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range ports {
		if who, ok := f.taken[p.PublishedPort]; ok {
			out = append(out, PortRefusal{Node: f.Local().Node, Protocol: string(p.Protocol), Port: p.PublishedPort, Message: who})
		}
	}
	return out, nil
}

func (f *fake) InitSwarm(_ context.Context, req swarm.InitRequest) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	spec, err := model.MakeSpec(&req.Spec)
	if err != nil {
		return "", err
	}
	ca, err := pki.NewCA(seeded("ca"), f.now())
	if err != nil {
		return "", err
	}
	c := &model.Cluster{Spec: spec, CACert: ca.CertPEM(), WorkerSecret: "0123456789abcdefghijklmno", ManagerSecret: "onmlkjihgfedcba9876543210",
		SubnetSize: req.SubnetSize, DataPathPort: req.DataPathPort, GatewayPool: netip.MustParsePrefix("172.20.0.0/16"), Incarnation: 1}
	if len(req.DefaultAddrPool) > 0 {
		c.DefaultAddrPool = req.DefaultAddrPool
	}
	copy(c.IDKey[:], "0123456789abcdef")
	f.change(model.Change{PutCluster: c})
	f.addNode("node-a", swarm.NodeRoleManager, "10.0.0.1")
	id := c.Namer().NodeID(1)
	f.setLocal(Local{State: swarm.LocalNodeStateActive, Manager: true, Node: 1, NodeID: id, Addr: "10.0.0.1", Leader: 1,
		RemoteManagers: []swarm.Peer{{NodeID: id, Addr: "10.0.0.1:2377"}}})
	return id, nil
}

// addNode is called with mu held.
func (f *fake) addNode(host string, role swarm.NodeRole, addr string) {
	id := f.snap.LastNode() + 1
	n := &model.Node{ID: id, Spec: swarm.NodeSpec{Role: role, Availability: swarm.NodeAvailabilityActive}, State: swarm.NodeStateReady, Addr: addr,
		Blocks: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 20 + byte(id)}), 16)},
		Description: swarm.NodeDescription{Hostname: host, Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"},
			Resources: swarm.Resources{NanoCPUs: 2e9, MemoryBytes: 8 << 30}, Engine: swarm.EngineDescription{EngineVersion: "28.2.2"}}}
	if role == swarm.NodeRoleManager {
		n.ManagerAddr = addr + ":2377"
	}
	f.change(model.Change{PutNode: n})
}

func (f *fake) JoinSwarm(context.Context, swarm.JoinRequest) error {
	return model.Errorf(model.Unimplemented, "joining is not available yet")
}

func (f *fake) LeaveSwarm(context.Context, bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.snap = state.New()
	f.setLocal(Local{State: swarm.LocalNodeStateInactive})
	return nil
}

func (f *fake) UnlockSwarm(context.Context, string) error {
	return model.Errorf(model.Unauthorized, "invalid key provided")
}

func (f *fake) SystemInfo(context.Context) (SystemInfo, error) {
	return SystemInfo{ID: "host-1", Name: "node-a", KernelVersion: "6.18.0", OperatingSystem: "Debian GNU/Linux 12 (bookworm)", OSType: "linux",
		Architecture: "x86_64", NCPU: 2, MemTotal: 8 << 30, DataRoot: "/var/lib/skep", Driver: "overlayfs", CgroupDriver: "cgroupfs", CgroupVersion: "1",
		MemoryLimit: true, SwapLimit: true, CPUCfs: true, CPUSet: true, PidsLimit: true, IPv4Forwarding: true, ContainerdVersion: "v2.4.2", RuncVersion: "1.1.5",
		SecurityOptions: []string{"name=seccomp,profile=builtin"}, ContainersRunning: 3, Images: 1}, nil
}

func (f *fake) Logs(ctx context.Context, sel LogSelector, opt LogOptions) iter.Seq2[LogLine, error] {
	return func(yield func(LogLine, error) bool) {
		f.mu.Lock()
		var all []LogLine
		for id, lines := range f.lines {
			if f.snap.Cluster() == nil {
				continue
			}
			cid := containerID(f.snap.Cluster().Namer().TaskID(id))
			if sel.Service != 0 && id.Service != sel.Service || sel.Task.Num != 0 && id != sel.Task || sel.Container != "" && sel.Container != cid {
				continue
			}
			from := 0
			if opt.Tail >= 0 {
				from = max(0, len(lines)-opt.Tail)
			}
			all = append(all, lines[from:]...)
		}
		f.mu.Unlock()
		slices.SortStableFunc(all, func(a, b LogLine) int {
			if a.Task != b.Task {
				return map[bool]int{true: -1, false: 1}[a.Task.Less(b.Task)]
			}
			return a.Time.Compare(b.Time)
		})
		for _, l := range all {
			if l.Stderr && !opt.Stderr || !l.Stderr && !opt.Stdout || !opt.Since.IsZero() && l.Time.Before(opt.Since) {
				continue
			}
			if !yield(l, nil) {
				return
			}
		}
		if opt.Follow {
			<-ctx.Done()
		}
	}
}

// seeded is an endless stream of bytes that is the same every time.
func seeded(seed string) io.Reader { return &chain{sum: sha256.Sum256([]byte(seed))} }

type chain struct {
	mu  sync.Mutex
	sum [32]byte
	at  int
}

func (c *chain) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range b {
		if c.at == len(c.sum) {
			c.sum, c.at = sha256.Sum256(c.sum[:]), 0
		}
		b[i] = c.sum[c.at]
		c.at++
	}
	return len(b), nil
}
