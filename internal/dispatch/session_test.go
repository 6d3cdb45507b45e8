package dispatch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/pki"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

func TestSessionTellsOnlyDifferences(t *testing.T) {
	c := newCluster(t, 2)
	c.service(1, "web", 8080)
	id := c.task(1, 1, 1)
	c.task(1, 2, 2)
	p := c.mustJoin(1)
	if p.welcome.Session != 1 || len(p.welcome.Managers) != 1 || p.welcome.HeartbeatPeriodMs < 900 || p.welcome.HeartbeatPeriodMs > 1100 {
		t.Errorf("welcome: %v", p.welcome)
	}
	tab := next(p, "tables", tablesOf)
	if !tab.Complete || len(tab.Ports) != 1 || len(tab.Ports[0].Backends) != 0 || tab.Ports[0].Key.Port != 8080 || len(tab.Nodes) != 2 {
		t.Errorf("first tables: %v", tab)
	}
	a := next(p, "assignments", assignments)
	if !a.Complete || len(a.Tasks) != 1 || wire.TaskID(a.Tasks[0].Ref) != id || len(a.Templates) != 1 || a.Node == nil {
		t.Errorf("first assignments: %v", a)
	}
	p.report(p.welcome.Session, 1, id, model.StateRunning)
	next(p, "ack", acked(1))
	if s := c.rep.Snapshot().Task(id); s.State != model.StateRunning {
		t.Errorf("task is %s", s.State)
	}
	tab = next(p, "delta", tablesOf)
	if tab.Complete || len(tab.Ports) != 1 || len(tab.Ports[0].Backends) != 1 || tab.Ports[0].Backends[0].Port != 80 {
		t.Errorf("delta: %v", tab)
	}
	// The node's own report is no news to it; the next thing that it hears of is a second task without its template.
	id3 := c.task(1, 3, 1)
	a = next(p, "increment", assignments)
	if a.Complete || len(a.Tasks) != 1 || wire.TaskID(a.Tasks[0].Ref) != id3 || len(a.Templates) != 0 {
		t.Errorf("increment: %v", a)
	}
	c.apply(model.Change{SetTaskDesired: &model.TaskDesiredSet{Task: id, Desired: model.StateShutdown}})
	// Traffic is withdrawn before the task is told to stop.
	tab = next(p, "withdrawn", tablesOf)
	if len(tab.Ports) != 1 || len(tab.Ports[0].Backends) != 0 {
		t.Errorf("withdrawn: %v", tab)
	}
	a = next(p, "shutdown", assignments)
	if len(a.Tasks) != 1 || a.Tasks[0].Desired != uint32(model.StateShutdown) {
		t.Errorf("shutdown: %v", a)
	}
	c.apply(model.Change{DeleteTask: &id})
	a = next(p, "removal", assignments)
	if len(a.Removed) != 1 || wire.TaskID(a.Removed[0]) != id {
		t.Errorf("removal: %v", a)
	}
	c.apply(model.Change{DeleteService: 1})
	tab = next(p, "row removed", tablesOf)
	if len(tab.PortsRemoved) != 1 || tab.PortsRemoved[0].Port != 8080 {
		t.Errorf("row removed: %v", tab)
	}
}

func TestBeatSaysHowFar(t *testing.T) {
	c := newCluster(t, 2)
	p := c.mustJoin(1)
	next(p, "assignments", assignments)
	c.service(1, "web", 0)
	want := c.rep.Snapshot().Index()
	// Nothing of this concerns the node, and its place in history rises all the same.
	for n := uint64(1); ; n++ {
		p.send(&pb.FromAgent{Kind: &pb.FromAgent_Heartbeat{Heartbeat: &pb.Heartbeat{Number: n}}})
		b := next(p, "beat", func(m *pb.ToAgent) (*pb.Beat, bool) { b := m.GetBeat(); return b, b != nil })
		if b.Number != n {
			t.Fatalf("beat %d answers %d", b.Number, n)
		}
		if b.At.Index >= want {
			break
		}
	}
}

