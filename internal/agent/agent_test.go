package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/keeper/ports"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/fake"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTaskLife(t *testing.T) {
	h, m, a, id := runningTask(t)
	r := m.state(id)
	if r.PID == 0 || r.Message != "started" {
		t.Errorf("running: %+v", r)
	}
	cid := ContainerID(externalID(1))
	if h.net.numTasks() != 1 || h.keeper.numLogs() != 1 || containerState(h.node, cid) != runtime.Running {
		t.Errorf("%d networks, %d logs, container %q", h.net.numTasks(), h.keeper.numLogs(), containerState(h.node, cid))
	}
	c := h.node.Containers()[0]
	if want := "web.1." + externalID(1); c.Name != want || c.Labels["com.docker.swarm.service.name"] != "web" || c.Labels["com.docker.swarm.task.name"] != want {
		t.Errorf("container %q with labels %v", c.Name, c.Labels)
	}
	m.assign(1, 1, model.StateShutdown)
	m.awaitState(id, model.StateShutdown)
	eventually(t, "network and log released", func() bool { return h.net.numTasks() == 0 && h.keeper.numLogs() == 0 })
	if containerState(h.node, cid) != runtime.Exited {
		t.Error("the container of an ended task must stay")
	}
	m.remove(id)
	eventually(t, "container removed", func() bool { return len(h.node.Containers()) == 0 && len(a.Tasks()) == 0 })
	if _, err := os.Stat(filepath.Join(h.dir, "containers", cid)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files of the container: %v", err)
	}
}

func TestExitAndErrors(t *testing.T) {
	h := newHost(t)
	h.node.Behave = func(s runtime.Spec) fake.Behaviour {
		switch s.Task.ContainerSpec.Command[0] {
		case "nosuch":
			return fake.Behaviour{StartError: &runtime.Error{Kind: runtime.KindCommand, Code: 127, Text: `exec: "nosuch": executable file not found in $PATH`}}
		case "oom":
			return fake.Behaviour{ExitAtOnce: true, Exit: runtime.Exit{Code: 137, OOMKilled: true}}
		case "three":
			return fake.Behaviour{ExitAtOnce: true, Exit: runtime.Exit{Code: 3}}
		case "zero":
			return fake.Behaviour{ExitAtOnce: true}
		}
		return fake.Behaviour{}
	}
	m := newScripted(t, h)
	with := func(f func(*swarm.ContainerSpec)) swarm.TaskSpec {
		s := simpleSpec()
		f(s.ContainerSpec)
		return s
	}
	cases := []struct {
		name  string
		spec  swarm.TaskSpec
		state model.TaskState
		err   string
		code  int32
	}{
		{"no image", with(func(c *swarm.ContainerSpec) { c.Image = "nosuch" }), model.StateRejected, "No such image: nosuch", 0},
		{"bad template", with(func(c *swarm.ContainerSpec) { c.Env = []string{"A={{.Nope}}"} }), model.StateRejected, "expanding env failed: ", 0},
		{"bad command", with(func(c *swarm.ContainerSpec) { c.Command = []string{"nosuch"} }), model.StateFailed, `starting container failed: exec: "nosuch"`, 127},
		{"exit 3", with(func(c *swarm.ContainerSpec) { c.Command = []string{"three"} }), model.StateFailed, "task: non-zero exit (3)", 3},
		{"exit 0", with(func(c *swarm.ContainerSpec) { c.Command = []string{"zero"} }), model.StateComplete, "", 0},
		{"oom", with(func(c *swarm.ContainerSpec) { c.Command = []string{"oom"} }), model.StateFailed, "task: non-zero exit (137): OOMKilled", 137},
		{"log driver", swarm.TaskSpec{ContainerSpec: simpleSpec().ContainerSpec, LogDriver: &swarm.Driver{Name: "syslog9"}}, model.StateRejected,
			"logger: no log driver named 'syslog9' is registered", 0},
		{"no container", swarm.TaskSpec{}, model.StateRejected, "has no container spec", 0},
	}
	ids := make([]model.TaskID, len(cases))
	for i, c := range cases {
		m.template(uint64(i+1), c.spec)
		ids[i] = m.assign(uint64(i+1), uint64(i+1), model.StateRunning)
	}
	h.start(t)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := m.awaitState(ids[i], c.state)
			if !strings.Contains(r.Err, c.err) || c.err == "" && r.Err != "" || r.ExitCode != c.code {
				t.Errorf("%q, exit code %d; want %q, %d", r.Err, r.ExitCode, c.err, c.code)
			}
		})
	}
}

func TestDesiredReadyWaits(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	id := m.assign(1, 1, model.StateReady)
	h.start(t)
	m.awaitState(id, model.StateReady)
	if s := containerState(h.node, ContainerID(externalID(1))); s != runtime.Created {
		t.Errorf("container %q", s)
	}
	m.assign(1, 1, model.StateRunning)
	m.awaitState(id, model.StateRunning)
}

