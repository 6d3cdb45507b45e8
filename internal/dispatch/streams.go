package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

const (
	maxPending  = 1024 // questions and streams under way
	dialTimeout = 10 * time.Second
	askTimeout  = 10 * time.Second
	tokenLen    = 16
)

// errGone is the answer of a node whose session ended.
var errGone = model.Errorf(model.Unavailable, "the node's session ended")

// streams are the questions asked of nodes and the streams that nodes were told to open. Safe for concurrent use.
type streams struct {
	random io.Reader

	mu      sync.Mutex
	nextAsk uint64
	asks    map[uint64]*ask
	opens   map[string]*opening
}

type ask struct {
	session *session
	reply   chan *pb.AskReply // buffered
}

// opening is a stream from the request to its end.
type opening struct {
	session *session
	dialled chan pb.Dispatch_StreamServer // buffered
	refused chan error                    // buffered
	done    chan struct{}                 // closed when the manager's side is through with it
	once    sync.Once
}

func (o *opening) finish() { o.once.Do(func() { close(o.done) }) }

func newStreams(random io.Reader) *streams {
	return &streams{random: random, asks: map[uint64]*ask{}, opens: map[string]*opening{}}
}

func (s *Server) session(node model.NodeID) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[node]
	if n == nil {
		return nil, model.Errorf(model.Unavailable, "node %s is not connected to this manager", s.nodeName(node))
	}
	return n, nil
}

// nodeName is a node's name for messages; s.mu is held.
func (s *Server) nodeName(id model.NodeID) string {
	if s.snap != nil {
		if n := s.snap.Node(id); n != nil && n.Hostname() != "" {
			return n.Hostname()
		}
	}
	return fmt.Sprint(uint64(id))
}

// CheckPorts asks a node which of these published ports it could not serve, because another program has them.
func (s *Server) CheckPorts(ctx context.Context, node model.NodeID, ports []model.PortClash) ([]model.PortClash, error) {
	q := &pb.CheckPorts{}
	for _, p := range ports {
		q.Ports = append(q.Ports, &pb.PortKey{Protocol: p.Protocol, Port: uint32(p.Port)})
	}
	r, err := s.ask(ctx, node, &pb.Ask{Kind: &pb.Ask_CheckPorts{CheckPorts: q}})
	if err != nil {
		return nil, fmt.Errorf("check ports: %w", err)
	}
	return wire.PortClashes(r.GetPortsChecked().GetClashes()), nil
}

// ask sends a question and waits for the answer, at most 10 s.
func (s *Server) ask(ctx context.Context, node model.NodeID, q *pb.Ask) (*pb.AskReply, error) {
	n, err := s.session(node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, model.Errorf(model.Unavailable, "the node does not answer"))
	defer cancel()
	a := &ask{session: n, reply: make(chan *pb.AskReply, 1)}
	id, err := s.streams.addAsk(a)
	if err != nil {
		return nil, err
	}
	defer s.streams.dropAsk(id)
	q.Id, q.TimeoutMs = id, uint32(askTimeout/time.Millisecond)
	if !n.push(&pb.ToAgent{Kind: &pb.ToAgent_Ask{Ask: q}}) {
		return nil, model.Errorf(model.Unavailable, "the node does not read its session")
	}
	select {
	case r := <-a.reply:
		return r, wire.PartsError(r.Error, r.ErrorKind)
	case <-n.ctx.Done():
		return nil, errGone
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (st *streams) addAsk(a *ask) (uint64, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.asks) >= maxPending {
		return 0, model.Errorf(model.Exhausted, "too many questions to nodes are under way")
	}
	st.nextAsk++
	st.asks[st.nextAsk] = a
	return st.nextAsk, nil
}

func (st *streams) dropAsk(id uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	delete(st.asks, id)
}

func (st *streams) answer(n *session, r *pb.AskReply) {
	st.mu.Lock()
	a := st.asks[r.Id]
	st.mu.Unlock()
	if a == nil || a.session != n {
		return // too late
	}
	select {
	case a.reply <- r:
	default:
	}
}

func (st *streams) refuse(n *session, r *pb.StreamRefused) {
	st.mu.Lock()
	o := st.opens[string(r.Token)]
	st.mu.Unlock()
	if o == nil || o.session != n {
		return
	}
	select {
	case o.refused <- wire.PartsError(r.Error, r.ErrorKind):
	default:
	}
}

// drop forgets what a session that ended was asked; streams that are open already go on.
func (st *streams) drop(n *session) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, o := range st.opens {
		if o.session == n {
			select {
			case o.refused <- errGone:
			default:
			}
		}
	}
}

func (st *streams) closeAll() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, o := range st.opens {
		o.finish()
	}
}

