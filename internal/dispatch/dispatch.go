// Package dispatch is the manager's end of node sessions: it tells each node its tasks and the tables that it balances
// by, out of this manager's own copy of the state, takes in what nodes report, and issues node certificates.
//
// It stands between the state (replica) and the agents (wire). What a node is told is derived from a snapshot each time
// and never stored; what nodes say becomes proposals, many nodes' reports in one batch. It must not know how
// tasks are planned nor whether this manager leads: it serves what it has, and says at which place in history that was.
package dispatch

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/grpc"
)

const (
	defaultPeriod   = 5 * time.Second
	leasePeriods    = 3
	helloTimeout    = 10 * time.Second
	catchUpTimeout  = 10 * time.Second
	maxSessions     = 20000
	minGap          = 5 * time.Millisecond
	maxGap          = 100 * time.Millisecond
	leaseResolution = time.Second
)

// State is this manager's copy of the state; *replica.Replica is one.
type State interface {
	Snapshot() *state.Snapshot
	WaitIndex(ctx context.Context, index uint64) (*state.Snapshot, error)
	Watch() (*state.Snapshot, *replica.Watch)
}

// Proposer takes batches to the log, forwarding them when another manager leads. An error means that it is unknown
// whether the batch was applied; the same batch may be proposed again.
type Proposer interface {
	Propose(ctx context.Context, b *model.Batch) (*model.Outcome, error)
}

// Lease is what became of a node's liveness.
type Lease struct {
	Node model.NodeID
	// Up is true when a session began, false when the lease ran out.
	Up bool
	// Addr is the address that the node dialled from.
	Addr    string
	Message string
}

// Config is what a Server needs.
type Config struct {
	State    State
	Proposer Proposer
	// Lease is told of nodes that come and go, in order for each node. It must not block, nor call the Server. Optional.
	Lease func(Lease)
	// Log hears of refused nodes and proposals that have to be repeated. Required.
	Log *slog.Logger
	// Random is the source of tokens and batch IDs [crypto/rand].
	Random io.Reader
}

// Server is the manager's end. Safe for concurrent use.
type Server struct {
	pb.UnimplementedDispatchServer
	pb.UnimplementedCAServer

	cfg     Config
	reports *reporter
	tables  *tables
	nets    *nets
	streams *streams
	joins   *joins

	wake chan struct{}

	mu       sync.Mutex
	sessions map[model.NodeID]*session
	leases   map[model.NodeID]*lease
	snap     *state.Snapshot // sessions have been marked for everything up to it
	moved    chan struct{}   // closed when snap moves on
	refusal  string          // not empty: no sessions are served
	running  bool

	withdrawals withdrawals
}

// New makes a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.State == nil || cfg.Proposer == nil || cfg.Log == nil {
		return nil, fmt.Errorf("dispatch: State, Proposer and Log are required")
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.Lease == nil {
		cfg.Lease = func(Lease) {}
	}
	s := &Server{cfg: cfg, wake: make(chan struct{}, 1), sessions: map[model.NodeID]*session{}, leases: map[model.NodeID]*lease{}, moved: make(chan struct{})}
	s.reports = newReporter(cfg)
	s.tables = newTables()
	s.nets = newNets()
	s.streams = newStreams(cfg.Random)
	s.joins = newJoins()
	return s, nil
}

// Register offers both services on a gRPC server for nodes (wire.NewServer).
func (s *Server) Register(r grpc.ServiceRegistrar) {
	pb.RegisterDispatchServer(r, s)
	pb.RegisterCAServer(r, s)
}

// RegisterOpen offers what a client without a certificate may ask for on a gRPC server for strangers (wire.NewOpenServer).
func (s *Server) RegisterOpen(r grpc.ServiceRegistrar) { pb.RegisterCAServer(r, s) }

// Run follows the state and the leases until ctx is cancelled (then it returns nil). Sessions are refused while it does not run, and
// the open ones are closed when it ends.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	snap, watch := s.cfg.State.Watch()
	defer watch.Close()
	s.tables.reset(snap)
	s.nets.reset(snap)
	s.mu.Lock()
	s.move(snap)
	s.running = true
	s.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.stop()
	wg.Go(func() { s.reports.run(ctx) })
	tick := time.NewTicker(leaseResolution)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watch.Ready():
			s.follow(watch.Take())
			// What follows within the gap is taken together; the first change after a quiet time was not held back.
			if gap := s.gap(); gap > 0 {
				select {
				case <-time.After(gap):
				case <-ctx.Done():
					return nil
				}
			}
		case <-tick.C:
			s.expire(time.Now())
		}
	}
}

// gap grows with the number of sessions: what a burst costs is bounded, and a small swarm is not kept waiting.
func (s *Server) gap() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return min(maxGap, minGap+time.Duration(len(s.sessions))*50*time.Microsecond)
}

