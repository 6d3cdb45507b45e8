// Command skep-bench measures what it costs to start and remove many replicas of a
// tiny image, and prints a table beside Docker Engine's figures.
//
// It runs `skep daemon` on a host of its own, made of namespaces by package lab, whose
// cgroup counts the CPU of the daemon, its shims, the keeper and runc exactly, apart
// from the containers. When BENCH_DOCKER_HOST names an Engine's socket, that Engine
// (in swarm mode, with nothing else to do) is measured in the same way afterwards; its
// CPU is read from /proc, so what a shim used that has ended by then is missing.
//
// Every CPU figure is also given as a ratio to a calibration loop of the same run, so
// that runs on different machines, or beside other work, can be compared.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skep-swarm/skep/internal/lab"
	"github.com/skep-swarm/skep/internal/testimage"
)

// A result is what one number of replicas cost.
type result struct {
	replicas            int
	start, remove       time.Duration
	startCPU, removeCPU float64 // seconds
	pss                 float64 // MB while all run
	daemon              float64 // of startCPU and removeCPU: not shims' and runc's
	calibration         float64 // CPU seconds of the calibration loop beside it
}

// A target is an orchestrator to measure.
type target struct {
	name   string
	api    *api
	cpu    func() (float64, error) // CPU seconds used so far
	daemon func() (float64, error) // of it, what the long-lived processes used
	pss    func() (float64, error) // MB now
	finish func() error
}

type options struct {
	skep, counts, source, profile string
	replicas                      []int
	dns                           bool
}

func main() {
	lab.Dispatch()
	var o options
	flag.StringVar(&o.skep, "skep", "bin/skep", "the binary to measure")
	flag.StringVar(&o.counts, "replicas", "1,10,50,100", "numbers of replicas")
	flag.StringVar(&o.source, "source", ".", "root of the skep repository, for the tiny image")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile of the daemon to this file, while it starts and removes the most replicas once more")
	flag.BoolVar(&o.dns, "dns", false, "measure DNS only, beside dnsmasq")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "skep-bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.dns {
		return reportDNS(ctx, os.Stdout)
	}
	for word := range strings.SplitSeq(o.counts, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return fmt.Errorf("-replicas: %q is not a number of replicas", word)
		}
		o.replicas = append(o.replicas, n)
	}
	image, err := testimage.Cache{Dir: filepath.Join(o.source, ".cache", "images"), Source: o.source}.Tar(ctx, "tiny")
	if err != nil {
		return err
	}
	var flags []string
	if o.profile != "" {
		flags = []string{"--debug"} // serves profiles
	}
	t, err := startSkep(ctx, o.skep, flags)
	if err != nil {
		return err
	}
	err = report(ctx, os.Stdout, t, image, o.replicas)
	if err == nil && o.profile != "" {
		err = profile(ctx, t, slices.Max(o.replicas), o.profile)
	}
	if err := errors.Join(err, t.finish()); err != nil {
		return err
	}
	if err := reportDNS(ctx, os.Stdout); err != nil {
		return err
	}
	host := os.Getenv("BENCH_DOCKER_HOST")
	if host == "" {
		return nil
	}
	if t, err = attachDocker(host); err != nil {
		return err
	}
	return errors.Join(report(ctx, os.Stdout, t, image, o.replicas), t.finish())
}

// report measures one target and prints its table.
func report(ctx context.Context, w io.Writer, t *target, image string, replicas []int) error {
	if err := t.api.load(ctx, image); err != nil {
		return err
	}
	// The first task of a daemon pays for what is made once; it is not measured.
	if _, err := measure(ctx, t, 1); err != nil {
		return err
	}
	idle, err := t.pss()
	if err != nil {
		return err
	}
	var results []result
	for _, n := range replicas {
		r, err := measure(ctx, t, n)
		if err != nil {
			return err
		}
		results = append(results, r)
	}
	return printTable(w, t.name, idle, results)
}

// measure starts and removes a service with n replicas.
func measure(ctx context.Context, t *target, n int) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	r := result{replicas: n, calibration: calibrate()}
	daemon, err := t.daemon()
	if err != nil {
		return r, err
	}
	cpu, err := t.cpu()
	if err != nil {
		return r, err
	}
	begin := time.Now()
	id, err := t.api.create(ctx, fmt.Sprintf("bench%d", n), n)
	if err != nil {
		return r, err
	}
	if err := t.api.awaitRunning(ctx, id, n); err != nil {
		return r, err
	}
	r.start = time.Since(begin)
	after, err := t.cpu()
	if err != nil {
		return r, err
	}
	r.startCPU = after - cpu
	if r.pss, err = t.pss(); err != nil {
		return r, err
	}
	if cpu, err = t.cpu(); err != nil {
		return r, err
	}
	begin = time.Now()
	if err := t.api.remove(ctx, id); err != nil {
		return r, err
	}
	if err := t.api.awaitGone(ctx, id); err != nil {
		return r, err
	}
	r.remove = time.Since(begin)
	if after, err = t.cpu(); err != nil {
		return r, err
	}
	r.removeCPU = after - cpu
	after, err = t.daemon()
	r.daemon = after - daemon
	return r, err
}

// profile measures n replicas once more, only to see where the daemon's CPU goes.
func profile(ctx context.Context, t *target, n int, path string) error {
	expected, err := measure(ctx, t, n) // how long to look
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	seconds := int((expected.start+expected.remove)/time.Second) + 1
	go func() { done <- t.api.profile(ctx, seconds, out) }()
	_, err = measure(ctx, t, n)
	if err := errors.Join(err, <-done, out.Close()); err != nil {
		return fmt.Errorf("profiling: %w", err)
	}
	fmt.Printf("\nA CPU profile of the daemon (without shims, keeper, runc) is in %s: go tool pprof -top %s\n", path, path)
	return nil
}
