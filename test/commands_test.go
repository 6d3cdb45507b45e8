package test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skep-swarm/skep/internal/lab"
)

func commands() map[string]command {
	return map[string]command{
		"daemon":      daemonCommand,
		"curl":        curl,
		"api":         api,
		"eventually":  eventually,
		"waitservice": waitService,
		"loadimage":   loadImage,
		"pids":        pids,
		"node":        func(ctx context.Context, s *story, args []string) (string, error) { return s.inside(ctx, s.node, args) },
		"client": func(ctx context.Context, s *story, args []string) (string, error) {
			return s.inside(ctx, s.client, args)
		},
		"snapshot": snapshot,
		"nodiff":   noDiff,
		"traffic":  trafficCommand,
		"load":     loadCommand,
		"watch":    watchCommand,
		"conn":     connCommand,
		"udp":      udp,
		"flow":     flowCommand,
		"host":     hostCommand,
		"registry": registryCommand,

		"debianregistry": debianRegistryCommand,
		"inside":         insideCommand,
		"hunt":           huntCommand,
		"sweep":          sweepCommand,
	}
}

// inside runs a program inside a host, with the script's environment.
func (s *story) inside(ctx context.Context, h *lab.Host, args []string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("want a program")
	}
	cmd := h.Command(ctx, args[0], args[1:]...)
	cmd.Env, cmd.Dir = s.vars, s.work
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return string(out), err
}

// curl [-from client|node] [-n COUNT] [-within DURATION] URL prints the bodies of
// COUNT requests, each of which may take so long.
func curl(ctx context.Context, s *story, args []string) (string, error) {
	from, count, within := s.client, 1, 10*time.Second
	for len(args) > 1 {
		switch args[0] {
		case "-from":
			if args[1] == "node" {
				from = s.node
			}
		case "-n":
			n, err := strconv.Atoi(args[1])
			if err != nil {
				return "", err
			}
			count = n
		case "-within":
			d, err := time.ParseDuration(args[1])
			if err != nil {
				return "", err
			}
			within = d
		default:
			return "", fmt.Errorf("unknown flag %s", args[0])
		}
		args = args[2:]
	}
	if len(args) != 1 {
		return "", errors.New("want one URL")
	}
	client := from.HTTPClient()
	client.Timeout = within
	var out strings.Builder
	for range count {
		body, err := get(ctx, client, args[0])
		out.WriteString(body)
		if err != nil {
			return out.String(), err
		}
	}
	return out.String(), nil
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode >= 400 {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// api METHOD PATH [FILE [CONTENT-TYPE]] sends a raw request to the daemon's socket,
// with the file as its body, and prints the status and the answer. Only a missing
// answer is a failure.
func api(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) < 2 || len(args) > 4 {
		return "", errors.New("want METHOD PATH [FILE [CONTENT-TYPE]]")
	}
	var body io.Reader
	if len(args) > 2 {
		text, err := os.ReadFile(filepath.Join(s.work, args[2]))
		if err != nil {
			return "", err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, args[0], "http://skep"+args[1], body)
	if err != nil {
		return "", err
	}
	req.Close = true
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if len(args) > 3 {
		req.Header.Set("Content-Type", args[3])
	}
	conn, err := s.dialSocket(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	// A body that is too large is refused before it is sent whole; net/http's client
	// would then tell of the broken pipe and not of the answer.
	sent := make(chan error, 1)
	go func() { sent <- req.Write(conn) }()
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		conn.Close()
		return "", errors.Join(err, <-sent)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return fmt.Sprintf("%d %s\n%s\n", resp.StatusCode, resp.Header.Get("Content-Type"), bytes.TrimSpace(answer)), err
}

func (s *story) dialSocket(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", s.socket())
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = conn.SetDeadline(deadline)
	}
	return conn, err
}

// eventually [DURATION] [!] COMMAND… [-- PATTERN] repeats a command, one of ours or a
// program, until it succeeds and what it prints matches the pattern; with "!" until
// it fails.
func eventually(ctx context.Context, s *story, args []string) (string, error) {
	limit := 20 * time.Second
	if len(args) > 0 {
		if d, err := time.ParseDuration(args[0]); err == nil {
			limit, args = d, args[1:]
		}
	}
	pattern := regexp.MustCompile("")
	if i := slices.Index(args, "--"); i >= 0 && i+2 == len(args) {
		if args[i+1] == "^$" {
			return "", errors.New(`^$ matches at the end of whatever is printed: write \A\z for nothing`)
		}
		var err error
		if pattern, err = regexp.Compile("(?m)" + args[i+1]); err != nil {
			return "", err
		}
		args = args[:i]
	}
	fail := len(args) > 0 && args[0] == "!"
	if fail {
		args = args[1:]
	}
	if len(args) == 0 {
		return "", errors.New("want a command")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error // not of our own time limit
	for {
		var out string
		var err error
		if own, ok := commands()[args[0]]; ok {
			out, err = own(ctx, s, args[1:])
		} else {
			out, err = s.run(ctx, args[0], args[1:]...)
		}
		// A failure at the very end may be that of the time limit.
		if fail && err != nil && ctx.Err() == nil || !fail && err == nil && pattern.MatchString(out) {
			return out, nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return out, fmt.Errorf("not within %v; at last it printed %q, error: %w", limit, out, errors.Join(last, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// waitservice NAME N waits until N of N tasks run, as `docker service ls` tells.
func waitService(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) != 2 {
		return "", errors.New("want NAME N")
	}
	want := "^" + args[0] + " " + args[1] + "/" + args[1] + "$"
	return eventually(ctx, s, []string{"60s", "docker", "service", "ls", "--format", "{{.Name}} {{.Replicas}}", "--", want})
}

func loadImage(ctx context.Context, s *story, args []string) (string, error) {
	for _, kind := range args {
		path, err := s.images.Tar(ctx, kind)
		if err != nil {
			return "", err
		}
		if out, err := s.run(ctx, "docker", "load", "-i", path); err != nil {
			return out, err
		}
	}
	return "", nil
}

// pids NAME prints "container pid" for each running container of a service, sorted.
func pids(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("want the name of a service")
	}
	ids, err := s.run(ctx, "docker", "ps", "-q", "--no-trunc", "--filter", "label=com.docker.swarm.service.name="+args[0])
	if err != nil {
		return "", err
	}
	var lines []string
	for _, id := range strings.Fields(ids) {
		out, err := s.run(ctx, "docker", "inspect", "--type", "container", "--format", "{{.Id}} {{.State.Pid}}", id)
		if err != nil {
			return out, err
		}
		lines = append(lines, out)
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}

func snapshot(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("want a name")
	}
	snap, err := s.node.Snapshot(ctx)
	s.snapshots[args[0]] = snap
	return "", err
}

// nodiff NAME [KIND…] fails when the node is not as it was at `snapshot NAME`. With
// kinds only those are compared.
func noDiff(ctx context.Context, s *story, args []string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("want the name of a snapshot")
	}
	before, ok := s.snapshots[args[0]]
	if !ok {
		return "", fmt.Errorf("there is no snapshot %s", args[0])
	}
	now, err := s.node.Snapshot(ctx)
	if err != nil {
		return "", err
	}
	if len(args) > 1 {
		other := func(kind string, _ []string) bool { return !slices.Contains(args[1:], kind) }
		before = maps.Clone(before)
		maps.DeleteFunc(before, other)
		maps.DeleteFunc(now, other)
	}
	if diff := now.Diff(before); len(diff) > 0 {
		return "", fmt.Errorf("the node is not as it was:\n%s", strings.Join(diff, "\n"))
	}
	return "", nil
}
