package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

const (
	maxDescription = 1 << 20 // bytes, all parts of it
	maxRoutes      = 1024
	// maxSessionLead is how many sessions in a row may have ended without a report that was written. A number near the
	// end of the range would leave none for the sessions to come.
	maxSessionLead = 1 << 32
)

// session is one node's conversation. The RPC's goroutine receives; a second one sends what is marked as due.
type session struct {
	srv    *Server
	node   model.NodeID
	num    uint64
	period time.Duration
	floor  uint64 // index that the node had applied when the session began
	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   chan struct{}

	mu sync.Mutex
	marks

	// Of the sending goroutine.
	view view
}

func (n *session) close(why error) { n.cancel(why) }

// Session implements the RPC.
func (s *Server) Session(stream pb.Dispatch_SessionServer) error {
	hello, err := receiveHello(stream)
	if err != nil {
		return err
	}
	snap, err := s.catchUp(stream.Context(), hello.GetApplied())
	if err != nil {
		return err
	}
	node, err := caller(stream.Context(), snap)
	if err != nil {
		return err
	}
	if hello.LastSession > node.Session+maxSessionLead {
		return model.Invalidf("the node's last session cannot have been number %d: number %d was the last one to report", hello.LastSession, node.Session)
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	n := &session{srv: s, node: node.ID, ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1),
		num: max(hello.LastSession, node.Session) + 1, period: period(snap), marks: newMarks()}
	if hello.GetApplied().GetIncarnation() == snap.Cluster().Incarnation {
		n.floor = hello.GetApplied().GetIndex()
	}
	defer n.leaveNets() // once the sender has ended
	n.view.reset()
	if err := s.begin(n, wire.PeerAddr(stream.Context()), hello); err != nil {
		return err
	}
	defer s.end(n)
	if err := s.describe(ctx, n, snap, hello.Description); err != nil {
		return err
	}
	if err := stream.Send(s.welcome(n, snap)); err != nil {
		return err
	}
	n.mark(func() {}) // the complete sets are due
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if err := n.send(stream); err != nil {
			cancel(err)
		}
	}()
	received := make(chan error, 1)
	go func() { received <- s.receive(n, stream) }()
	// The receiver ends when the stream does, which is when this function returns; so it is not waited for.
	select {
	case err = <-received:
		cancel(err)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	<-sent
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func receiveHello(stream pb.Dispatch_SessionServer) (*pb.Hello, error) {
	type result struct {
		m   *pb.FromAgent
		err error
	}
	got := make(chan result, 1)
	go func() {
		m, err := stream.Recv()
		got <- result{m, err}
	}()
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case r := <-got:
		if r.err != nil {
			return nil, r.err
		}
		if r.m.GetHello() == nil {
			return nil, model.Invalidf("a session begins with Hello")
		}
		return r.m.GetHello(), nil
	case <-timer.C:
		return nil, model.Invalidf("no Hello within %s", helloTimeout)
	case <-stream.Context().Done():
		return nil, stream.Context().Err()
	}
}

// catchUp waits until this manager knows what the node knows already.
func (s *Server) catchUp(ctx context.Context, applied *pb.Position) (*state.Snapshot, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, catchUpTimeout, model.Errorf(model.Unavailable, "this manager is behind the node"))
	defer cancel()
	snap := s.cfg.State.Snapshot()
	c := snap.Cluster()
	if c == nil {
		return nil, model.Errorf(model.Unavailable, "this manager has no cluster yet")
	}
	switch {
	case applied.GetIncarnation() > c.Incarnation:
		return nil, model.Errorf(model.FailedPrecondition, "this manager belongs to a former life of the cluster")
	case applied.GetIncarnation() == c.Incarnation:
		snap, err := s.cfg.State.WaitIndex(ctx, applied.GetIndex())
		if err != nil {
			return nil, err
		}
		return snap, s.waitMarked(ctx, applied.GetIndex())
	}
	return snap, nil
}

// begin makes n the node's session; an older one ends.
func (s *Server) begin(n *session, addr string, hello *pb.Hello) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.running:
		return model.Errorf(model.Unavailable, "the manager is stopping")
	case s.refusal != "":
		return model.Errorf(model.Unavailable, "%s", s.refusal)
	case len(s.sessions) >= maxSessions:
		return model.Errorf(model.Exhausted, "this manager serves %d nodes, which is its limit", maxSessions)
	}
	if old := s.sessions[n.node]; old != nil {
		n.num = max(n.num, old.num+1)
		old.close(model.Stalef("the node began another session"))
		s.withdrawals.lose(n.node)
		s.finish(time.Now())
	}
	s.sessions[n.node] = n
	s.leases[n.node] = &lease{until: time.Now().Add(leasePeriods * n.period), addr: addr, applied: position(hello.Applied), connected: true}
	s.cfg.Lease(Lease{Node: n.node, Up: true, Addr: addr})
	return nil
}

