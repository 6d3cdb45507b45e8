package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// daemonCommand is the script command
//
//	daemon start [FLAG…]   start it and wait until its socket answers
//	daemon stop            SIGTERM, and wait for its end
//	daemon kill            SIGKILL, and wait for its end
//	daemon restart         stop and start
//	daemon replace         stop, then start another build of it
//	daemon run [FLAG…]     start it in the foreground, for starts that are refused
func daemonCommand(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("want start, stop, kill, restart, replace or run")
	}
	switch args[0] {
	case "start":
		return "", s.startDaemon(ctx, args[1:])
	case "stop":
		return "", s.endDaemon(ctx, syscall.SIGTERM)
	case "kill":
		return "", s.endDaemon(ctx, syscall.SIGKILL)
	case "restart":
		if err := s.endDaemon(ctx, syscall.SIGTERM); err != nil {
			return "", err
		}
		return "", s.startDaemon(ctx, args[1:])
	case "replace":
		other, err := s.otherBuild(ctx)
		if err != nil {
			return "", err
		}
		if err := s.endDaemon(ctx, syscall.SIGTERM); err != nil {
			return "", err
		}
		s.binary = other
		return "", s.startDaemon(ctx, args[1:])
	case "run":
		out, err := s.node.Command(ctx, s.binary, s.daemonArgs(args[1:])...).CombinedOutput()
		return string(out), err
	}
	return "", fmt.Errorf("unknown: daemon %s", args[0])
}

func (s *story) daemonArgs(flags []string) []string {
	return append([]string{"daemon", "--data-root", s.data(), "--exec-root", s.exec(), "-H", "unix://" + s.socket()}, flags...)
}

func (s *story) startDaemon(ctx context.Context, flags []string) error {
	if s.daemon != nil {
		return errors.New("the daemon runs already")
	}
	// Its life is not bounded by that of this one command.
	cmd := s.node.Command(context.Background(), s.binary, s.daemonArgs(flags)...)
	cmd.Stdout, cmd.Stderr = s.daemonLog, s.daemonLog
	cmd.Env = append(os.Environ(), "DOCKER_SERVICE_PREFER_OFFLINE_IMAGE=1")
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its state is looked at when the script ends it
		close(ended)
	}()
	s.daemon, s.ended = cmd, ended
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		out, err := api(ctx, s, []string{"GET", "/_ping"})
		if err == nil && len(out) > 3 && out[:3] == "200" {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("the daemon ended as it started: %v", cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer: %q, %w", out, errors.Join(err, ctx.Err()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// endLimit is how long a daemon may take to end at SIGTERM.
const endLimit = 20 * time.Second

func (s *story) endDaemon(ctx context.Context, sig syscall.Signal) error {
	if s.daemon == nil {
		return errors.New("the daemon does not run")
	}
	if err := s.daemon.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	select {
	case <-s.ended:
	case <-ctx.Done():
		return fmt.Errorf("the daemon did not end within %v of %v", endLimit, sig)
	}
	state := s.daemon.ProcessState
	s.daemon = nil
	if sig == syscall.SIGTERM && state.ExitCode() != 0 {
		return fmt.Errorf("the daemon ended at SIGTERM with %v", state)
	}
	return nil
}

// otherBuild is skep with another version inside, so another file and other bytes.
func (s *story) otherBuild(ctx context.Context) (string, error) {
	out := filepath.Join(s.dir, "skep-next")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=next", "-o", out, "./cmd/skep")
	cmd.Dir, cmd.Env = s.root, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building another version: %w: %s", err, text)
	}
	return out, nil
}

// traffic asks a URL again and again, from several connections at once.
type traffic struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	asked  int
	failed int
	last   error // of the last failure
}

func (t *traffic) stop() {
	t.cancel()
	t.wg.Wait()
}

// trafficCommand is the script command
//
//	traffic start URL   begin
//	traffic stop        end, and print "N requests, M failed"; fail when M is not 0
func trafficCommand(_ context.Context, s *story, args []string) (string, error) {
	switch {
	case len(args) == 2 && args[0] == "start" && s.traffic == nil:
		ctx, cancel := context.WithCancel(context.Background())
		t := &traffic{cancel: cancel}
		s.traffic = t
		client := s.client.HTTPClient()
		client.Timeout = 10 * time.Second
		for range 2 {
			t.wg.Go(func() {
				for ctx.Err() == nil {
					_, err := get(ctx, client, args[1])
					if ctx.Err() != nil {
						return // ours, not the server's
					}
					t.mu.Lock()
					t.asked++
					if err != nil {
						t.failed++
						t.last = err
					}
					t.mu.Unlock()
					// A rate that leaves the two cores to what is tested.
					select {
					case <-ctx.Done():
					case <-time.After(5 * time.Millisecond):
					}
				}
			})
		}
		return "", nil
	case len(args) == 1 && args[0] == "stop" && s.traffic != nil:
		t := s.traffic
		s.traffic = nil
		t.stop()
		out := fmt.Sprintf("%d requests, %d failed\n", t.asked, t.failed)
		if t.asked == 0 {
			return out, errors.New("no request was made")
		}
		if t.failed > 0 {
			return out, fmt.Errorf("requests failed, the last one: %w", t.last)
		}
		return out, nil
	}
	return "", errors.New("want start URL, or stop after that")
}

// connCommand is the script command
//
//	conn open NAME ADDRESS   connect to an echo server of the tiny image
//	conn check NAME          send a line over that connection and get it back
func connCommand(ctx context.Context, s *story, args []string) (string, error) {
	switch {
	case len(args) == 3 && args[0] == "open":
		c, err := s.client.Dial(ctx, "tcp", args[2])
		if err != nil {
			return "", err
		}
		s.conns[args[1]] = c
		return readLine(c)
	case len(args) == 2 && args[0] == "check" && s.conns[args[1]] != nil:
		c := s.conns[args[1]]
		if _, err := io.WriteString(c, "still there\n"); err != nil {
			return "", err
		}
		return readLine(c)
	}
	return "", errors.New("want open NAME ADDRESS, or check NAME")
}

func readLine(c net.Conn) (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	var line []byte
	for b := make([]byte, 1); len(line) < 4096; {
		if _, err := c.Read(b); err != nil {
			return string(line), err
		}
		line = append(line, b[0])
		if b[0] == '\n' {
			break
		}
	}
	return string(line), nil
}
