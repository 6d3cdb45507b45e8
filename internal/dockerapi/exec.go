package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

const (
	// execGrace is how long a process whose client has gone may take to end by itself.
	execGrace = 5 * time.Second
	// execStartLimit bounds the start of a process.
	execStartLimit = 30 * time.Second
	// resizeWait is how long a resize waits for its process: clients send it together with the start.
	resizeWait = 10 * time.Second
	maxTTY     = 1<<16 - 1
)

func (s *Server) createExec(r *request, c *Container) error {
	var req container.ExecCreateRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if len(req.Cmd) == 0 || req.Cmd[0] == "" {
		return model.Invalidf("No exec command specified")
	}
	keys, err := parseDetachKeys(req.DetachKeys)
	if err != nil {
		return err
	}
	if err := notRunning(c); err != nil {
		return err
	}
	e := &execSession{container: c.ID, attrs: containerEventAttrs(c), stdin: req.AttachStdin, stdout: req.AttachStdout, stderr: req.AttachStderr, detachKeys: keys,
		spec: runtime.ExecSpec{Args: req.Cmd, Env: req.Env, Dir: req.WorkingDir, User: req.User, TTY: req.Tty, Privileged: req.Privileged}}
	if err := e.resize(req.ConsoleSize); err != nil {
		return err
	}
	if err := s.execs.add(e, s.backend.Local().Node); err != nil {
		return err
	}
	s.emitExec(e, events.ActionExecCreate+": "+events.Action(strings.Join(req.Cmd, " ")), nil)
	return writeJSON(r, http.StatusCreated, container.ExecCreateResponse{ID: e.id})
}

func (e *execSession) resize(size *[2]uint) error {
	if size == nil {
		return nil
	}
	if size[0] > maxTTY || size[1] > maxTTY {
		return model.Invalidf("invalid console size %dx%d", size[0], size[1])
	}
	e.spec.Height, e.spec.Width = uint16(size[0]), uint16(size[1])
	return nil
}

// notRunning is why nothing can be done inside a container; nil when it runs.
func notRunning(c *Container) error {
	switch c.State {
	case container.StateRunning:
		return nil
	case container.StatePaused:
		return model.Conflictf("container %s is paused, unpause the container before exec", c.ID)
	}
	return model.Conflictf("container %s is not running", c.ID)
}

func (s *Server) startExec(r *request, e *execSession) error {
	var req container.ExecStartRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if err := s.execs.enter(); err != nil {
		return err
	}
	if err := e.begin(); err != nil {
		s.execs.wg.Done()
		return err
	}
	if err := e.resize(req.ConsoleSize); err != nil {
		s.execs.wg.Done()
		e.end(126, s.now())
		return err
	}
	if req.Detach {
		defer s.execs.wg.Done()
		p, err := s.launch(r.ctx(), e)
		if err != nil {
			return err
		}
		s.execs.wg.Add(1)
		go s.watchExec(e, p, nil, nil)
		return writeEmpty(r, http.StatusOK)
	}
	conn, err := hijack(r, streamType(r, e.spec.TTY))
	if err != nil {
		s.execs.wg.Done()
		e.end(126, s.now())
		return err
	}
	s.serveExec(r.ctx(), e, conn)
	return nil
}

// launch starts the process, and notes when it cannot be.
func (s *Server) launch(ctx context.Context, e *execSession) (runtime.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, execStartLimit)
	defer cancel()
	s.emitExec(e, events.ActionExecStart+": "+events.Action(strings.Join(e.spec.Args, " ")), nil)
	p, err := s.backend.Exec(ctx, e.container, e.spec)
	if err == nil {
		e.runs(p)
		return p, nil
	}
	code := 126
	if re, ok := errors.AsType[*runtime.Error](err); ok {
		switch re.Kind {
		case runtime.KindCommand:
			code, err = re.Code, model.Invalidf("%s", withPrefix("OCI runtime exec failed: ", re.Text))
		case runtime.KindNotRunning:
			err = model.Conflictf("%s", re.Text)
		case runtime.KindInvalid:
			err = model.Invalidf("%s", re.Text)
		}
	}
	e.end(code, s.now())
	s.emitExec(e, events.ActionExecDie, &code)
	return nil, err
}

func withPrefix(prefix, text string) string {
	if strings.HasPrefix(text, prefix) {
		return text
	}
	return prefix + text
}

// serveExec connects a client with its process until one of them ends.
func (s *Server) serveExec(ctx context.Context, e *execSession, conn *clientConn) {
	stdout, stderr := conn.out(frameStdout), conn.out(frameStderr)
	if e.spec.TTY {
		stdout = conn.out(0)
	}
	if e.stdout {
		e.spec.Stdout = stdout
	}
	if e.stderr && !e.spec.TTY {
		e.spec.Stderr = stderr
	}
	detached := make(chan struct{})
	if e.stdin {
		e.spec.Stdin = &execInput{from: conn, detached: detached}
		if e.spec.TTY {
			e.spec.Stdin = &execInput{from: &detachReader{from: conn, keys: e.detachKeys}, detached: detached}
		}
	}
	p, err := s.launch(ctx, e)
	if err != nil {
		fmt.Fprintf(stdout, "%s\r\n", err)
		s.execs.wg.Done()
		conn.finish()
		return
	}
	if !e.stdin {
		// What it sends is of no interest, but must not fill the connection up.
		conn.wg.Go(func() { _, _ = io.Copy(io.Discard, conn.Conn) })
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watchExec(e, p, conn.lost, detached)
	}()
	stop := context.AfterFunc(s.execs.ending, func() { conn.cut(done) })
	defer stop()
	select {
	case <-done:
	case <-detached:
		s.emitExec(e, events.ActionExecDetach, nil)
	}
	conn.finish()
}

