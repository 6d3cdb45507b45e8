package agent

import (
	"context"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

// webPort is the port that serveWeb publishes.
var webPort = netplan.PortKey{Proto: netplan.TCP, Number: 80}

// serveWeb starts a node with a running task that port 80 of the node leads to.
func serveWeb(t *testing.T) (*host, *scripted, model.TaskID) {
	t.Helper()
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	m.tpls[1].ServiceLabels = map[string]string{DrainTimeLabel: "30ms"}
	id := m.assign(1, 1, model.StateRunning)
	row := emptyWeb()
	row.Backends = []*pb.Backend{{Addr4: []byte{10, 128, 1, 3}, Port: 8080}}
	m.publish(row)
	h.start(t)
	m.awaitState(id, model.StateRunning)
	eventually(t, "a backend", func() bool { p, _ := h.net.port(webPort); return len(p.Backends4) == 1 })
	return h, m, id
}

// emptyWeb is the row of the port when it leads to nothing any more.
func emptyWeb() *pb.PortRow {
	return &pb.PortRow{Key: &pb.PortKey{Protocol: "tcp", Port: 80}, Service: 1}
}

// withdraw tells that a task is to stop, and to wait for the word on an index; then it fences.
func (m *scripted) withdraw(id model.TaskID, index uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index++
	task := proto.Clone(m.tasks[id]).(*pb.Task)
	task.Desired = uint32(model.StateShutdown)
	m.tell(&pb.Assignments{At: m.at(), Tasks: []*pb.Task{task}, Withdrawal: index})
	m.fence(index)
}

// fence asks the node to say when it goes by all tables until now; m.mu is held.
func (m *scripted) fence(index uint64) {
	m.out <- &pb.ToAgent{Kind: &pb.ToAgent_Fence{Fence: &pb.Fence{Index: index}}}
}

// A task that the managers withdraw is told to stop when they say that nobody sends it clients any more, and its drain time is over;
// a fence is passed when the kernel does what came before it.
func TestWithdrawal(t *testing.T) {
	h, m, id := serveWeb(t)
	release := holdPorts(h.net)
	m.publish(emptyWeb())
	m.withdraw(id, 7)
	select {
	case <-m.passed:
		t.Error("the fence is passed, and the kernel does not do what came before")
	case <-time.After(20 * time.Millisecond):
	}
	release()
	if got := <-m.passed; got != 7 {
		t.Errorf("passed fence %d", got)
	}
	if p, _ := h.net.port(webPort); len(p.Backends4) != 0 {
		t.Errorf("backends after the fence: %v", p.Backends4)
	}
	if containerState(h.node, ContainerID(externalID(1))) != runtime.Running {
		t.Error("stopped before the managers said that it is withdrawn")
	}
	told := time.Now()
	m.out <- &pb.ToAgent{Kind: &pb.ToAgent_Withdrawn{Withdrawn: &pb.Withdrawn{Index: 7}}}
	m.awaitState(id, model.StateShutdown)
	if took := time.Since(told); took < 30*time.Millisecond || took > withdrawalWait {
		t.Errorf("stopped %v after it was withdrawn, drain time 30ms", took)
	}
}

// A container that somebody stops on the node is first taken out of what clients are led to, if another task can take them: the managers
// are told that it fails, and when the kernel leads nobody to it any more and its drain time is over, it may get its signal.
func TestWithdrawOfOneContainer(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	m.tpls[1].ServiceLabels = map[string]string{DrainTimeLabel: "30ms"}
	id := m.assign(1, 1, model.StateRunning)
	key := netplan.PortKey{Proto: netplan.TCP, Number: 80}
	row := func(addrs ...byte) {
		r := &pb.PortRow{Key: &pb.PortKey{Protocol: "tcp", Port: 80}, Service: 1}
		for _, a := range addrs {
			r.Backends = append(r.Backends, &pb.Backend{Addr4: []byte{10, 128, 1, a}, Port: 8080})
		}
		m.publish(r)
	}
	backends := func(n int) {
		t.Helper()
		eventually(t, "the kernel's backends", func() bool { p, _ := h.net.port(key); return len(p.Backends4) == n })
	}
	health := func(want model.Health) {
		t.Helper()
		eventually(t, "health "+want.String(), func() bool { return m.state(id).Health == want })
	}
	row(3)
	a, stop := h.start(t)
	m.awaitState(id, model.StateRunning)
	backends(1)
	container := ContainerID(externalID(1))

	eventually(t, "the managers to have taken what was reported", func() bool { return a.rep.pending() == 0 })
	a.Withdraw(t.Context(), "another")()
	if a.Withdraw(t.Context(), container)(); m.state(id).Health != model.HealthNone || a.rep.pending() != 0 {
		t.Error("the only task of its service is withdrawn, and nobody could take its clients")
	}

	row(3, 4)
	backends(2)
	withdrawn := make(chan func(), 2)
	for range cap(withdrawn) { // a second word for the same does not come before the first
		go func() { withdrawn <- a.Withdraw(context.Background(), container) }()
	}
	health(model.HealthFailing)
	select {
	case <-withdrawn:
		t.Error("it may get its signal, and the kernel leads clients to it")
	case <-time.After(20 * time.Millisecond):
	}
	told := time.Now()
	row(4)
	for range cap(withdrawn) {
		defer (<-withdrawn)()
		if took := time.Since(told); took < 30*time.Millisecond || took > withdrawalWait {
			t.Errorf("withdrawn %v after the managers took it out, drain time 30ms", took)
		}
	}
	if p, _ := h.net.port(key); len(p.Backends4) != 1 {
		t.Errorf("backends of what is withdrawn: %v", p.Backends4)
	}

	// The next daemon knows nothing of the stop, and leads clients to what still runs.
	stop()
	a, stop = h.start(t)
	health(model.HealthNone)
	row(3, 4)
	backends(2)

	// A stop that comes to nothing is taken back; one that succeeds ends as any other.
	go func() { withdrawn <- a.Withdraw(context.Background(), container) }()
	health(model.HealthFailing)
	row(4)
	(<-withdrawn)()
	health(model.HealthNone)
	row(3, 4)
	backends(2)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { withdrawn <- a.Withdraw(ctx, container) }()
	health(model.HealthFailing)
	cancel() // the bound, in short
	back := <-withdrawn
	row(4) // so that its network needs not outlive it
	h.node.End(container, runtime.Exit{Code: 143})
	if r := m.awaitState(id, model.StateFailed); r.Health != model.HealthNone {
		t.Errorf("the last word is %+v", r)
	}
	back()
	if st := a.Tasks()[0].State; st != model.StateFailed {
		t.Errorf("taken back after its end: %s", st)
	}
	stop()
}

// holdPorts lets changes of ports wait until the returned function is called.
func holdPorts(n *fakeNet) (release func()) {
	gate := make(chan struct{})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onSet = func() { <-gate }
	return func() { close(gate) }
}

// One withdrawal may be over before an older one, and an old word says nothing of a newer.
func TestWithdrawnInAnyOrder(t *testing.T) {
	w := newWithdrawn()
	waits := func(index uint64) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		w.await(ctx, index)
		return ctx.Err() != nil
	}
	w.tell(9)
	w.tell(5)
	for index, want := range map[uint64]bool{0: false, 9: false, 5: false, 7: true, 10: true} {
		if got := waits(index); got != want {
			t.Errorf("index %d is waited for: %v", index, got)
		}
	}
	for i := range uint64(maxWithdrawn) {
		w.tell(100 + i)
	}
	if len(w.told) != maxWithdrawn || len(w.order) != maxWithdrawn || !waits(9) || waits(100) {
		t.Errorf("%d and %d are kept", len(w.told), len(w.order))
	}
}

