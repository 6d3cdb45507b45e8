package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/grpc"
)

const (
	welcomeTimeout = 30 * time.Second // a manager may wait until it has caught up
	firstRedial    = 100 * time.Millisecond
	maxRedial      = 8 * time.Second
	describeEvery  = time.Minute
	maxOutgoing    = 64
	leasePeriods   = 3
)

// keepSession talks to managers, one after the other, until ctx ends.
func (a *Agent) keepSession(ctx context.Context) {
	wait := firstRedial
	for {
		began := time.Now()
		err := a.dialSession(ctx)
		if ctx.Err() != nil {
			return
		}
		a.mu.Lock()
		changed := a.status.Connected || a.status.Err != err.Error()
		a.status.Connected, a.status.Err = false, err.Error()
		a.mu.Unlock()
		if time.Since(began) > maxRedial {
			wait = firstRedial
		}
		delay := wait/2 + mathrand.N(wait)
		if changed {
			a.cfg.Log.Warn("no session with a manager; tasks go on as they are", "err", err, "again", delay)
		}
		wait = min(2*wait, maxRedial)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
	}
}

// session is one conversation.
type session struct {
	a      *Agent
	conn   *grpc.ClientConn
	stream pb.Dispatch_SessionClient
	cancel context.CancelCauseFunc
	num    uint64
	out    chan *pb.FromAgent // what others have to say

	mu     sync.Mutex
	period time.Duration
	heard  time.Time
	beat   place // everything up to it has arrived
	said   *pb.Description
}

func (a *Agent) dialSession(ctx context.Context) error {
	dctx, cancelDial := context.WithTimeout(ctx, welcomeTimeout)
	conn, err := a.cfg.Managers.Dial(dctx)
	cancelDial()
	if err != nil {
		return fmt.Errorf("reach a manager: %w", wire.FromStatus(err))
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &session{a: a, conn: conn, cancel: cancel, out: make(chan *pb.FromAgent, maxOutgoing), period: welcomeTimeout / leasePeriods}
	if err := s.hello(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("session with %s: %w", target(conn), wire.FromStatus(err))
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() {
		if err := s.send(ctx); err != nil {
			cancel(err)
		}
	})
	err = s.receive(ctx, &wg)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("session with %s: %w", target(conn), wire.FromStatus(err))
}

// target is the address of a connection's manager.
func target(conn *grpc.ClientConn) string {
	return strings.TrimPrefix(conn.Target(), "passthrough:///")
}

// hello begins the session and waits for the manager's welcome.
func (s *session) hello(ctx context.Context) error {
	a := s.a
	desc, err := a.describe(ctx)
	if err != nil {
		return err
	}
	stream, err := pb.NewDispatchClient(s.conn).Session(ctx)
	if err != nil {
		return err
	}
	s.stream, s.said = stream, desc
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	a.mu.Lock()
	applied := a.applied
	a.draft = nil
	m := &pb.Hello{LastSession: a.session, Description: desc, AgentVersion: a.cfg.Version, Nonce: nonce}
	a.mu.Unlock()
	applied = a.net.beginTables(applied)
	a.overlays.begin()
	if p := a.overlays.applied(); applied.before(p) {
		applied = p
	}
	m.Applied, m.PendingReports = applied.message(), uint32(a.rep.pending())
	if err := stream.Send(&pb.FromAgent{Kind: &pb.FromAgent_Hello{Hello: m}}); err != nil {
		return err
	}
	watchdog := time.AfterFunc(welcomeTimeout, func() {
		s.cancel(model.Errorf(model.Unavailable, "no welcome within %s", welcomeTimeout))
	})
	first, err := stream.Recv()
	watchdog.Stop()
	if err != nil {
		return err
	}
	w := first.GetWelcome()
	if w == nil {
		return model.Invalidf("the manager's first word is no welcome")
	}
	s.num, s.heard = w.Session, time.Now()
	s.setPeriod(w.HeartbeatPeriodMs)
	a.welcomed(w, target(s.conn))
	return nil
}

// welcomed takes note of a session that began.
func (a *Agent) welcomed(w *pb.Welcome, manager string) {
	a.setManagers(w.Managers)
	a.rep.reset()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.session = max(a.session, w.Session)
	a.status = SessionStatus{Connected: true, Manager: manager, Session: w.Session}
	a.saved(a.store.write(op{keySession, encode(a.session)}))
	a.cfg.Log.Info("session with a manager", "manager", manager, "session", w.Session, "index", w.At.GetIndex())
}

func (a *Agent) setManagers(list []*pb.Manager) {
	addrs := make([]string, 0, len(list))
	for _, m := range list {
		addrs = append(addrs, m.Addr)
	}
	if len(addrs) > 0 {
		a.cfg.Managers.Set(addrs)
	}
}

func (s *session) setPeriod(ms uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ms > 0 {
		s.period = time.Duration(ms) * time.Millisecond
	}
}

// receive takes in what the manager says, until the stream ends.
func (s *session) receive(ctx context.Context, wg *sync.WaitGroup) error {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.heard = time.Now()
		s.mu.Unlock()
		if err := s.take(ctx, wg, m); err != nil {
			return err
		}
	}
}

