package manager

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/raftlog"
	"github.com/skep-swarm/skep/internal/replica"
)

// memLog applies proposals at once; fail makes the next ones fail.
type memLog struct {
	mu   sync.Mutex
	r    *replica.Replica
	at   uint64
	fail error
}

func (l *memLog) Propose(_ context.Context, data []byte) (uint64, any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return 0, nil, l.fail
	}
	l.at++
	return l.at, l.r.Apply(l.at, data), nil
}

// swarmOf starts a manager over a state with one node of 4 CPUs.
type testSwarm struct {
	t       *testing.T
	log     *memLog
	r       *replica.Replica
	m       *Manager
	prop    *Proposer
	leading chan raftlog.Leadership
}

func newSwarm(t *testing.T) *testSwarm { return newLoggedSwarm(t, io.Discard) }

func newLoggedSwarm(t *testing.T, out io.Writer) *testSwarm {
	r := replica.New()
	s := &testSwarm{t: t, r: r, log: &memLog{r: r}, leading: make(chan raftlog.Leadership, 1)}
	s.prop = &Proposer{Log: s.log}
	s.m = New(Config{State: r, Proposer: s.prop, Leadership: s.leading, LeasePeriod: func() time.Duration { return 15 * time.Second }, Log: slog.New(slog.NewTextHandler(out, nil))})
	s.must(model.Change{PutCluster: &model.Cluster{IDKey: [16]byte{1}, GatewayPool: netip.MustParsePrefix("10.255.0.0/16"), GatewayULA: netip.MustParsePrefix("fd00:1::/48")}})
	s.must(model.Change{PutNode: &model.Node{ID: 1, State: swarm.NodeStateUnknown, Spec: swarm.NodeSpec{Availability: "active", Role: "manager"},
		Gateway6:    netip.MustParsePrefix("fd00:1:0:1::/64"),
		Description: swarm.NodeDescription{Hostname: "one", Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"}, Resources: swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 1 << 30}}}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	s.leading <- raftlog.Leadership{Leader: true}
	return s
}

func (s *testSwarm) must(changes ...model.Change) {
	s.t.Helper()
	out, err := s.prop.Propose(s.t.Context(), &model.Batch{Actor: "test", Txns: []model.Txn{{Changes: changes}}})
	if err == nil {
		err = out.Results[0]
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *testSwarm) service(name string, replicas int, task string) {
	s.t.Helper()
	raw := fmt.Sprintf(`{"Name":%q,"Mode":{"Replicated":{"Replicas":%d}},"TaskTemplate":%s}`, name, replicas, task)
	spec, err := model.ParseSpec[swarm.ServiceSpec]([]byte(raw))
	if err != nil {
		s.t.Fatal(err)
	}
	snap := s.r.Snapshot()
	id := snap.LastService() + 1
	if v := snap.ServiceByName(name); v != nil {
		id = v.ID
	}
	tpl, err := model.NewTemplate(id, spec, "")
	if err != nil {
		s.t.Fatal(err)
	}
	rev := &model.NewRevision{Service: id, Spec: spec}
	if old := snap.TemplateByHash(id, tpl.Hash); old != nil {
		rev.TemplateID = old.ID
	} else {
		tpl.ID = snap.LastTemplate() + 1
		rev.Template = tpl
	}
	s.must(model.Change{NewRevision: rev})
}

// run lets the loop come to rest and reports running for whatever was assigned.
func (s *testSwarm) run() (states map[model.TaskState]int) {
	s.t.Helper()
	for range 20 {
		synctest.Wait()
		states = map[model.TaskState]int{}
		var reports []model.TaskReport
		for task := range s.r.Snapshot().AllTasks() {
			states[task.State]++
			switch {
			case task.State == model.StateAssigned && task.Desired == model.StateRunning:
				reports = append(reports, model.TaskReport{Task: task.ID, State: model.StateRunning})
			case task.Desired > model.StateRunning && !task.State.Terminal() && task.State >= model.StateAssigned:
				reports = append(reports, model.TaskReport{Task: task.ID, State: model.StateShutdown})
			}
		}
		if len(reports) == 0 {
			return states
		}
		n := s.r.Snapshot().Node(1)
		s.must(model.Change{Report: &model.Report{Node: 1, Session: 1, Seq: n.Seq + 1, Tasks: reports}})
	}
	s.t.Fatal("the swarm does not come to rest")
	return nil
}

func TestServiceIsPlannedWhenItsNodeComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.service("web", 3, `{"Resources":{"Reservations":{"NanoCPUs":1000000000}}}`)
		if got := s.run(); got[model.StatePending] != 3 {
			t.Fatalf("without a ready node: %v", got)
		}
		for task := range s.r.Snapshot().AllTasks() {
			if task.Err == "" {
				t.Error("a pending task gives no reason")
			}
		}
		s.m.NodeUp(1, "192.0.2.1")
		if got := s.run(); got[model.StateRunning] != 3 {
			t.Fatalf("after the node came: %v", got)
		}
		n := s.r.Snapshot().Node(1)
		if n.State != swarm.NodeStateReady || n.Addr != "192.0.2.1" || len(n.Blocks) != 1 {
			t.Errorf("node: %s %s %v", n.State, n.Addr, n.Blocks)
		}
		s.service("web", 5, `{"Resources":{"Reservations":{"NanoCPUs":1000000000}}}`)
		if got := s.run(); got[model.StateRunning] != 4 || got[model.StatePending] != 1 {
			t.Fatalf("five tasks of one CPU on a node of four: %v", got)
		}
		index := s.r.Snapshot().Index()
		time.Sleep(time.Hour) // virtual: a swarm at rest writes nothing
		synctest.Wait()
		if got := s.r.Snapshot().Index(); got != index {
			t.Errorf("a swarm at rest wrote %d entries in an hour", got-index)
		}
	})
}

func TestRestartWaitsAndFreedCapacityIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.m.NodeUp(1, "192.0.2.1")
		s.service("web", 1, `{"RestartPolicy":{"Delay":7000000000}}`)
		s.run()
		first := model.TaskID{Service: 1, Num: 1}
		s.must(model.Change{Report: &model.Report{Node: 1, Session: 1, Seq: 100, Tasks: []model.TaskReport{{Task: first, State: model.StateFailed, Err: "task: non-zero exit (1)"}}}})
		synctest.Wait()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		second := s.r.Snapshot().Task(model.TaskID{Service: 1, Num: 2})
		if second == nil || second.Desired != model.StateReady {
			t.Fatalf("six seconds after the failure: %+v", second)
		}
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if second = s.r.Snapshot().Task(second.ID); second.Desired != model.StateRunning {
			t.Fatalf("after the delay the task is desired %s", second.Desired)
		}
	})
}

func TestFullDiskHoldsPlansBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.m.NodeUp(1, "192.0.2.1")
		s.run()
		s.service("web", 1, `{}`)
		s.log.mu.Lock()
		s.log.fail = raftlog.ErrNotRunning
		s.log.mu.Unlock()
		time.Sleep(10 * time.Second)
		s.log.mu.Lock()
		s.log.fail = nil
		s.log.mu.Unlock()
		time.Sleep(3 * time.Second)
		if got := s.run(); got[model.StateRunning] != 1 {
			t.Errorf("after the log took writes again: %v", got)
		}
	})
}

func TestSilentNodeGoesDownAfterALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		time.Sleep(14 * time.Second)
		synctest.Wait()
		if n := s.r.Snapshot().Node(1); n.State == swarm.NodeStateDown {
			t.Fatal("down before the lease was over")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := s.r.Snapshot().Node(1); n.State != swarm.NodeStateDown || n.Message == "" {
			t.Errorf("after the lease: %s %q", n.State, n.Message)
		}
	})
}

// logText is a log that is read while it is written.
type logText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestBrakeIsTold: the operator hears when the brake on mass failure takes hold and when it lets go, whichever way, also
// when no service is concerned.
func TestBrakeIsTold(t *testing.T) {
	for _, how := range []string{"nodes came back", "the nodes did not come back", "the loss is accepted"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out logText
				s := newLoggedSwarm(t, &out)
				for i := range 3 {
					s.must(model.Change{PutNode: &model.Node{ID: model.NodeID(i + 2)}})
				}
				for i := range 4 {
					s.m.NodeUp(model.NodeID(i+1), "")
				}
				time.Sleep(20 * time.Second)
				synctest.Wait()
				said := func(want int, text string) {
					t.Helper()
					if n := strings.Count(out.String(), "mass failure"); n != want || !strings.Contains(out.String(), text) {
						t.Fatalf("the log says:\n%s\nwanted are %d lines, with %q", out.String(), want, text)
					}
				}
				s.m.NodeDown(1, "gone")
				synctest.Wait()
				said(0, "")
				s.m.NodeDown(2, "gone")
				synctest.Wait()
				said(1, "2 of 4 nodes went down")
				time.Sleep(50 * time.Second)
				synctest.Wait()
				said(1, "")
				switch how {
				case "nodes came back":
					s.m.NodeUp(1, "")
				case "the loss is accepted":
					c := *s.r.Snapshot().Cluster()
					c.LossAccepted = model.Time(time.Now().UnixNano())
					s.must(model.Change{PutCluster: &c})
				default:
					time.Sleep(11 * time.Second)
				}
				synctest.Wait()
				said(2, how)
			})
		})
	}
}

func TestFold(t *testing.T) {
	s := replica.New().Snapshot()
	id := model.TaskID{Service: 1, Num: 1}
	p := newPlan(s)
	p.add(&model.Txn{Changes: []model.Change{{PutTask: &model.Task{ID: id}}}, Guards: []model.Guard{{Key: model.TaskKey(id), Group: model.GroupDesired}}})
	p.add(&model.Txn{Changes: []model.Change{{SetTaskPlace: &model.TaskPlaceSet{Task: id, Node: 1}}}, Guards: []model.Guard{{Key: model.TaskKey(id), Group: model.GroupPlace, Version: 1}}})
	txns := p.txns()
	if len(txns) != 1 || len(txns[0].Changes) != 1 || len(txns[0].Guards) != 1 {
		t.Fatalf("%d transactions: %+v", len(txns), txns)
	}
	if task := txns[0].Changes[0].PutTask; task.Node != 1 || task.State != model.StateAssigned {
		t.Errorf("folded task: %+v", task)
	}
}
