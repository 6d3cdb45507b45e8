// Command demoweb is the web program of the demo stack in examples/demo. It says which replica answered, and counts
// visits in Redis: as a page for browsers, as a line of text for curl.
//
//	GET /        the page; 503 when Redis cannot be reached
//	GET /health  200 when it has met Redis and is not ending, else 503
//
// It finds its surroundings in the environment: TASK and NODE name it, VERSION is shown, REDIS_ADDR is where Redis is
// [redis:6379], REDIS_PASSWORD_FILE holds its password [/run/secrets/redis_password, if there is one].
//
// With -health it asks the one that runs beside it whether it is well, and ends with 0 or 1: an image with nothing
// but this program can have a health check.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	healthTimeout = 2 * time.Second
	// quiet is how long no new connection may have come before the program stops accepting: closing a socket
	// refuses those who are in its queue.
	quiet = 300 * time.Millisecond
	// endWithin bounds each half of its end: until nobody new comes, and until the last has got an answer.
	endWithin   = 8 * time.Second
	maxPassword = 4 << 10 // bytes
)

func main() {
	listen := flag.String("listen", cmp.Or(os.Getenv("LISTEN"), ":8080"), "address of the HTTP server")
	health := flag.Bool("health", false, "ask the server at that address whether it is well")
	flag.Parse()
	if *health {
		if err := askHealth(context.Background(), *listen); err != nil {
			fmt.Fprintln(os.Stderr, "demoweb:", err)
			os.Exit(1)
		}
		return
	}
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, log, *listen); err != nil {
		log.Error("ended", "error", err)
		os.Exit(1)
	}
}

// run serves until ctx is done and everybody who came before has been answered.
func run(ctx context.Context, log *slog.Logger, listen string) error {
	password, err := readPassword()
	if err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	redis := &redisClient{addr: cmp.Or(os.Getenv("REDIS_ADDR"), "redis:6379"), password: password}
	defer redis.close()
	s := &site{
		log: log, redis: redis,
		who: identity{
			Task: cmp.Or(os.Getenv("TASK"), hostname), Host: hostname,
			Node: cmp.Or(os.Getenv("NODE"), "unknown"), Version: cmp.Or(os.Getenv("VERSION"), "dev"),
		},
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	web := &http.Server{
		Handler: s.routes(), ConnState: s.noteConn, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 64 << 10,
	}
	log.Info("listening", "address", ln.Addr(), "task", s.who.Task, "node", s.who.Node, "version", s.who.Version, "redis", redis.addr)

	meeting, cancel := context.WithCancel(ctx)
	met := make(chan struct{})
	go func() { defer close(met); s.meetRedis(meeting) }()
	defer func() { cancel(); <-met }()

	ended := make(chan error, 1)
	go func() { ended <- web.Serve(ln) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	return s.drain(web)
}

// drain lets those come to an end who are here or on their way, then ends the server.
func (s *site) drain(web *http.Server) error {
	s.draining.Store(true)
	s.log.Info("asked to end: finishing what has come")
	web.SetKeepAlivesEnabled(false) // whoever asks again takes a new connection, to another replica
	begin := time.Now()
	s.lastConn.CompareAndSwap(0, begin.UnixNano())
	for time.Since(begin) < endWithin {
		rest := quiet - time.Since(later(begin, time.Unix(0, s.lastConn.Load())))
		if rest <= 0 {
			break
		}
		time.Sleep(rest)
	}
	ctx, cancel := context.WithTimeout(context.Background(), endWithin)
	defer cancel()
	if err := web.Shutdown(ctx); err != nil {
		return fmt.Errorf("requests were still open after %v: %w", endWithin, err)
	}
	s.log.Info("ended", "visits", s.served.Load(), "took", time.Since(begin).Round(time.Millisecond))
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// readPassword is Redis's password; none is fine unless a file for it was named.
func readPassword() (string, error) {
	const usual = "/run/secrets/redis_password"
	name := os.Getenv("REDIS_PASSWORD_FILE")
	f, err := os.Open(cmp.Or(name, usual))
	if errors.Is(err, fs.ErrNotExist) && name == "" {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading Redis's password: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPassword))
	if err != nil {
		return "", fmt.Errorf("reading Redis's password: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// askHealth is the client's end of /health.
func askHealth(ctx context.Context, listen string) error {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort("127.0.0.1", port)+"/health", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	return err
}