// A daemon that starts again, with or without a manager, finds its tasks as they are and reports who died meanwhile.
func TestRestartAdopts(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	m.template(2, simpleSpec(), swarm.PortConfig{TargetPort: 80, PublishMode: swarm.PortConfigPublishModeHost})
	var ids []model.TaskID
	for n := uint64(1); n <= 5; n++ {
		ids = append(ids, m.assign(n, 1+n%2, model.StateRunning))
	}
	_, stop := h.start(t)
	before := map[model.TaskID]model.TaskReport{}
	for _, id := range ids {
		before[id] = m.awaitState(id, model.StateRunning)
	}
	m.disconnect()
	stop()
	steps := len(h.node.Steps())
	h.node.End(ContainerID(externalID(2)), runtime.Exit{Code: 42})

	h2 := h.fork(t)
	h2.node.Containers()
	a, _ := h2.start(t)
	r := m.awaitState(ids[1], model.StateFailed)
	if r.ExitCode != 42 || r.Err != "task: non-zero exit (42)" {
		t.Errorf("died during the outage: %+v", r)
	}
	for _, s := range h.node.Steps()[steps:] {
		if strings.HasPrefix(s, "prepare") || strings.HasPrefix(s, "start") || strings.HasPrefix(s, "remove") {
			t.Errorf("a restart of the daemon took the step %q", s)
		}
	}
	for _, info := range a.Tasks() {
		if info.ID != ids[1] && (info.State != model.StateRunning || info.PID != before[info.ID].PID) {
			t.Errorf("task %v: %s, pid %d, was %d", info.ID, info.State, info.PID, before[info.ID].PID)
		}
	}
	eventually(t, "4 networks", func() bool { return h.net.numTasks() == 4 })
}

func TestHostPorts(t *testing.T) {
	h := newHost(t)
	h.keeper.take(ports.Port{Proto: "tcp", Port: 8080}, "nginx")
	m := newScripted(t, h)
	host := func(published uint32) swarm.PortConfig {
		return swarm.PortConfig{TargetPort: 80, PublishedPort: published, Protocol: "tcp", PublishMode: swarm.PortConfigPublishModeHost}
	}
	m.template(1, simpleSpec(), host(8080))
	m.template(2, simpleSpec(), host(0))
	m.template(3, simpleSpec(), host(9090))
	taken, dynamic, static := m.assign(1, 1, model.StateRunning), m.assign(2, 2, model.StateRunning), m.assign(3, 3, model.StateRunning)
	h.start(t)
	r := m.awaitState(taken, model.StateRejected)
	if want := "host-mode port already in use on 1 node: port 8080/tcp is already in use on this host by nginx (pid 123)"; r.Err != want {
		t.Errorf("%q, want %q", r.Err, want)
	}
	r = m.awaitState(dynamic, model.StateRunning)
	if len(r.HostPorts) != 1 || r.HostPorts[0].PublishedPort < 32768 || r.HostPorts[0].TargetPort != 80 {
		t.Errorf("dynamic port: %+v", r.HostPorts)
	}
	m.awaitState(static, model.StateRunning)
	key := netplan.PortKey{Proto: netplan.TCP, Number: 9090}
	eventually(t, "port 9090 published", func() bool {
		p, ok := h.net.port(key)
		return ok && p.Mode == netplan.Host && len(p.Backends4) == 1 && p.Backends4[0].String() == "10.128.1.5:80"
	})
	m.assign(3, 3, model.StateShutdown)
	eventually(t, "port 9090 released", func() bool {
		_, ok := h.net.port(key)
		return !ok && !h.keeper.holds(ports.Port{Proto: "tcp", Port: 9090})
	})
}

func TestIngressPortsAndClash(t *testing.T) {
	h := newHost(t)
	h.keeper.take(ports.Port{Proto: "tcp", Port: 443}, "apache2")
	m := newScripted(t, h)
	row := func(port uint32, backends ...*pb.Backend) *pb.PortRow {
		return &pb.PortRow{Key: &pb.PortKey{Protocol: "tcp", Port: port}, Service: 1, Backends: backends}
	}
	m.publish(row(80, &pb.Backend{Addr4: []byte{10, 128, 1, 9}, Port: 8080}))
	h.start(t)
	k80, k443 := netplan.PortKey{Proto: netplan.TCP, Number: 80}, netplan.PortKey{Proto: netplan.TCP, Number: 443}
	eventually(t, "port 80", func() bool { p, ok := h.net.port(k80); return ok && len(p.Backends4) == 1 })
	m.publish(row(443))
	eventually(t, "the clash is told", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.clashes) == 1 && m.clashes[0].Port == 443 && strings.Contains(m.clashes[0].Message, "apache2 (pid 123)")
	})
	if _, ok := h.net.port(k443); ok {
		t.Error("a port that another program has was published")
	}
	m.set(func() {
		m.index++
		m.sendTables(&pb.Tables{At: m.at(), PortsRemoved: []*pb.PortKey{{Protocol: "tcp", Port: 80}, {Protocol: "tcp", Port: 443}}})
	})
	eventually(t, "both gone", func() bool {
		_, ok := h.net.port(k80)
		m.mu.Lock()
		defer m.mu.Unlock()
		return !ok && len(m.clashes) == 0 && !h.keeper.holds(ports.Port{Proto: "tcp", Port: 80})
	})
}