func (s *Server) end(n *session) {
	s.streams.drop(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[n.node] == n {
		delete(s.sessions, n.node)
		s.withdrawals.lose(n.node)
		s.finish(time.Now())
		if l := s.leases[n.node]; l != nil {
			l.connected = false
		}
	}
}

func (s *Server) welcome(n *session, snap *state.Snapshot) *pb.ToAgent {
	namer := snap.Cluster().Namer()
	return &pb.ToAgent{Kind: &pb.ToAgent_Welcome{Welcome: &pb.Welcome{
		Session: n.num, HeartbeatPeriodMs: jittered(n.period), At: at(snap), Managers: managers(snap),
		NodeId: namer.NodeID(n.node), ClusterId: namer.ClusterID(), FeatureLevel: snap.Cluster().FeatureLevel,
	}}}
}

// managers lists where managers are reached.
func managers(snap *state.Snapshot) []*pb.Manager {
	var out []*pb.Manager
	namer := snap.Cluster().Namer()
	for n := range snap.Nodes() {
		if n.ManagerAddr != "" {
			out = append(out, &pb.Manager{NodeId: namer.NodeID(n.ID), Addr: n.ManagerAddr})
		}
	}
	return out
}

// jittered spreads heartbeats by a tenth, so that nodes that came at once do not stay in step.
func jittered(p time.Duration) uint32 {
	ms := uint32(p / time.Millisecond)
	return ms - ms/10 + rand.Uint32N(ms/5+1)
}

func at(snap *state.Snapshot) *pb.Position {
	return &pb.Position{Incarnation: snap.Cluster().Incarnation, Index: snap.Index()}
}

// receive takes in what the node says.
func (s *Server) receive(n *session, stream pb.Dispatch_SessionServer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		switch k := m.Kind.(type) {
		case *pb.FromAgent_Heartbeat:
			s.heard(n, k.Heartbeat.Applied)
			n.mark(func() { n.beats, n.beatDue = k.Heartbeat.Number, true })
		case *pb.FromAgent_Reports:
			if err := s.takeReports(n, k.Reports); err != nil {
				return err
			}
		case *pb.FromAgent_Description:
			if err := s.describe(n.ctx, n, s.cfg.State.Snapshot(), k.Description); err != nil {
				return err
			}
		case *pb.FromAgent_Passed:
			s.passed(n, k.Passed.Index)
		case *pb.FromAgent_AskReply:
			s.streams.answer(n, k.AskReply)
		case *pb.FromAgent_StreamRefused:
			s.streams.refuse(n, k.StreamRefused)
		case *pb.FromAgent_Hello:
			return model.Invalidf("Hello in the middle of a session")
		}
	}
}

func (s *Server) takeReports(n *session, m *pb.Reports) error {
	if m.Session != n.num {
		return model.Stalef("reports of session %d in session %d", m.Session, n.num)
	}
	if len(m.Tasks) > wire.MaxReportTasks {
		return model.Invalidf("a report of %d tasks", len(m.Tasks))
	}
	r := &model.Report{Node: n.node, Session: m.Session, Seq: m.Seq, Tasks: make([]model.TaskReport, 0, len(m.Tasks))}
	for _, t := range m.Tasks {
		tr, err := wire.TaskReport(t)
		if err != nil {
			return err
		}
		r.Tasks = append(r.Tasks, tr)
	}
	return s.reports.add(n.ctx, entry{change: model.Change{Report: r}, weight: len(r.Tasks) + 1, size: proto.Size(m), done: func(error) {
		// Applied or superseded: either way there is nothing to say again.
		n.mark(func() { n.acks, n.ackDue = m.Seq, true })
	}})
}

// describe proposes what a node says of itself when it differs from what is known.
func (s *Server) describe(ctx context.Context, n *session, snap *state.Snapshot, m *pb.Description) error {
	if m == nil {
		return nil
	}
	size := proto.Size(m)
	if size > maxDescription || len(m.Routes) > maxRoutes {
		return model.Invalidf("the node's description is too long: %d bytes and %d routes, at most %d and %d are taken", size, len(m.Routes), maxDescription, maxRoutes)
	}
	set := model.NodeDescSet{Node: n.node, PortClashes: wire.PortClashes(m.PortClashes)}
	var desc swarm.NodeDescription
	if err := json.Unmarshal(m.DescriptionJson, &desc); err != nil {
		return model.Invalidf("the node's description: %v", err)
	}
	set.Description = desc
	var err error
	if set.Routes, err = wire.Prefixes(m.Routes); err != nil {
		return model.Invalidf("the node's routes: %v", err)
	}
	old := snap.Node(n.node)
	if old != nil && reflect.DeepEqual(old.Description, set.Description) && equalLists(old.Routes, set.Routes) && equalLists(old.PortClashes, set.PortClashes) {
		return nil
	}
	return s.reports.add(ctx, entry{change: model.Change{SetNodeDesc: &set}, weight: 1, size: size})
}

func equalLists[T comparable](a, b []T) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