// follow marks the sessions that a step concerns.
func (s *Server) follow(steps []replica.Applied) {
	if len(steps) == 0 {
		return
	}
	before, after := steps[0].Before, steps[len(steps)-1].After
	whole := false
	touched := map[model.Key]struct{}{}
	for _, st := range steps {
		if st.Outcome == nil {
			whole = true
			break
		}
		for _, k := range st.Outcome.Touched {
			touched[k] = struct{}{}
		}
	}
	newRows := false
	var newNets map[*session]struct{}
	if whole {
		s.tables.reset(after)
		s.nets.reset(after)
		newRows = true
	} else {
		newRows = s.tables.update(before, after, touched)
		newNets = s.nets.update(before, after, touched)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.move(after)
	for n := range newNets {
		n.mark(func() { n.netsDue = true })
	}
	if whole || newRows {
		for _, n := range s.sessions {
			n.mark(func() { n.tablesDue = true; n.complete = n.complete || whole })
		}
	}
	// Before the tasks themselves, whose messages name it.
	if tell := stopping(before, after, touched); tell != nil {
		s.withdraw(after.Index(), tell)
	}
	for k := range touched {
		switch k.Kind {
		case model.KindTask:
			s.markTask(before, after, k.Task())
		case model.KindNode:
			if n := s.sessions[k.Node()]; n != nil && after.Node(k.Node()) == nil {
				n.close(model.NotFoundf("the node has been removed from the cluster"))
			} else if n != nil {
				n.mark(func() { n.nodeDue = true })
			}
		case model.KindCluster:
			for _, n := range s.sessions {
				n.mark(func() { n.nodeDue = true })
			}
		}
	}
}

// move says that sessions have been marked for everything up to a state; s.mu is held.
func (s *Server) move(snap *state.Snapshot) {
	s.snap = snap
	close(s.moved)
	s.moved = make(chan struct{})
}

// waitMarked returns when the tables are those of the index at least: what a node has applied must not be told again in an
// older form.
func (s *Server) waitMarked(ctx context.Context, index uint64) error {
	for {
		s.mu.Lock()
		snap, moved, running := s.snap, s.moved, s.running
		s.mu.Unlock()
		if !running || snap != nil && snap.Index() >= index {
			return nil // begin has a word to one that does not run
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// markTask marks the session of the task's node. A task is on no node or on one for life.
func (s *Server) markTask(before, after *state.Snapshot, id model.TaskID) {
	t := after.Task(id)
	if t == nil {
		t = before.Task(id)
	}
	if t == nil || t.Node == 0 {
		return
	}
	if n := s.sessions[t.Node]; n != nil {
		n.mark(func() { n.tasksDue[id] = struct{}{} })
	}
}

// lease is how long a node counts as alive.
type lease struct {
	until     time.Time
	addr      string
	applied   wirePosition
	connected bool
}

type wirePosition struct{ incarnation, index uint64 }

func position(p *pb.Position) wirePosition {
	return wirePosition{p.GetIncarnation(), p.GetIndex()}
}

// NodeState is what this manager sees of a node that has a session or a lease here.
type NodeState struct {
	Node      model.NodeID
	Addr      string
	Connected bool
	// Until is the end of the lease by this host's clock.
	Until time.Time
	// Incarnation and Applied are how far the node has come.
	Incarnation, Applied uint64
}

// Nodes lists the nodes with a lease here, in no order.
func (s *Server) Nodes() []NodeState {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]NodeState, 0, len(s.leases))
	for id, l := range s.leases {
		out = append(out, NodeState{Node: id, Addr: l.addr, Connected: l.connected, Until: l.until,
			Incarnation: l.applied.incarnation, Applied: l.applied.index})
	}
	return out
}

// Suspend closes all sessions and refuses new ones, for a manager that lost touch with its leader; Resume serves again.
func (s *Server) Suspend(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusal = why
	for _, n := range s.sessions {
		n.close(model.Errorf(model.Unavailable, "%s", why))
	}
}

// Resume ends Suspend.
func (s *Server) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusal = ""
}

func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = false
	for _, n := range s.sessions {
		n.close(model.Errorf(model.Unavailable, "the manager is stopping"))
	}
	s.streams.closeAll()
}

// expire ends the leases and withdrawals that ran out.
func (s *Server) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish(now)
	for id, l := range s.leases {
		if now.Before(l.until) {
			continue
		}
		delete(s.leases, id)
		if n := s.sessions[id]; n != nil {
			n.close(model.Errorf(model.Unavailable, "no heartbeat within the lease"))
		}
		s.cfg.Lease(Lease{Node: id, Addr: l.addr, Message: "heartbeat failure"})
	}
}

// heard prolongs a node's lease.
func (s *Server) heard(n *session, p *pb.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.leases[n.node]; l != nil && s.sessions[n.node] == n {
		l.until = time.Now().Add(leasePeriods * n.period)
		l.applied = position(p)
	}
}

// LeasePeriod is how long a node may be silent before it counts as down, by the cluster's spec.
func LeasePeriod(snap *state.Snapshot) time.Duration { return leasePeriods * period(snap) }

// period is the time between heartbeats that the cluster's spec asks for.
func period(snap *state.Snapshot) time.Duration {
	c := snap.Cluster()
	if c == nil || c.Spec.Typed == nil || c.Spec.Typed.Dispatcher.HeartbeatPeriod <= 0 {
		return defaultPeriod
	}
	return min(max(c.Spec.Typed.Dispatcher.HeartbeatPeriod, 100*time.Millisecond), time.Hour)
}

// caller finds the node that a call comes from; the certificate says who it is, the state whether it still belongs here.
func caller(ctx context.Context, snap *state.Snapshot) (*model.Node, error) {
	id, err := wire.Peer(ctx)
	if err != nil {
		return nil, err
	}
	c := snap.Cluster()
	if c == nil {
		return nil, model.Errorf(model.Unavailable, "this manager has no cluster yet")
	}
	k, ok := c.Namer().Parse(id.Node)
	if !ok || k.Kind != model.KindNode {
		return nil, model.Errorf(model.Forbidden, "node %s is not of this cluster", id.Node)
	}
	n := snap.Node(k.Node())
	if n == nil {
		return nil, model.NotFoundf("node %s has been removed from the cluster", id.Node)
	}
	return n, nil
}