// An ingress port that a task holds in host mode is told as a clash until the task has gone; then it is served.
func TestIngressPortAfterHostPort(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec(), swarm.PortConfig{TargetPort: 80, PublishedPort: 9090, Protocol: "tcp", PublishMode: swarm.PortConfigPublishModeHost})
	id := m.assign(1, 1, model.StateRunning)
	h.start(t)
	m.awaitState(id, model.StateRunning)
	m.publish(&pb.PortRow{Key: &pb.PortKey{Protocol: "tcp", Port: 9090}, Service: 2, Backends: []*pb.Backend{{Addr4: []byte{10, 128, 1, 9}, Port: 8080}}})
	clashes := func() int {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.clashes)
	}
	eventually(t, "the clash is told", func() bool { return clashes() == 1 })
	m.assign(1, 1, model.StateShutdown)
	eventually(t, "the port is served and no clash any more", func() bool {
		p, ok := h.net.port(netplan.PortKey{Proto: netplan.TCP, Number: 9090})
		return ok && p.Mode == netplan.Ingress && clashes() == 0
	})
}

// A task is told to stop when no published port of the node leads to it any more, or when it takes too long.
func TestStopsWhatIsNotPublished(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	var ids []model.TaskID
	for num := range uint64(2) {
		ids = append(ids, m.assign(num+1, 1, model.StateRunning))
	}
	row := &pb.PortRow{Key: &pb.PortKey{Protocol: "tcp", Port: 80}, Service: 1}
	for num := range byte(2) {
		row.Backends = append(row.Backends, &pb.Backend{Addr4: []byte{10, 128, 1, 3 + num}, Port: 8080})
	}
	m.publish(row)
	h.start(t)
	key := netplan.PortKey{Proto: netplan.TCP, Number: 80}
	for _, id := range ids {
		m.awaitState(id, model.StateRunning)
	}
	eventually(t, "two backends", func() bool { p, _ := h.net.port(key); return len(p.Backends4) == 2 })

	running := func() (n int) {
		for _, c := range h.node.Containers() {
			if c.State == runtime.Running {
				n++
			}
		}
		return n
	}
	var when []int
	h.net.mu.Lock()
	h.net.onSet = func() { when = append(when, running()) }
	h.net.mu.Unlock()
	m.assign(1, 1, model.StateShutdown)
	m.publish(&pb.PortRow{Key: row.Key, Service: 1, Backends: row.Backends[1:]})
	m.awaitState(ids[0], model.StateShutdown)
	h.net.mu.Lock()
	if !slices.Equal(when, []int{2}) {
		t.Errorf("as the port changed, %v containers ran; want one change, while both ran", when)
	}
	h.net.mu.Unlock()

	// Nobody takes the other one away from the port: it stops all the same.
	told := time.Now()
	m.assign(2, 1, model.StateShutdown)
	m.awaitState(ids[1], model.StateShutdown)
	if took := time.Since(told); took < withdrawalWait {
		t.Errorf("stopped after %v, while the port led to it", took)
	}
	if p, _ := h.net.port(key); len(p.Backends4) != 1 {
		t.Errorf("backends %v", p.Backends4)
	}
}

func TestPrunesWhatNobodyAskedFor(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	keep := m.assign(1, 1, model.StateRunning)
	_, stop := h.start(t)
	m.awaitState(keep, model.StateRunning)
	m.disconnect()
	stop()
	stray := ContainerID("stray")
	c, err := h.node.Runtime().Controller(runtime.Spec{ID: stray, TaskID: "stray", Labels: map[string]string{"com.docker.swarm.task.id": "stray"}, Task: simpleSpec()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(h.dir, "containers", stray), 0o755); err != nil {
		t.Fatal(err)
	}
	h.keeper.held[ports.Port{Proto: "tcp", Port: 7777}] = true
	h.start(t)
	eventually(t, "strays gone", func() bool {
		_, err := os.Stat(filepath.Join(h.dir, "containers", stray))
		return errors.Is(err, os.ErrNotExist) && len(h.node.Containers()) == 1 && !h.keeper.holds(ports.Port{Proto: "tcp", Port: 7777})
	})
	if s := containerState(h.node, ContainerID(externalID(1))); s != runtime.Running {
		t.Errorf("the task's own container: %q", s)
	}
}