func TestReportsSurviveALostLeader(t *testing.T) {
	c := newCluster(t, 1)
	c.service(1, "web", 0)
	id := c.task(1, 1, 1)
	p := c.mustJoin(1)
	c.mu.Lock()
	c.refuse = model.Errorf(model.Unavailable, "no leader")
	c.mu.Unlock()
	p.report(p.welcome.Session, 1, id, model.StateRunning)
	p.send(&pb.FromAgent{Kind: &pb.FromAgent_Heartbeat{Heartbeat: &pb.Heartbeat{Number: 7}}})
	next(p, "beat", func(m *pb.ToAgent) (bool, bool) {
		if m.GetReportsAck() != nil {
			t.Error("acknowledged what was never written")
		}
		return true, m.GetBeat() != nil
	})
	c.mu.Lock()
	c.refuse = nil
	c.mu.Unlock()
	next(p, "ack", acked(1))
	// The same again is superseded, and acknowledged so that the node may go on.
	p.report(p.welcome.Session, 1, id, model.StateStarting)
	next(p, "ack again", acked(1))
	if s := c.rep.Snapshot().Task(id); s.State != model.StateRunning {
		t.Errorf("task went to %s", s.State)
	}
}

func clashes(n int) []*pb.PortClash {
	out := make([]*pb.PortClash, n)
	for i := range out {
		out[i] = &pb.PortClash{Protocol: "tcp", Port: 80, Message: "another program"}
	}
	return out
}

func TestSessionRefusals(t *testing.T) {
	c := newCluster(t, 1)
	hello := func(inc, index uint64) *pb.Hello {
		return &pb.Hello{Applied: &pb.Position{Incarnation: inc, Index: index}, Description: description("h")}
	}
	for _, tc := range []struct {
		name  string
		node  model.NodeID
		hello *pb.Hello
		kind  model.ErrKind
	}{
		{"no certificate", 0, hello(1, 1), model.Unauthorized},
		{"unknown node", 77, hello(1, 1), model.NotFound},
		{"a later life of the cluster", 1, hello(9, 1), model.FailedPrecondition},
		{"a session number that leaves none", 1, &pb.Hello{LastSession: 1<<64 - 2, Description: description("h")}, model.Invalid},
		{"a description too long", 1, &pb.Hello{Description: &pb.Description{DescriptionJson: []byte("{}"), PortClashes: clashes(100_000)}}, model.Invalid},
		{"broken description", 1, &pb.Hello{Description: &pb.Description{DescriptionJson: []byte("{")}}, model.Invalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := c.join(tc.node, tc.hello); model.KindOf(err) != tc.kind {
				t.Errorf("error %v of kind %d, want kind %d", err, model.KindOf(err), tc.kind)
			}
		})
	}
	t.Run("suspended", func(t *testing.T) {
		p := c.mustJoin(1)
		c.srv.Suspend("no contact to the leader")
		for range p.got {
		}
		if _, err := c.join(1, hello(1, 1)); model.KindOf(err) != model.Unavailable {
			t.Errorf("suspended: %v", err)
		}
		c.srv.Resume()
		c.mustJoin(1)
	})
	t.Run("bad reports", func(t *testing.T) {
		p := c.mustJoin(1)
		p.report(p.welcome.Session, 1, model.TaskID{Service: 1, Num: 1}, model.StateOrphaned)
		for range p.got {
		}
	})
}

// A manager that is behind the node holds its answer until it has caught up.
func TestHoldsAnswerUntilCaughtUp(t *testing.T) {
	c := newCluster(t, 1)
	ahead := c.rep.Snapshot().Index() + 2
	got := make(chan error, 1)
	var p *peer
	go func() {
		var err error
		p, err = c.join(1, &pb.Hello{Applied: &pb.Position{Incarnation: 1, Index: ahead}, Description: description("")})
		got <- err
	}()
	c.service(1, "a", 0)
	c.service(2, "b", 0)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if p.welcome.At.Index < ahead {
		t.Errorf("welcomed at %d, the node has %d", p.welcome.At.Index, ahead)
	}
	if a := next(p, "assignments", assignments); a.At.Index < ahead {
		t.Errorf("assignments of %d", a.At.Index)
	}
}

