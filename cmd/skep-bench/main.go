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
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/skep-swarm/skep/internal/lab"
	"github.com/skep-swarm/skep/internal/testimage"
)

// reference is Docker Engine 29.7.2 on a quiet host with two cores.
func reference() map[int]result {
	return map[int]result{
		1:   {start: 410 * time.Millisecond, startCPU: 0.13},
		10:  {start: 850 * time.Millisecond, startCPU: 0.88},
		50:  {start: 4300 * time.Millisecond, startCPU: 4.2},
		100: {start: 8600 * time.Millisecond, startCPU: 9.0, remove: 8600 * time.Millisecond, removeCPU: 6.7, pss: 635},
	}
}

const referenceIdlePSS = 134 // MB

// A result is what one number of replicas cost.
type result struct {
	replicas            int
	start, remove       time.Duration
	startCPU, removeCPU float64 // seconds
	pss                 float64 // MB while all run
	calibration         float64 // CPU seconds of the calibration loop beside it
}

// A target is an orchestrator to measure.
type target struct {
	name   string
	api    *api
	cpu    func() (float64, error) // CPU seconds used so far
	pss    func() (float64, error) // MB now
	finish func() error
}

func main() {
	lab.Dispatch()
	skep := flag.String("skep", "bin/skep", "the binary to measure")
	counts := flag.String("replicas", "1,10,50,100", "numbers of replicas")
	source := flag.String("source", ".", "root of the skep repository, for the tiny image")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *skep, *counts, *source); err != nil {
		fmt.Fprintln(os.Stderr, "skep-bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, skep, counts, source string) error {
	var replicas []int
	for word := range strings.SplitSeq(counts, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return fmt.Errorf("-replicas: %q is not a number of replicas", word)
		}
		replicas = append(replicas, n)
	}
	image, err := testimage.Cache{Dir: filepath.Join(source, ".cache", "images"), Source: source}.Tar(ctx, "tiny")
	if err != nil {
		return err
	}
	t, err := startSkep(ctx, skep)
	if err != nil {
		return err
	}
	if err := report(ctx, t, image, replicas); err != nil {
		return err
	}
	if host := os.Getenv("BENCH_DOCKER_HOST"); host != "" {
		t, err := attachDocker(host)
		if err != nil {
			return err
		}
		return report(ctx, t, image, replicas)
	}
	return nil
}

// report measures one target and prints its table.
func report(ctx context.Context, t *target, image string, replicas []int) (err error) {
	defer func() {
		if ferr := t.finish(); err == nil {
			err = ferr
		}
	}()
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
	fmt.Printf("\n%s, idle: %.0f MB PSS (Docker: %d MB)\n", t.name, idle, referenceIdlePSS)
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "replicas\tall run\tDocker\tCPU s\tDocker\tCPU/calibration\tremoved\tCPU s\tCPU/calibration\tMB PSS\t")
	ref := reference()
	for _, n := range replicas {
		r, err := measure(ctx, t, n)
		if err != nil {
			return err
		}
		docker, dockerCPU := "-", "-"
		if d, ok := ref[n]; ok {
			docker, dockerCPU = fmt.Sprintf("%.2fs", d.start.Seconds()), fmt.Sprintf("%.2f", d.startCPU)
		}
		fmt.Fprintf(out, "%d\t%.2fs\t%s\t%.2f\t%s\t%.2f\t%.2fs\t%.2f\t%.2f\t%.0f\t\n", n, r.start.Seconds(), docker, r.startCPU, dockerCPU,
			r.startCPU/r.calibration, r.remove.Seconds(), r.removeCPU, r.removeCPU/r.calibration, r.pss)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	d := ref[100]
	fmt.Printf("Docker 29.7.2 removes 100 in %.1fs with %.1f CPU s and has %.0f MB PSS while they run.\n", d.remove.Seconds(), d.removeCPU, d.pss)
	return nil
}

// measure starts and removes a service with n replicas.
func measure(ctx context.Context, t *target, n int) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	r := result{replicas: n, calibration: calibrate()}
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
	after, err = t.cpu()
	r.removeCPU = after - cpu
	return r, err
}
