package agent

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// scripted is a manager that a test plays: it keeps a node's tasks as messages, tells sessions of them, and remembers what was
// reported. It judges by itself that no state goes back.
type scripted struct {
	pb.UnimplementedDispatchServer
	t   testing.TB
	srv *grpc.Server

	mu       sync.Mutex
	index    uint64
	session  uint64
	tasks    map[model.TaskID]*pb.Task
	order    []model.TaskID
	tpls     map[uint64]*pb.Template
	rows     []*pb.PortRow
	nets     []*pb.TaskNet // of tasks that are assigned from now on
	states   map[model.TaskID]model.TaskReport
	history  map[model.TaskID][]model.TaskState
	out      chan *pb.ToAgent // of the open session
	kick     func()
	mute     bool // take reports without acknowledging them
	silent   bool // answer no heartbeats
	clashes  []model.PortClash
	hellos   []*pb.Hello
	reports  int
	streams  map[string]chan pb.Dispatch_StreamServer
	askReply chan *pb.AskReply
	passed   chan uint64
	auth     []byte // credentials that come with new tasks
}

func newScripted(t testing.TB, h *host) *scripted {
	m := &scripted{t: t, index: 10, tasks: map[model.TaskID]*pb.Task{}, tpls: map[uint64]*pb.Template{},
		states: map[model.TaskID]model.TaskReport{}, history: map[model.TaskID][]model.TaskState{},
		streams: map[string]chan pb.Dispatch_StreamServer{}, askReply: make(chan *pb.AskReply, 1), passed: make(chan uint64, 16)}
	m.srv = grpc.NewServer()
	pb.RegisterDispatchServer(m.srv, m)
	served := make(chan struct{})
	go func() { defer close(served); _ = m.srv.Serve(h.ln) }()
	t.Cleanup(func() { m.srv.Stop(); <-served })
	return m
}

// inSession runs an agent on a host, and the manager that it has a session with, which knows template 1.
func inSession(t testing.TB, h *host) (*scripted, *Agent) {
	t.Helper()
	m := newScripted(t, h)
	a, _ := h.start(t)
	eventually(t, "a session", m.connected)
	m.template(1, simpleSpec())
	return m, a
}

// runningTask is a host with an agent, its manager, and a task that runs there.
func runningTask(t testing.TB) (*host, *scripted, *Agent, model.TaskID) {
	t.Helper()
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	id := m.assign(1, 1, model.StateRunning)
	a, _ := h.start(t)
	m.awaitState(id, model.StateRunning)
	return h, m, a, id
}

func (m *scripted) awaitState(id model.TaskID, want model.TaskState) model.TaskReport {
	m.t.Helper()
	eventually(m.t, "task "+want.String(), func() bool { return m.state(id).State == want })
	return m.state(id)
}

func (m *scripted) at() *pb.Position { return &pb.Position{Incarnation: 1, Index: m.index} }

func nodeInfoMessage() *pb.NodeInfo {
	return &pb.NodeInfo{NodeId: "node0000000000000000000001", Num: 1, GatewayBlocks: []string{"10.128.1.0/24"}, GatewayPool: "10.128.0.0/16"}
}

// Session implements the RPC.
func (m *scripted) Session(stream pb.Dispatch_SessionServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.hellos = append(m.hellos, first.GetHello())
	m.session = max(m.session, first.GetHello().LastSession) + 1
	session := m.session
	out := make(chan *pb.ToAgent, 1024)
	ended := make(chan struct{})
	m.out, m.kick = out, sync.OnceFunc(func() { close(ended) })
	m.clashes = wire.PortClashes(first.GetHello().Description.PortClashes)
	out <- &pb.ToAgent{Kind: &pb.ToAgent_Welcome{Welcome: &pb.Welcome{Session: session, HeartbeatPeriodMs: 1000, At: m.at()}}}
	m.sendTables(&pb.Tables{At: m.at(), Complete: true, Ports: m.rows})
	a := &pb.Assignments{At: m.at(), Complete: true, Node: nodeInfoMessage()}
	for _, tpl := range m.tpls {
		a.Templates = append(a.Templates, tpl)
	}
	for _, id := range m.order {
		if t := m.tasks[id]; t != nil {
			a.Tasks = append(a.Tasks, proto.Clone(t).(*pb.Task))
		}
	}
	out <- &pb.ToAgent{Kind: &pb.ToAgent_Assignments{Assignments: a}}
	m.mu.Unlock()
	received := make(chan error, 1)
	go func() {
		for {
			msg, err := stream.Recv()
			if err != nil {
				received <- err
				return
			}
			m.take(session, out, msg)
		}
	}()
	for {
		select {
		case msg := <-out:
			if err := stream.Send(msg); err != nil {
				return err
			}
		case err := <-received:
			return err
		case <-ended:
			return model.Errorf(model.Unavailable, "kicked")
		}
	}
}