// What a node is told is never older than what it has applied, also when no row has changed for long: it would refuse it for
// ever. The manager here began with a state in which the rows were as they are now, as after a restart from a snapshot; meanwhile
// a port came and went, of which the node heard.
func TestTablesAreNotOlderThanTheNode(t *testing.T) {
	c := newCluster(t, 1)
	c.service(1, "a", 80)
	other := c.mustJoin(1)
	next(other, "the tables", tablesOf)
	for _, id := range []model.ServiceID{2, 3} {
		c.service(id, "b", 0)
		c.apply(model.Change{DeleteService: id})
		ahead := c.rep.Snapshot().Index()
		p, err := c.join(1, &pb.Hello{Applied: &pb.Position{Incarnation: 1, Index: ahead}, Description: description("")})
		if err != nil {
			t.Fatal(err)
		}
		if tab := next(p, "the tables", tablesOf); tab.At.Index < ahead || !tab.Complete || len(tab.Ports) != 1 {
			t.Errorf("the node has applied %d and is told %v", ahead, tab)
		}
	}
}

func TestNewSessionReplacesOld(t *testing.T) {
	c := newCluster(t, 1)
	old := c.mustJoin(1)
	p := c.mustJoin(1)
	for range old.got {
	}
	if p.welcome.Session <= old.welcome.Session {
		t.Errorf("session %d after %d", p.welcome.Session, old.welcome.Session)
	}
	p.send(&pb.FromAgent{Kind: &pb.FromAgent_Heartbeat{Heartbeat: &pb.Heartbeat{Number: 1}}})
	next(p, "beat", func(m *pb.ToAgent) (bool, bool) { return true, m.GetBeat() != nil })
	if st := c.srv.Nodes(); len(st) != 1 || !st[0].Connected {
		t.Errorf("nodes: %+v", st)
	}
}

func TestDescriptionIsProposedOnce(t *testing.T) {
	c := newCluster(t, 1)
	p := c.mustJoin(1)
	d := description("renamed")
	d.Routes = []string{"10.0.0.0/8"}
	d.PortClashes = []*pb.PortClash{{Protocol: "tcp", Port: 80, Message: "nginx"}}
	p.send(&pb.FromAgent{Kind: &pb.FromAgent_Description{Description: d}})
	deadline := time.Now().Add(10 * time.Second)
	for c.rep.Snapshot().Node(1).Hostname() != "renamed" && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	n := c.rep.Snapshot().Node(1)
	if n.Hostname() != "renamed" || len(n.Routes) != 1 || len(n.PortClashes) != 1 {
		t.Fatalf("node: %+v", n)
	}
	before := c.rep.Snapshot().Index()
	p.send(&pb.FromAgent{Kind: &pb.FromAgent_Description{Description: d}})
	p.send(&pb.FromAgent{Kind: &pb.FromAgent_Heartbeat{Heartbeat: &pb.Heartbeat{Number: 1}}})
	next(p, "beat", func(m *pb.ToAgent) (bool, bool) { return true, m.GetBeat() != nil })
	if now := c.rep.Snapshot().Index(); now != before {
		t.Errorf("the same description made %d log entries", now-before)
	}
}