func TestDrainTime(t *testing.T) {
	for text, want := range map[string]time.Duration{"": defaultDrainTime, "-1s": defaultDrainTime, "2s": 2 * time.Second, "0s": 0, "9999h": MaxDrainTime} {
		tpl := &template{msg: &pb.Template{ServiceLabels: map[string]string{DrainTimeLabel: text}}}
		if got := tpl.drainTime(); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	if got := (&template{msg: &pb.Template{}}).drainTime(); got != defaultDrainTime {
		t.Error(got)
	}
}

// The network of a task that ended by itself refuses those who are still led to it, until nobody is.
func TestNetworkOutlivesTaskThatIsLedTo(t *testing.T) {
	h, m, id := serveWeb(t)
	release := holdPorts(h.net)
	h.node.End(ContainerID(externalID(1)), runtime.Exit{Code: 137})
	m.awaitState(id, model.StateFailed)
	m.publish(emptyWeb())
	if h.net.numTasks() != 1 {
		t.Error("the network is gone, and the kernel still leads to it")
	}
	release()
	eventually(t, "the network is gone", func() bool { return h.net.numTasks() == 0 })
	if p, _ := h.net.port(webPort); len(p.Backends4) != 0 {
		t.Errorf("backends of a task without a network: %v", p.Backends4)
	}
}

// Another task of the same service in the same network takes over; one of another service, or one that is not served, does not.
func TestReplaceableInNetworks(t *testing.T) {
	task := func(svc model.ServiceID, num uint64) model.TaskID { return model.TaskID{Service: svc, Num: num} }
	id := task(1, 1)
	for name, c := range map[string]struct {
		nets []map[model.TaskID]overlayTask
		want bool
	}{
		"none":            {nil, false},
		"alone":           {[]map[model.TaskID]overlayTask{{id: {serving: true}}}, false},
		"another service": {[]map[model.TaskID]overlayTask{{id: {serving: true}, task(2, 1): {serving: true}}}, false},
		"not served":      {[]map[model.TaskID]overlayTask{{id: {serving: true}, task(1, 2): {}}}, false},
		"is not served":   {[]map[model.TaskID]overlayTask{{id: {}, task(1, 2): {serving: true}}}, false},
		"another one":     {[]map[model.TaskID]overlayTask{{id: {serving: true}, task(1, 2): {serving: true}}}, true},
		"in another net":  {[]map[model.TaskID]overlayTask{{id: {serving: true}}, {task(1, 2): {serving: true}}}, false},
	} {
		o := newOverlays()
		for i, tasks := range c.nets {
			o.nets[model.NetworkID(i+1)] = &overlay{tasks: tasks}
		}
		if got := o.replaceable(id); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
