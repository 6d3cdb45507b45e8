package dockerapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/state"
)

// The span of API versions that is served.
const (
	MaxAPIVersion = "1.51"
	MinAPIVersion = "1.24"
)

// unaryTimeout bounds a request that is not a stream, its body included.
const unaryTimeout = 2 * time.Minute

// Config is what a Server is made of.
type Config struct {
	Backend Backend
	Version Version
	Logger  *slog.Logger
	// PreferLocalImages makes an image's name mean what the swarm's table or this node says, before its registry is asked.
	PreferLocalImages bool
	// Now and Rand are the clock and the randomness; nil means the real ones.
	Now  func() time.Time
	Rand io.Reader
}

// Version is what the build knows of itself.
type Version struct {
	Version   string // such as "0.1.0"; clients are told it as the Engine's, too
	GitCommit string
}

// Server answers Docker Engine API requests. It is an http.Handler; Run must run for events.
type Server struct {
	backend Backend
	version Version
	log     *slog.Logger
	// preferLocal is Config.PreferLocalImages.
	preferLocal bool

	now    func() time.Time
	rand   io.Reader
	routes routeTable
	events *eventLog
	execs  *execTable
}

// New makes a Server. It starts nothing.
func New(c Config) *Server {
	s := &Server{backend: c.Backend, version: c.Version, log: c.Logger, now: c.Now, rand: c.Rand, preferLocal: c.PreferLocalImages, events: newEventLog()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.rand == nil {
		s.rand = rand.Reader
	}
	s.execs = newExecTable(s.now, s.rand)
	s.routes = s.table()
	return s
}

// Run turns applied batches, and what happens to containers, into events until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	defer s.events.close()
	defer s.execs.stop()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	failed := make(chan error, 2)
	wg.Go(func() { failed <- s.backend.Watch(ctx, s.observe) })
	wg.Go(func() { failed <- s.backend.WatchContainers(ctx, s.observeContainer) })
	for range cap(failed) {
		if err := <-failed; err != nil && ctx.Err() == nil {
			return fmt.Errorf("watch for events: %w", err)
		}
	}
	<-ctx.Done()
	return nil
}

// request is one request on its way through a handler.
type request struct {
	*http.Request
	w       http.ResponseWriter
	vars    map[string]string
	version apiVersion
}

func (r *request) ctx() context.Context    { return r.Context() }
func (r *request) query(key string) string { return r.URL.Query().Get(key) }
func (r *request) bool(key string) bool    { return isTrue(r.query(key)) }

// isTrue reads a flag as Docker does: anything but these is true.
func isTrue(v string) bool {
	switch strings.ToLower(strings.TrimSpace(v)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// ServeHTTP routes a request and answers errors in Docker's form.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Api-Version", MaxAPIVersion)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", "skep/"+s.version.Version+" (linux)")
	started := &startedWriter{ResponseWriter: w}
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler {
			panic(p)
		}
		s.log.Error("panic in an API request", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
		if !started.started {
			writeError(started, http.StatusInternalServerError, fmt.Sprintf("internal error in %s %s: see the daemon's log", r.Method, r.URL.Path))
			return
		}
		panic(http.ErrAbortHandler) // half an answer must not look whole
	}()
	err := s.serve(started, r)
	if err == nil {
		return
	}
	if started.started {
		// The status is gone; cutting the connection is the only way left to say so.
		if r.Context().Err() == nil && !errors.Is(err, context.Canceled) {
			s.log.Debug("API stream ended with an error", "path", r.URL.Path, "err", err)
			panic(http.ErrAbortHandler)
		}
		return
	}
	writeError(started, statusOf(err), err.Error())
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	version, path, err := splitVersion(r.URL.Path)
	if err != nil {
		return err
	}
	rt, vars := s.routes.find(r.Method, path)
	if rt == nil {
		return errPageNotFound
	}
	req := &request{Request: r, w: w, vars: vars, version: version}
	if !rt.stream {
		ctx, cancel := context.WithTimeout(r.Context(), unaryTimeout)
		defer cancel()
		req.Request = r.WithContext(ctx)
		rc := http.NewResponseController(w)
		// Not every writer has deadlines; those that have none are in tests.
		if rc.SetReadDeadline(time.Now().Add(unaryTimeout)) == nil {
			defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
		}
	}
	return rt.handle(req)
}

// state is a snapshot to answer from, or why this node cannot.
func (s *Server) state(ctx context.Context) (*state.Snapshot, error) {
	if err := notManager(s.backend.Local(), unavailable); err != nil {
		return nil, err
	}
	snap, err := s.backend.State(ctx)
	if err != nil {
		return nil, err
	}
	if snap.Cluster() == nil {
		return nil, notManager(Local{State: swarm.LocalNodeStateInactive}, unavailable)
	}
	return snap, nil
}

// startedWriter knows whether a status has been sent.
type startedWriter struct {
	http.ResponseWriter
	started bool
}

func (w *startedWriter) WriteHeader(code int) {
	w.started = true
	w.ResponseWriter.WriteHeader(code)
}

func (w *startedWriter) Write(b []byte) (int, error) {
	w.started = true
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *startedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