// open tells a node to dial and waits for it.
func (s *Server) open(ctx context.Context, node model.NodeID, m *pb.OpenStream) (pb.Dispatch_StreamServer, func(), error) {
	n, err := s.session(node)
	if err != nil {
		return nil, nil, err
	}
	token := make([]byte, tokenLen)
	if _, err := io.ReadFull(s.cfg.Random, token); err != nil {
		return nil, nil, fmt.Errorf("stream token: %w", err)
	}
	m.Token = token
	o := &opening{session: n, dialled: make(chan pb.Dispatch_StreamServer, 1), refused: make(chan error, 1), done: make(chan struct{})}
	if err := s.streams.addOpening(string(token), o); err != nil {
		return nil, nil, err
	}
	finish := func() {
		o.finish()
		s.streams.dropOpening(string(token))
	}
	if !n.push(&pb.ToAgent{Kind: &pb.ToAgent_OpenStream{OpenStream: m}}) {
		finish()
		return nil, nil, model.Errorf(model.Unavailable, "the node does not read its session")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, model.Errorf(model.Unavailable, "the node did not open the stream"))
	defer cancel()
	select {
	case stream := <-o.dialled:
		return stream, finish, nil
	case err = <-o.refused:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	finish()
	return nil, nil, err
}

func (st *streams) addOpening(token string, o *opening) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.opens) >= maxPending {
		return model.Errorf(model.Exhausted, "too many streams from nodes are open")
	}
	st.opens[token] = o
	return nil
}

func (st *streams) dropOpening(token string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	delete(st.opens, token)
}

// Stream implements the RPC: it hands the stream to whoever asked for it and keeps it until they are through.
func (s *Server) Stream(stream pb.Dispatch_StreamServer) error {
	node, err := caller(stream.Context(), s.cfg.State.Snapshot())
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.streams.mu.Lock()
	o := s.streams.opens[string(first.GetOpen().GetToken())]
	s.streams.mu.Unlock()
	// The token alone is not enough: it was this node that was asked.
	if o == nil || o.session.node != node.ID {
		return model.NotFoundf("nobody waits for this stream")
	}
	select {
	case o.dialled <- stream:
	default:
		return model.Conflictf("the stream is open already")
	}
	select {
	case <-o.done:
		return nil
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// DialNode connects to the API that a node serves for its own containers. The connection lasts until it is closed; ctx bounds
// the dialling only.
func (s *Server) DialNode(ctx context.Context, node model.NodeID) (net.Conn, error) {
	stream, finish, err := s.open(ctx, node, &pb.OpenStream{Kind: &pb.OpenStream_ContainerApi{ContainerApi: &pb.ContainerAPI{}}})
	if err != nil {
		return nil, err
	}
	return wire.NewConn(stream, finish), nil
}

// MaxLogTasks is how many tasks' logs one request may ask for.
const MaxLogTasks = 1000

// LogRequest asks for the logs of tasks on one node.
type LogRequest struct {
	Tasks []model.TaskID // at most MaxLogTasks
	// Stdout and Stderr select streams; neither means both.
	Stdout, Stderr bool
	Follow         bool
	// Tail is the number of last entries of each task, -1 for all.
	Tail int
	// Since and Until bound the time; zero means no bound.
	Since, Until time.Time
}

// LogEntry is one line of a task, or a part of a long one.
type LogEntry struct {
	Task    model.TaskID
	Time    time.Time
	Stream  string // stdout or stderr
	Line    []byte // without its line end
	Partial bool   // the line goes on in the stream's next entry
	Attrs   map[string]string
}

// Logs calls fn for the entries of tasks on one node as they come, those of each task in order, until all are
// told (io.EOF is nil), fn fails, or ctx is cancelled. An entry is valid during the call only.
func (s *Server) Logs(ctx context.Context, node model.NodeID, req LogRequest, fn func(*LogEntry) error) error {
	asked := make(map[model.TaskID]struct{}, len(req.Tasks))
	m := &pb.LogsRequest{Stdout: req.Stdout, Stderr: req.Stderr, Follow: req.Follow, Tail: int64(req.Tail), Since: nanos(req.Since), Until: nanos(req.Until)}
	for _, t := range req.Tasks {
		m.Tasks = append(m.Tasks, wire.Ref(t))
		asked[t] = struct{}{}
	}
	stream, finish, err := s.open(ctx, node, &pb.OpenStream{Kind: &pb.OpenStream_Logs{Logs: m}})
	if err != nil {
		return fmt.Errorf("read logs: %w", err)
	}
	// Ending the RPC makes a Recv that is under way return.
	stop := context.AfterFunc(ctx, finish)
	defer stop()
	defer finish()
	for {
		f, err := stream.Recv()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read logs: %w", wire.FromStatus(err))
		}
		if c := f.GetClose(); c != nil {
			return wire.PartsError(c.Error, c.ErrorKind)
		}
		for _, e := range f.GetLogEntries().GetEntries() {
			entry := LogEntry{Task: wire.TaskID(e.Task), Time: time.Unix(0, e.Time), Stream: e.Stream, Line: e.Line, Partial: e.Partial, Attrs: e.Attrs}
			// A node has no word in what another's tasks have said.
			if _, ok := asked[entry.Task]; !ok {
				return model.Errorf(model.Forbidden, "read logs: the node sent lines of a task that it was not asked about")
			}
			if err := fn(&entry); err != nil {
				return err
			}
		}
	}
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