// execInput ends a process's input where the client detaches.
type execInput struct {
	from     io.Reader
	detached chan struct{}
	once     sync.Once
}

func (i *execInput) Read(b []byte) (int, error) {
	n, err := i.from.Read(b)
	if errors.Is(err, errDetached) {
		i.once.Do(func() { close(i.detached) })
		err = io.EOF
	}
	return n, err
}

// watchExec waits for a process's end, and brings it about when its client is lost without having detached, or the daemon ends.
func (s *Server) watchExec(e *execSession, p runtime.Process, lost, detached <-chan struct{}) {
	defer s.execs.wg.Done()
	type end struct {
		code int
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		code, err := p.Wait(context.Background())
		ended <- end{code, err}
	}()
	out, over := end{}, false
	wait := func(lost, detached <-chan struct{}, limit <-chan time.Time) {
		select {
		case out = <-ended:
			over = true
		case <-lost:
		case <-detached:
		case <-limit:
		case <-s.execs.ending.Done():
		}
	}
	wait(lost, detached, nil)
	if !over && isClosed(detached) {
		wait(nil, nil, nil)
	} else if !over && isClosed(lost) {
		s.endExec(p, e.spec.TTY)
		timer := time.NewTimer(execGrace)
		defer timer.Stop()
		wait(nil, nil, timer.C)
	}
	if !over {
		s.signalExec(p, syscall.SIGKILL)
		out = <-ended
	}
	if out.err != nil {
		s.log.Warn("a further process of a container is lost", "container", e.container, "err", out.err)
		out.code = 128
	}
	e.end(out.code, s.now())
	s.emitExec(e, events.ActionExecDie, &out.code)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// endExec asks a process to end as a terminal that is closed would, or as kill does.
func (s *Server) endExec(p runtime.Process, tty bool) {
	if tty {
		s.signalExec(p, syscall.SIGHUP)
	}
	s.signalExec(p, syscall.SIGTERM)
}

func (s *Server) signalExec(p runtime.Process, sig syscall.Signal) {
	ctx, cancel := context.WithTimeout(context.Background(), execGrace)
	defer cancel()
	if err := p.Signal(ctx, sig); err != nil {
		s.log.Debug("signal a further process", "signal", sig.String(), "err", err)
	}
}

func (s *Server) resizeExec(r *request, e *execSession) error {
	height, width, err := readSize(r)
	if err != nil {
		return err
	}
	timer := time.NewTimer(resizeWait)
	defer timer.Stop()
	select {
	case <-e.started:
	case <-timer.C:
		return model.Conflictf("exec %s has not been started", e.id)
	case <-r.ctx().Done():
		return r.ctx().Err()
	}
	if !e.running() {
		return model.Conflictf("exec %s is not running", e.id)
	}
	if err := e.process.Resize(r.ctx(), height, width); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusOK)
}

func readSize(r *request) (height, width uint16, err error) {
	for key, to := range map[string]*uint16{"h": &height, "w": &width} {
		n, err := strconv.ParseUint(r.query(key), 10, 16)
		if err != nil {
			return 0, 0, model.Invalidf("invalid resize %s %q: %v", map[string]string{"h": "height", "w": "width"}[key], r.query(key), err)
		}
		*to = uint16(n)
	}
	return height, width, nil
}

func (s *Server) getExec(r *request, e *execSession) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	// As in Docker it runs from when its start was accepted, which a client knows by the head of the answer; its PID comes a moment later.
	out := container.ExecInspectResponse{
		ID: e.id, Running: e.begun && e.code == nil, ExitCode: e.code, OpenStdin: e.stdin, OpenStdout: e.stdout, OpenStderr: e.stderr,
		CanRemove: e.code != nil, ContainerID: e.container, DetachKeys: e.detachKeys,
		ProcessConfig: &container.ExecProcessConfig{Tty: e.spec.TTY, Entrypoint: e.spec.Args[0], Arguments: e.spec.Args[1:], Privileged: &e.spec.Privileged, User: e.spec.User},
	}
	if e.process != nil {
		out.Pid = e.process.PID()
	}
	return writeJSON(r, http.StatusOK, out)
}

// emitExec emits an event of a container's further process.
func (s *Server) emitExec(e *execSession, action events.Action, code *int) {
	more := map[string]string{"execID": e.id}
	if code != nil {
		more["exitCode"] = strconv.Itoa(*code)
	}
	s.emit(events.ContainerEventType, action, scopeLocal, e.container, mergedLabels(e.attrs, more), s.now())
}

func containerEventAttrs(c *Container) map[string]string {
	return mergedLabels(c.Labels, map[string]string{"image": c.Image, "name": c.Name})
}