func TestAskAndLogs(t *testing.T) {
	c := newCluster(t, 1)
	if _, err := c.srv.CheckPorts(t.Context(), 1, nil); model.KindOf(err) != model.Unavailable {
		t.Errorf("a node without a session: %v", err)
	}
	p := c.mustJoin(1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		q := next(p, "ask", func(m *pb.ToAgent) (*pb.Ask, bool) { a := m.GetAsk(); return a, a != nil })
		p.send(&pb.FromAgent{Kind: &pb.FromAgent_AskReply{AskReply: &pb.AskReply{Id: q.Id,
			Kind: &pb.AskReply_PortsChecked{PortsChecked: &pb.PortsChecked{Clashes: []*pb.PortClash{{Protocol: "tcp", Port: q.GetCheckPorts().Ports[0].Port, Message: "taken"}}}}}}})
		o := next(p, "open", func(m *pb.ToAgent) (*pb.OpenStream, bool) { o := m.GetOpenStream(); return o, o != nil })
		s, err := pb.NewDispatchClient(p.conn).Stream(context.Background())
		if err != nil {
			t.Error(err)
			return
		}
		for _, f := range []*pb.Frame{
			{Kind: &pb.Frame_Open{Open: &pb.StreamOpen{Token: o.Token}}},
			{Kind: &pb.Frame_LogEntries{LogEntries: &pb.LogEntries{Entries: []*pb.LogEntry{{Task: o.GetLogs().Tasks[0], Time: 5, Stream: "stdout", Line: []byte("hello")}}}}},
			{Kind: &pb.Frame_Close{Close: &pb.StreamClose{Error: "no more", ErrorKind: uint32(model.NotFound)}}},
		} {
			if err := s.Send(f); err != nil {
				t.Error(err)
			}
		}
		if _, err := s.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("end of the stream: %v", err)
		}
	})
	clashes, err := c.srv.CheckPorts(t.Context(), 1, []model.PortClash{{Protocol: "tcp", Port: 81}})
	if err != nil || len(clashes) != 1 || clashes[0].Port != 81 || clashes[0].Message != "taken" {
		t.Errorf("%v, %v", clashes, err)
	}
	var lines []string
	err = c.srv.Logs(t.Context(), 1, LogRequest{Tasks: []model.TaskID{{Service: 1, Num: 2}}, Tail: -1}, func(e *LogEntry) error {
		lines = append(lines, fmt.Sprintf("%d.%d %s %s", e.Task.Service, e.Task.Num, e.Stream, e.Line))
		return nil
	})
	if model.KindOf(err) != model.NotFound || len(lines) != 1 || lines[0] != "1.2 stdout hello" {
		t.Errorf("%q, %v", lines, err)
	}
}

// What a node says of tasks that it was not asked about goes to nobody.
func TestLogsOfOtherTasksAreRefused(t *testing.T) {
	c := newCluster(t, 1)
	p := c.mustJoin(1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		o := next(p, "open", func(m *pb.ToAgent) (*pb.OpenStream, bool) { o := m.GetOpenStream(); return o, o != nil })
		s, err := pb.NewDispatchClient(p.conn).Stream(context.Background())
		if err == nil {
			err = s.Send(&pb.Frame{Kind: &pb.Frame_Open{Open: &pb.StreamOpen{Token: o.Token}}})
		}
		if err == nil {
			err = s.Send(&pb.Frame{Kind: &pb.Frame_LogEntries{LogEntries: &pb.LogEntries{Entries: []*pb.LogEntry{{Task: wire.Ref(model.TaskID{Service: 9, Num: 1}), Line: []byte("forged")}}}}})
		}
		if err != nil {
			t.Error(err)
		}
		_, _ = s.Recv() // until the manager is through
	})
	err := c.srv.Logs(t.Context(), 1, LogRequest{Tasks: []model.TaskID{{Service: 1, Num: 2}}, Tail: -1}, func(e *LogEntry) error {
		t.Errorf("told %q of task %v", e.Line, e.Task)
		return nil
	})
	if model.KindOf(err) != model.Forbidden {
		t.Errorf("Logs = %v", err)
	}
}

