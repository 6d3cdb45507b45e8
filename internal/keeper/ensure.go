package keeper

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// startTime bounds starting or replacing a keeper.
const startTime = 30 * time.Second

// Ensure makes sure that a keeper of this build runs: it starts one, replaces
// one of another build, or finds that all is well. A keeper that cannot be
// replaced but speaks this protocol is kept, with a warning. A program that
// runs keeps running when ctx ends.
func (c *Client) Ensure(ctx context.Context) error {
	select {
	case c.ensures <- struct{}{}:
		defer func() { <-c.ensures }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	build, err := c.build()
	if err != nil {
		return err
	}
	for {
		running, err := c.hello(ctx)
		switch {
		case err == nil && running.Build == build:
			return nil
		case err == nil:
			err = c.start(ctx, build, true)
			if err != nil && running.Version == Protocol {
				c.cfg.Logger.Warn("the keeper could not be replaced and goes on as it is", "build", running.Build, "err", err)
				return nil
			}
		default:
			err = c.start(ctx, build, false)
		}
		if err == nil {
			return nil
		}
		if !strings.Contains(err.Error(), errRuns.Error()) {
			return err
		}
		// Another client was faster, or the last keeper is just ending.
		select {
		case <-ctx.Done():
			return fmt.Errorf("starting the keeper: %w: %w", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *Client) hello(ctx context.Context) (*hello, error) {
	resp, err := c.once(ctx, request{Op: opHello})
	if err != nil {
		return nil, err
	}
	if resp.Hello == nil {
		return nil, errors.New("the keeper does not say who it is")
	}
	return resp.Hello, nil
}

// build returns what tells the program to be run from others.
func (c *Client) build() (string, error) {
	if c.cfg.Build != "" {
		return c.cfg.Build, nil
	}
	f, err := os.Open(c.cfg.Binary)
	if err != nil {
		return "", fmt.Errorf("reading the keeper's program: %w", err)
	}
	defer f.Close()
	h := fnv.New64a()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading the keeper's program: %w", err)
	}
	return strconv.FormatUint(h.Sum64(), 16), nil
}

// start runs the keeper's program and waits until it says that it serves.
func (c *Client) start(ctx context.Context, build string, takeover bool) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("making the keeper's directory: %w", err)
	}
	said, ready, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("starting the keeper: %w", err)
	}
	defer said.Close()
	args := append(append([]string(nil), c.cfg.Args...), "-detach", "-dir="+c.cfg.Dir, "-build="+build)
	if takeover {
		args = append(args, "-takeover")
	}
	cmd := exec.CommandContext(ctx, c.cfg.Binary, args...)
	cmd.ExtraFiles = []*os.File{ready}
	cmd.Dir = "/"
	err = cmd.Run() // only up to its child, see detached
	ready.Close()
	stop := context.AfterFunc(ctx, func() { said.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	words, rerr := io.ReadAll(io.LimitReader(said, 4<<10))
	switch text := strings.TrimSpace(string(words)); {
	case text == "ok":
		c.place(ctx)
		return nil
	case text != "":
		return fmt.Errorf("starting the keeper: %s", text)
	case ctx.Err() != nil:
		return fmt.Errorf("starting the keeper: %w", ctx.Err())
	default:
		return fmt.Errorf("starting the keeper: it ended without a word: %w", errors.Join(err, rerr))
	}
}

// place puts the keeper into its cgroup in every hierarchy that counts
// processes or memory, or that systemd looks at. Where it cannot, the keeper
// stays in the daemon's: that is no reason to do without.
func (c *Client) place(ctx context.Context) {
	if c.cfg.Cgroup == "" {
		return
	}
	running, err := c.hello(ctx)
	if err == nil {
		err = placeIn(c.cfg.Cgroup, running.PID)
	}
	if err != nil {
		c.cfg.Logger.Warn("putting the keeper into its cgroup", "err", err)
	}
}

func placeIn(cgroup string, pid int) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		dir := filepath.Join(m, cgroup)
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// cgroupMounts lists where the hierarchies in question are mounted.
func cgroupMounts() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line) // device, directory, type, options
		if len(f) < 4 {
			continue
		}
		options := "," + f[3] + ","
		v1 := f[2] == "cgroup" && (strings.Contains(options, ",name=systemd,") ||
			strings.Contains(options, ",memory,") || strings.Contains(options, ",pids,"))
		if v1 || f[2] == "cgroup2" {
			out = append(out, f[1])
		}
	}
	return out, nil
}

// Shutdown ends the keeper: logs are closed with all that was written, ports
// are let go, connections from [::1] are reset. When none runs there is
// nothing to do. It returns when the process has ended.
func (c *Client) Shutdown(ctx context.Context) error {
	select {
	case c.ensures <- struct{}{}:
		defer func() { <-c.ensures }()
	case <-ctx.Done():
		return ctx.Err()
	}
	err := c.end(ctx)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ending the keeper: %w", err)
	}
	if c.cfg.Cgroup != "" {
		mounts, _ := cgroupMounts()
		for _, m := range mounts {
			os.Remove(filepath.Join(m, c.cfg.Cgroup))
		}
	}
	return nil
}

// end tells the keeper to end and waits for that.
func (c *Client) end(ctx context.Context) error {
	running, err := c.hello(ctx)
	if err != nil {
		return err
	}
	process, err := unix.PidfdOpen(running.PID, 0)
	if err != nil {
		process = -1 // it ends already, or its number means nothing here
	} else {
		defer unix.Close(process)
	}
	if _, err := c.once(ctx, request{Op: opShutdown}); err != nil {
		return err
	}
	for {
		// The lock is free once everything is closed.
		lock, err := takeLock(c.cfg.Dir)
		if err == nil {
			lock.Close()
			break
		}
		if !errors.Is(err, errRuns) {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	if process < 0 {
		return nil
	}
	return awaitEnd(ctx, process)
}

// awaitEnd waits until a process has ended. Its parent, the system's first process, may not have taken note of that.
func awaitEnd(ctx context.Context, pidfd int) error {
	for {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0); n > 0 || err != nil && err != unix.EINTR {
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Millisecond):
		return nil
	}
}
