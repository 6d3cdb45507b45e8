package agent

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/skep-swarm/skep/internal/keeper/jsonlog"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/grpc"
)

const (
	maxStreams    = 512      // served at a time; a merged reading of a service's logs takes one for each task
	frameBytes    = 64 << 10 // of log lines at which a frame is sent
	frameDelay    = 20 * time.Millisecond
	maxLogTasks   = 1000
	lastWords     = 30 * time.Second // for a manager to read what is left of a connection that was closed here
	defaultAnswer = 10 * time.Second
)

// answer answers a manager's question.
func (a *Agent) answer(ctx context.Context, q *pb.Ask) *pb.FromAgent {
	limit := defaultAnswer
	if q.TimeoutMs > 0 {
		limit = time.Duration(q.TimeoutMs) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r := &pb.AskReply{Id: q.Id}
	var err error
	switch k := q.Kind.(type) {
	case *pb.Ask_CheckPorts:
		var keys []netplan.PortKey
		for _, p := range k.CheckPorts.Ports {
			if key, ok := portKey(p); ok {
				keys = append(keys, key)
			}
		}
		var clashes []model.PortClash
		clashes, err = a.net.probe(ctx, keys)
		r.Kind = &pb.AskReply_PortsChecked{PortsChecked: &pb.PortsChecked{Clashes: wire.Clashes(clashes)}}
	default:
		err = model.Errorf(model.Unimplemented, "this node's version does not know the question")
	}
	r.Error, r.ErrorKind = wire.ErrorParts(err)
	return &pb.FromAgent{Kind: &pb.FromAgent_AskReply{AskReply: r}}
}

// serveStream dials the stream that a manager asked for and serves it to its end. It returns a refusal when it cannot.
func (a *Agent) serveStream(ctx context.Context, conn *grpc.ClientConn, m *pb.OpenStream) *pb.FromAgent {
	refuse := func(err error) *pb.FromAgent {
		text, kind := wire.ErrorParts(err)
		return &pb.FromAgent{Kind: &pb.FromAgent_StreamRefused{StreamRefused: &pb.StreamRefused{Token: m.Token, Error: text, ErrorKind: kind}}}
	}
	select {
	case a.streams <- struct{}{}:
		defer func() { <-a.streams }()
	default:
		return refuse(model.Errorf(model.Exhausted, "the node serves %d streams, which is its limit", maxStreams))
	}
	logs := m.GetLogs()
	api := m.GetContainerApi() != nil && a.cfg.API != nil
	if logs == nil && !api {
		return refuse(model.Errorf(model.Unimplemented, "this node's version does not know the stream"))
	}
	if logs != nil && len(logs.Tasks) > maxLogTasks {
		return refuse(model.Invalidf("logs of more than %d tasks", maxLogTasks))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewDispatchClient(conn).Stream(ctx)
	if err == nil {
		err = stream.Send(&pb.Frame{Kind: &pb.Frame_Open{Open: &pb.StreamOpen{Token: m.Token}}})
	}
	if err != nil {
		return refuse(wire.FromStatus(err))
	}
	if api {
		// The manager ends the stream when it has read all.
		c := wire.NewConn(stream, func() {
			if stream.CloseSend() != nil {
				cancel()
			}
			time.AfterFunc(lastWords, cancel)
		})
		defer c.Close()
		a.cfg.API(ctx, c)
		return nil
	}
	// The manager says nothing here: when its end closes, nobody reads any more.
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		for {
			if _, err := stream.Recv(); err != nil {
				return
			}
		}
	})
	text, kind := wire.ErrorParts(a.sendLogs(ctx, stream, logs))
	// When this fails, the manager has gone; either way it ends the stream.
	if stream.Send(&pb.Frame{Kind: &pb.Frame_Close{Close: &pb.StreamClose{Error: text, ErrorKind: kind}}}) != nil || stream.CloseSend() != nil {
		cancel()
	}
	wg.Wait()
	return nil
}

// logSink gathers the lines of several tasks into frames.
type logSink struct {
	stream pb.Dispatch_StreamClient
	mu     sync.Mutex
	frame  *pb.LogEntries
	bytes  int
	err    error
}

func (s *logSink) add(id model.TaskID, m *jsonlog.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frame == nil {
		s.frame = &pb.LogEntries{}
	}
	s.frame.Entries = append(s.frame.Entries, &pb.LogEntry{Task: wire.Ref(id), Time: m.Time.UnixNano(), Stream: m.Stream,
		Line: append([]byte(nil), m.Line...), Partial: m.Partial, Attrs: m.Attrs})
	if s.bytes += len(m.Line) + 64; s.bytes >= frameBytes {
		s.flushLocked()
	}
	return s.err
}

func (s *logSink) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushLocked()
	return s.err
}

func (s *logSink) flushLocked() {
	if s.frame == nil || s.err != nil {
		return
	}
	s.err = s.stream.Send(&pb.Frame{Kind: &pb.Frame_LogEntries{LogEntries: s.frame}})
	s.frame, s.bytes = nil, 0
}

// sendLogs sends the logs of all tasks that were asked for, until the last one has ended.
func (a *Agent) sendLogs(ctx context.Context, stream pb.Dispatch_StreamClient, req *pb.LogsRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sink := &logSink{stream: stream}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, ref := range req.Tasks {
		id := wire.TaskID(ref)
		a.mu.Lock()
		t := a.byID[id]
		a.mu.Unlock()
		if t == nil {
			continue // gone with its log
		}
		wg.Go(func() {
			if err := a.readLog(ctx, t, req, sink); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
				cancel()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	tick := time.NewTicker(frameDelay)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return errors.Join(append(errs, sink.flush())...)
		case <-tick.C:
			if sink.flush() != nil {
				cancel()
			}
		}
	}
}

func (a *Agent) readLog(ctx context.Context, t *task, req *pb.LogsRequest, sink *logSink) error {
	_, tpl, _ := t.snapshot()
	if driver := tpl.logDriver(); driver != "" && driver != "json-file" {
		return model.Invalidf("configured logging driver does not support reading")
	}
	o := jsonlog.ReadOptions{Stdout: req.Stdout, Stderr: req.Stderr, Tail: int(req.Tail), Follow: req.Follow}
	if req.Since != 0 {
		o.Since = time.Unix(0, req.Since)
	}
	if req.Until != 0 {
		o.Until = time.Unix(0, req.Until)
	}
	if req.Follow {
		o.Done = t.ended
	}
	err := a.logs.Read(ctx, a.containerDir(t.container), t.container, o, func(m *jsonlog.Message) error { return sink.add(t.id, m) })
	if errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
		return nil
	}
	return err
}

// logDriver is the driver that tasks of the template log with.
func (t *template) logDriver() string {
	switch {
	case t == nil:
		return ""
	case t.spec.LogDriver != nil:
		return t.spec.LogDriver.Name
	}
	return t.msg.LogDriver
}
