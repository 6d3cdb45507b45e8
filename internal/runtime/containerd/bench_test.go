package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/runtime/conformance"
)

// TestMany starts, lists and removes many containers as an agent does, a few at a time, and reports what they cost. It is
// a measurement, run when SKEP_MANY says how many.
func TestMany(t *testing.T) {
	var n int
	if _, err := fmt.Sscan(os.Getenv("SKEP_MANY"), &n); err != nil {
		t.Skip("set SKEP_MANY to the number of containers to measure")
	}
	h := newHost(t)
	rt := h.boot(t)
	ctx := context.Background()
	warm, _ := rt.Controller(conformance.NewSpec("warm", []string{"sleep", "1000"}))
	if err := warm.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := warm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := warm.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	each := func(what string, f func(i int) error) {
		begin, cpu := time.Now(), cpuTime(t)
		var wg sync.WaitGroup
		slots := make(chan struct{}, 8)
		for i := range n {
			slots <- struct{}{}
			wg.Add(1)
			go func() {
				defer func() { <-slots; wg.Done() }()
				if err := f(i); err != nil {
					t.Error(what, i, err)
				}
			}()
		}
		wg.Wait()
		t.Logf("%-8s %d in %.2fs, CPU of this process and those it reaped %.2fs", what, n, time.Since(begin).Seconds(), (cpuTime(t) - cpu).Seconds())
	}
	before := groupCPU(t)
	begin := time.Now()
	each("prepare", func(i int) error {
		c, err := rt.Controller(conformance.NewSpec(fmt.Sprint(i), []string{"sleep", "1000"}))
		if err != nil {
			return err
		}
		return c.Prepare(ctx)
	})
	each("start", func(i int) error {
		c, _ := rt.Controller(conformance.NewSpec(fmt.Sprint(i), []string{"sleep", "1000"}))
		_, err := c.Start(ctx)
		return err
	})
	t.Logf("together %.2fs, all CPU incl. shims and runc %.2fs", time.Since(begin).Seconds(), (groupCPU(t) - before).Seconds())
	time.Sleep(time.Second)
	shims := processes(filepath.Dir(h.cfg.Root))
	var pss, rss int
	for _, s := range shims {
		data, _ := os.ReadFile(filepath.Join(filepath.Dir(strings.SplitN(s, ":", 2)[0]), "smaps_rollup"))
		pss += field(data, "Pss:")
		rss += field(data, "Rss:")
	}
	var own, children int
	for _, s := range shims {
		data, _ := os.ReadFile(filepath.Join(filepath.Dir(strings.SplitN(s, ":", 2)[0]), "stat"))
		f := strings.Fields(string(data[strings.LastIndex(string(data), ")")+1:]))
		for i, at := range []int{11, 12, 13, 14} {
			var ticks int
			_, _ = fmt.Sscan(f[at], &ticks)
			if i < 2 {
				own += ticks * 10
			} else {
				children += ticks * 10
			}
		}
	}
	t.Logf("shims' own CPU %d ms, that of their runcs %d ms", own, children)
	t.Logf("%d shims, PSS %d kB, RSS %d kB each", len(shims), pss/max(1, len(shims)), rss/max(1, len(shims)))
	before = groupCPU(t)
	begin = time.Now()
	each("remove", func(i int) error {
		c, _ := rt.Controller(conformance.NewSpec(fmt.Sprint(i), []string{"sleep", "1000"}))
		return c.Remove(ctx)
	})
	t.Logf("remove %.2fs, all CPU %.2fs", time.Since(begin).Seconds(), (groupCPU(t) - before).Seconds())
}

func field(data []byte, name string) (n int) {
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, name) {
			_, _ = fmt.Sscan(strings.TrimPrefix(line, name), &n)
		}
	}
	return n
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var total time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			t.Fatal(err)
		}
		total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return total
}

// groupCPU is what the cgroup this process was put in has used: everything but the containers. See SKEP_CPU_GROUP.
func groupCPU(t *testing.T) time.Duration {
	data, err := os.ReadFile(filepath.Join(os.Getenv("SKEP_CPU_GROUP"), "cpuacct.usage"))
	if err != nil {
		return cpuTime(t)
	}
	var ns int64
	_, _ = fmt.Sscan(string(data), &ns)
	return time.Duration(ns)
}