func TestJoinAndRenew(t *testing.T) {
	c := newCluster(t, 1)
	key, err := pki.NewNodeKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(rand.Reader, key)
	if err != nil {
		t.Fatal(err)
	}
	stranger, member := c.dial(0), c.dial(1)
	defer stranger.Close()
	defer member.Close()
	ca := pb.NewCAClient(stranger)
	if r, err := ca.GetRootCA(t.Context(), &pb.GetRootCARequest{}); err != nil || string(r.CaPem) != string(c.ca.CertPEM()) {
		t.Errorf("root: %v", err)
	}
	req := &pb.IssueNodeCertificateRequest{CsrPem: csr, JoinToken: pki.MakeToken(c.ca.Certificate(), c.secret).String(), JoinKey: make([]byte, 16)}
	first, err := ca.IssueNodeCertificate(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ca.IssueNodeCertificate(t.Context(), req)
	if err != nil || again.NodeId != first.NodeId || first.Role != "worker" {
		t.Errorf("joined as %s, again as %s (%s): %v", first.NodeId, again.GetNodeId(), first.Role, err)
	}
	if c.rep.Snapshot().NumNodes() != 2 {
		t.Errorf("%d nodes", c.rep.Snapshot().NumNodes())
	}
	bad := &pb.IssueNodeCertificateRequest{CsrPem: csr, JoinToken: pki.MakeToken(c.ca.Certificate(), "0000000000000000000000000").String(), JoinKey: make([]byte, 16)}
	if _, err := ca.IssueNodeCertificate(t.Context(), bad); model.KindOf(wire.FromStatus(err)) != model.Forbidden {
		t.Errorf("a wrong token: %v", err)
	}
	if _, err := ca.IssueNodeCertificate(t.Context(), &pb.IssueNodeCertificateRequest{CsrPem: csr}); model.KindOf(wire.FromStatus(err)) != model.Unauthorized {
		t.Errorf("neither token nor certificate: %v", err)
	}
	r, err := pb.NewCAClient(member).IssueNodeCertificate(t.Context(), &pb.IssueNodeCertificateRequest{CsrPem: csr})
	if err != nil || r.NodeId != c.rep.Snapshot().Cluster().Namer().NodeID(1) {
		t.Errorf("renewal: %v, %v", r, err)
	}
}

func TestRemovedNodeIsSentAway(t *testing.T) {
	c := newCluster(t, 2)
	p := c.mustJoin(2)
	next(p, "assignments", assignments)
	c.apply(model.Change{DeleteNode: 2})
	for range p.got {
	}
	if _, err := c.join(2, &pb.Hello{}); model.KindOf(err) != model.NotFound {
		t.Errorf("a removed node: %v", err)
	}
}

func TestLeaseExpires(t *testing.T) {
	c := newCluster(t, 1)
	p := c.mustJoin(1)
	// As the ticker will, once the lease is over.
	c.srv.expire(time.Now().Add(4 * time.Second))
	for range p.got {
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.leases) != 2 || !c.leases[0].Up || c.leases[1].Up {
		t.Errorf("leases: %+v", c.leases)
	}
	if len(c.srv.Nodes()) != 0 {
		t.Errorf("nodes: %+v", c.srv.Nodes())
	}
}

// BenchmarkThousandSessions measures one published task's change reaching a thousand nodes.
func BenchmarkThousandSessions(b *testing.B) {
	const nodes = 1000
	c := newCluster(b, nodes)
	c.service(1, "web", 8080)
	c.apply(model.Change{SetPorts: &model.PortsSet{Service: 1, Ports: []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080}}}})
	var peers []*peer
	for n := range nodes {
		p := c.mustJoin(model.NodeID(n + 1))
		next(p, "assignments", assignments)
		peers = append(peers, p)
	}
	num := uint64(0)
	for b.Loop() {
		num++
		id := c.task(1, num, model.NodeID(num%nodes+1))
		p := peers[num%nodes]
		next(p, "task", assignments)
		p.report(p.welcome.Session, num, id, model.StateRunning)
		for _, p := range peers {
			next(p, "row", func(m *pb.ToAgent) (bool, bool) {
				t, ok := tablesOf(m)
				return true, ok && len(t.Ports) == 1 && uint64(len(t.Ports[0].Backends)) == num
			})
		}
	}
}