func (m *scripted) take(session uint64, out chan *pb.ToAgent, msg *pb.FromAgent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch k := msg.Kind.(type) {
	case *pb.FromAgent_Heartbeat:
		if !m.silent {
			out <- &pb.ToAgent{Kind: &pb.ToAgent_Beat{Beat: &pb.Beat{At: m.at(), Number: k.Heartbeat.Number}}}
		}
	case *pb.FromAgent_Reports:
		m.reports++
		if k.Reports.Session != session {
			m.t.Errorf("reports of session %d in session %d", k.Reports.Session, session)
		}
		if m.mute {
			return
		}
		for _, s := range k.Reports.Tasks {
			m.note(s)
		}
		out <- &pb.ToAgent{Kind: &pb.ToAgent_ReportsAck{ReportsAck: &pb.ReportsAck{Session: session, Seq: k.Reports.Seq}}}
	case *pb.FromAgent_Description:
		m.clashes = wire.PortClashes(k.Description.PortClashes)
	case *pb.FromAgent_Passed:
		m.passed <- k.Passed.Index
	case *pb.FromAgent_AskReply:
		m.askReply <- k.AskReply
	}
}

func (m *scripted) note(s *pb.TaskStatus) {
	r, err := wire.TaskReport(s)
	if err != nil {
		m.t.Errorf("report: %v", err)
		return
	}
	old := m.states[r.Task]
	if r.State < old.State {
		m.t.Errorf("task %v went back from %s to %s", r.Task, old.State, r.State)
	}
	if r.State == old.State {
		old.Health = r.Health
		m.states[r.Task] = old
	}
	if r.State > old.State {
		m.history[r.Task] = append(m.history[r.Task], r.State)
		m.states[r.Task] = r
		if t := m.tasks[r.Task]; t != nil {
			t.State = uint32(r.State)
		}
	}
}

// Stream implements the RPC.
func (m *scripted) Stream(stream pb.Dispatch_StreamServer) error {
	f, err := stream.Recv()
	if err != nil {
		return err
	}
	m.mu.Lock()
	ch := m.streams[string(f.GetOpen().GetToken())]
	m.mu.Unlock()
	if ch == nil {
		return model.NotFoundf("nobody waits")
	}
	ch <- stream
	<-stream.Context().Done()
	return nil
}

func (m *scripted) sendTables(tab *pb.Tables) {
	b, err := proto.Marshal(tab)
	if err != nil {
		m.t.Fatal(err)
	}
	m.out <- &pb.ToAgent{Kind: &pb.ToAgent_Tables{Tables: b}}
}

// template adds a template for tasks of service svc.
func (m *scripted) template(id uint64, spec swarm.TaskSpec, hostPorts ...swarm.PortConfig) {
	m.t.Helper()
	raw, err := json.Marshal(spec)
	if err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tpls[id] = &pb.Template{Id: id, Service: 1, ServiceId: "svc000000000000000000000id", ServiceName: "web", TaskSpecJson: raw,
		HostPorts: wire.PortConfigs(hostPorts), ServiceLabels: map[string]string{"tier": "front"}}
}

func simpleSpec() swarm.TaskSpec {
	return swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: testImage, Command: []string{"serve"}}}
}

// assign adds or changes a task and tells the open session.
func (m *scripted) assign(num uint64, tpl uint64, desired model.TaskState) model.TaskID {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := model.TaskID{Service: 1, Num: num}
	m.index++
	t := m.tasks[id]
	if t == nil {
		addr := netip.AddrFrom4([4]byte{10, 128, 1, byte(2 + num%250)})
		t = &pb.Task{Ref: wire.Ref(id), Id: externalID(num), Slot: uint32(num), Template: tpl, State: uint32(model.StateAssigned), Gateway4: wire.AddrBytes(addr), Nets: m.nets}
		t.RegistryAuth, t.WithRegistryAuth = m.auth, len(m.auth) > 0
		m.tasks[id] = t
		m.order = append(m.order, id)
	}
	t.Desired = uint32(desired)
	if m.out != nil {
		m.tell(&pb.Assignments{At: m.at(), Templates: []*pb.Template{m.tpls[tpl]}, Tasks: []*pb.Task{proto.Clone(t).(*pb.Task)}})
	}
	return id
}

func externalID(num uint64) string { return fmt.Sprintf("task%021d", num) }

func (m *scripted) tell(a *pb.Assignments) {
	m.out <- &pb.ToAgent{Kind: &pb.ToAgent_Assignments{Assignments: a}}
}

func (m *scripted) remove(id model.TaskID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index++
	delete(m.tasks, id)
	if m.out != nil {
		m.tell(&pb.Assignments{At: m.at(), Removed: []*pb.TaskRef{wire.Ref(id)}})
	}
}

// publish replaces the row of a port.
func (m *scripted) publish(row *pb.PortRow) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index++
	m.rows = append(m.rows, row)
	if m.out != nil {
		m.sendTables(&pb.Tables{At: m.at(), Ports: []*pb.PortRow{row}})
	}
}

func (m *scripted) disconnect() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kick != nil {
		m.kick()
	}
	m.out = nil
}

func (m *scripted) state(id model.TaskID) model.TaskReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.states[id]
}

func (m *scripted) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *scripted) connected() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out != nil
}
