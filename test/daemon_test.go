package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// daemonCommand is the script command
//
//	daemon start [FLAG…]   start it and wait until its socket answers
//	daemon stop            SIGTERM, and wait for its end
//	daemon interrupt       SIGINT, and wait for its end
//	daemon kill            SIGKILL, and wait for its end
//	daemon restart         stop and start
//	daemon replace         stop, then start another build of it
//	daemon run [FLAG…]     start it in the foreground, for starts that are refused
func daemonCommand(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("want start, stop, interrupt, kill, restart, replace or run")
	}
	switch args[0] {
	case "start":
		return "", s.startDaemon(ctx, args[1:])
	case "stop":
		return "", s.endDaemon(ctx, syscall.SIGTERM)
	case "interrupt":
		return "", s.endDaemon(ctx, syscall.SIGINT)
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
const endLimit = 10 * time.Second

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
	if sig != syscall.SIGKILL && state.ExitCode() != 0 {
		return fmt.Errorf("the daemon ended at %v with %v", sig, state)
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
