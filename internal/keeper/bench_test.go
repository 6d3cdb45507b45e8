package keeper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// newLeanClient uses the real skep-keeper program.
func newLeanClient(b *testing.B) *Client {
	b.Helper()
	bin := filepath.Join(b.TempDir(), "skep-keeper")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "../../cmd/skep-keeper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Skipf("building skep-keeper: %v: %s", err, out)
	}
	c := newClient(b, "", "1")
	c.cfg.Binary, c.cfg.Args = bin, nil
	return c
}

// BenchmarkKeeper sends 100 MB in lines of 100 bytes through a FIFO into a
// log file, and reports the keeper's part of the cost.
func BenchmarkKeeper(b *testing.B) {
	const lines = 1_000_000
	c, ctx := newLeanClient(b), context.Background()
	dir := b.TempDir()
	b.SetBytes(lines * 100)
	var cpu time.Duration
	for i := range b.N {
		id := fmt.Sprint("c", i)
		files, err := c.Open(ctx, LogSpec{ContainerID: id, Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		before := cpuTime(b, pid(b, c))
		startWriter(b, files.Stdout, lines)()
		if err := c.Close(ctx, id); err != nil {
			b.Fatal(err)
		}
		cpu += cpuTime(b, pid(b, c)) - before
		if err := c.Remove(ctx, dir, id); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
	b.ReportMetric(pssKB(b, pid(b, c)), "pss-KB")
}

// BenchmarkIdle reports the memory of a keeper that has n logs open.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{0, 100, 1000} {
		b.Run(fmt.Sprint(n, " logs"), func(b *testing.B) {
			c := newLeanClient(b)
			if err := c.Ensure(context.Background()); err != nil {
				b.Fatal(err)
			}
			dir := b.TempDir()
			for i := range n {
				if _, err := c.Open(context.Background(), LogSpec{ContainerID: fmt.Sprint("c", i), Dir: filepath.Join(dir, fmt.Sprint(i))}); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				pssKB(b, pid(b, c))
			}
			b.ReportMetric(pssKB(b, pid(b, c)), "pss-KB")
		})
	}
}

func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

func pssKB(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Skipf("no smaps_rollup: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "Pss:" {
			n, _ := strconv.ParseFloat(f[1], 64)
			return n
		}
	}
	return 0
}