func (s *session) take(ctx context.Context, wg *sync.WaitGroup, m *pb.ToAgent) error {
	switch k := m.Kind.(type) {
	case *pb.ToAgent_Assignments:
		return s.a.takeAssignments(k.Assignments)
	case *pb.ToAgent_Tables:
		return s.a.takeTables(k.Tables)
	case *pb.ToAgent_NetTables:
		return s.a.takeNetTables(k.NetTables)
	case *pb.ToAgent_ReportsAck:
		if k.ReportsAck.Session == s.num {
			s.a.rep.ack(k.ReportsAck.Seq)
		}
	case *pb.ToAgent_Beat:
		s.setPeriod(k.Beat.HeartbeatPeriodMs)
		s.mu.Lock()
		s.beat = placeOf(k.Beat.At)
		s.mu.Unlock()
	case *pb.ToAgent_Ask:
		wg.Go(func() { s.reply(ctx, s.a.answer(ctx, k.Ask)) })
	case *pb.ToAgent_OpenStream:
		wg.Go(func() {
			if refusal := s.a.serveStream(ctx, s.conn, k.OpenStream); refusal != nil {
				s.reply(ctx, refusal)
			}
		})
	case *pb.ToAgent_Fence:
		back := s.a.overlays.takenBack()
		wg.Go(func() { s.pass(ctx, k.Fence, back) })
	case *pb.ToAgent_Withdrawn:
		s.a.withdrawn.tell(k.Withdrawn.Index)
	case *pb.ToAgent_Managers:
		s.a.setManagers(k.Managers.Managers)
	}
	return nil
}

func (s *session) reply(ctx context.Context, m *pb.FromAgent) {
	select {
	case s.out <- m:
	case <-ctx.Done():
	}
}

// send says what is due: heartbeats, reports, answers, a changed description. It is the only one that writes to the
// stream. It also ends a session whose manager has fallen silent.
func (s *session) send(ctx context.Context) error {
	beat := time.NewTimer(s.interval())
	defer beat.Stop()
	flush := time.NewTimer(time.Hour)
	defer flush.Stop()
	flushing := false
	again := time.NewTicker(describeEvery)
	defer again.Stop()
	var beats uint64
	for {
		var m *pb.FromAgent
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			beats++
			if silent := s.silence(); silent > leasePeriods*s.interval() {
				return model.Errorf(model.Unavailable, "the manager has been silent for %s", silent.Round(time.Millisecond))
			}
			s.mu.Lock()
			m = &pb.FromAgent{Kind: &pb.FromAgent_Heartbeat{Heartbeat: &pb.Heartbeat{Applied: s.beat.message(), Number: beats}}}
			s.mu.Unlock()
			beat.Reset(s.interval())
		case <-s.a.rep.wake:
			if !flushing && s.a.rep.due() {
				flushing = true
				flush.Reset(s.a.cfg.FlushDelay)
			}
		case <-flush.C:
			flushing = false
			if r := s.a.rep.next(s.num); r != nil {
				m = &pb.FromAgent{Kind: &pb.FromAgent_Reports{Reports: r}}
			}
		case m = <-s.out:
		case <-s.a.redescribe:
			m = s.description(ctx)
		case <-again.C:
			m = s.description(ctx)
		}
		if m == nil {
			continue
		}
		if err := s.stream.Send(m); err != nil {
			return err
		}
	}
}

func (s *session) interval() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.period
}

func (s *session) silence() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.heard)
}

// description is the node's description when it differs from the last one said.
func (s *session) description(ctx context.Context) *pb.FromAgent {
	d, err := s.a.describe(ctx)
	if err != nil {
		s.a.cfg.Log.Warn("the node cannot be described", "err", err)
		return nil
	}
	if reflect.DeepEqual(d.DescriptionJson, s.said.DescriptionJson) && reflect.DeepEqual(d.Routes, s.said.Routes) &&
		reflect.DeepEqual(wire.PortClashes(d.PortClashes), wire.PortClashes(s.said.PortClashes)) {
		return nil
	}
	s.said = d
	return &pb.FromAgent{Kind: &pb.FromAgent_Description{Description: d}}
}

// describe makes what the node says of itself.
func (a *Agent) describe(ctx context.Context) (*pb.Description, error) {
	d, err := a.cfg.Describe(ctx)
	if err != nil {
		return nil, fmt.Errorf("describe the node: %w", err)
	}
	a.remember(d)
	raw, err := json.Marshal(d.Node)
	if err != nil {
		return nil, fmt.Errorf("describe the node: %w", err)
	}
	return &pb.Description{DescriptionJson: raw, Routes: wire.PrefixTexts(d.Routes), PortClashes: wire.Clashes(a.net.clashList())}, nil
}

// describeAgain lets a session say at once what has changed of the node.
func (a *Agent) describeAgain() {
	select {
	case a.redescribe <- struct{}{}:
	default:
	}
}

// beginTables forgets a half table of the last session, and returns the newer of two places.
func (n *network) beginTables(p place) place {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.draft = nil
	if p.before(n.tablesAt) {
		return n.tablesAt
	}
	return p
}
