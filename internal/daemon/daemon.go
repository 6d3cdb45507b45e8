// Package daemon is the one place that wires: a Config becomes parts, the parts run, and they end in
// order. It decides nothing; each part is a package of its own that can be read and
// tested alone.
//
// There are three layers. The host's (runtime, network, keeper, images, volumes) works without a
// swarm. The member's (log, manager, dispatch, agent) runs while this node is in one.
// The API's is on top. They end from the top down, so that whoever was served gets an answer.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os/signal"
	"syscall"
	"time"

	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/skepapi"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/spf13/cobra"
)

// apiGrace is how long requests may go on when the daemon ends.
const apiGrace = 2 * time.Second

// umask is the daemon's and its helpers': containers' users read files that it makes, and nobody else writes what is being
// made, its sockets least of all. Whoever starts it may have another.
const umask = 0o022

// Main runs a daemon until it gets SIGTERM or SIGINT.
func Main(cmd *cobra.Command, cfg *Config) error {
	syscall.Umask(umask)
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log, err := newLogger(cfg, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	return Run(ctx, cfg, log)
}

func newLogger(cfg *Config, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", cfg.LogLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch cfg.LogFormat {
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", cfg.LogFormat)
}

// Run runs a daemon until ctx ends, a part fails, or someone asks it to go down. Tasks live on,
// but for the last.
func Run(ctx context.Context, cfg *Config, log *slog.Logger) error {
	lock, err := lockRoot(cfg)
	if err != nil {
		return err
	}
	defer lock.Close()
	removePid, err := writePid(cfg.PidFile)
	if err != nil {
		return err
	}
	defer removePid()
	h, err := newHost(ctx, cfg, log)
	if err != nil {
		return err
	}
	m, err := newMember(h)
	if err != nil {
		return err
	}
	listeners, err := openAll(cfg)
	if err != nil {
		return err
	}
	return run(ctx, h, m, listeners)
}

func openAll(cfg *Config) (out []net.Listener, err error) {
	for _, host := range cfg.Hosts {
		l, err := listen(cfg, host)
		if err != nil {
			for _, open := range out {
				open.Close()
			}
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// run starts the layers from below and ends them from above.
func run(ctx context.Context, h *host, m *member, listeners []net.Listener) error {
	hostLayer := startLayer(ctx, h.parts()...)
	memberLayer := startLayer(ctx, m.Run)
	below := func() error { return errors.Join(memberLayer.stop(), hostLayer.stop()) }
	api := newAPI(h, m, listeners, below)
	apiLayer := startLayer(ctx, api.parts()...)
	h.log.Info("daemon is up", "version", h.cfg.Version, "data-root", h.cfg.DataRoot, "hosts", h.cfg.Hosts, "instance", h.cfg.Instance())
	select {
	case <-ctx.Done():
	case <-hostLayer.failed:
	case <-memberLayer.failed:
	case <-apiLayer.failed:
	}
	h.log.Info("daemon is ending")
	if err := errors.Join(apiLayer.stop(), below()); err != nil {
		return err
	}
	if m.active() == nil {
		// Nothing runs here that the keeper would keep.
		return h.shutdown(context.WithoutCancel(ctx))
	}
	h.log.Info("daemon has ended; tasks that ran run on")
	return nil
}

// layer is a set of parts that live and end together.
type layer struct {
	cancel context.CancelFunc
	failed chan struct{} // closed when the first part ended
	done   chan struct{} // closed when all have
	err    error         // valid then
}

// startLayer runs each part in a goroutine; the first that ends, for whatever reason, ends the others.
func startLayer(ctx context.Context, parts ...func(context.Context) error) *layer {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &layer{cancel: cancel, failed: make(chan struct{}), done: make(chan struct{})}
	ended := make(chan error, len(parts))
	for _, p := range parts {
		go func() { ended <- p(ctx) }()
	}
	go func() {
		var errs []error
		for i := range parts {
			err := <-ended
			if err != nil && !(errors.Is(err, context.Canceled) && ctx.Err() != nil) {
				errs = append(errs, err)
			}
			if i == 0 {
				close(l.failed)
				cancel()
			}
		}
		l.err = errors.Join(errs...)
		close(l.done)
	}()
	return l
}

// stop ends the layer and returns what went wrong in it. It may be called more than once.
func (l *layer) stop() error {
	l.cancel()
	<-l.done
	return l.err
}

// apiServer serves Docker's API and skep's own on every listener.
type apiServer struct {
	h         *host
	m         *member
	handler   *settled
	docker    *dockerapi.Server
	listeners []net.Listener
}

// newAPI serves both APIs; below ends the layers under it.
func newAPI(h *host, m *member, listeners []net.Listener, below func() error) *apiServer {
	b := &backend{host: h, member: m, below: below}
	engine := func(b dockerapi.Backend) *dockerapi.Server {
		return dockerapi.New(dockerapi.Config{
			Backend: b, Logger: h.log.With("part", "api"),
			PreferLocalImages: h.preferLocalImages(),
			Version:           dockerapi.Version{Version: h.cfg.Version, GitCommit: h.cfg.Commit},
		})
	}
	docker := engine(b)
	h.api.set(docker.Node())
	mux := http.NewServeMux()
	mux.Handle("/skep/", skepapi.New(b, docker, func(l skepapi.Log) http.Handler { return engine(&stage{b, l}) }))
	mux.Handle("/", docker)
	if h.cfg.Debug || h.cfg.LogLevel == "debug" {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	}
	return &apiServer{h: h, m: m, handler: &settled{next: mux, done: make(chan struct{})}, docker: docker, listeners: listeners}
}

// stage is the daemon for a rehearsal: all but the log is real, and only asked.
type stage struct {
	*backend
	log skepapi.Log
}

// State implements dockerapi.Cluster.
func (s *stage) State(ctx context.Context) (*state.Snapshot, error) { return s.log.State(ctx) }

// Propose implements dockerapi.Cluster.
func (s *stage) Propose(ctx context.Context, b *model.Batch) (*model.Outcome, error) {
	return s.log.Propose(ctx, b)
}

func (a *apiServer) parts() []func(context.Context) error {
	settle := func(ctx context.Context) error {
		if now := a.m.active(); now != nil {
			return a.handler.run(ctx, now.replica)
		}
		return a.handler.run(ctx, nil)
	}
	parts := []func(context.Context) error{a.docker.Run, settle}
	if addr := a.h.cfg.MetricsAddr; addr != "" {
		parts = append(parts, func(ctx context.Context) error { return serveMetrics(ctx, addr, a.m) })
	}
	for _, l := range a.listeners {
		parts = append(parts, func(ctx context.Context) error { return a.serve(ctx, l) })
	}
	return parts
}

func (a *apiServer) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: a.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ConnState:   (&connLimit{max: maxAPIConns}).changed,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(a.h.log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("API at %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiGrace)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		// What still runs is a stream without an end.
		if err := srv.Close(); err != nil {
			return fmt.Errorf("close the API at %s: %w", l.Addr(), err)
		}
	}
	<-done
	return nil
}
