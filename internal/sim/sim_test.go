package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedFlag     = flag.Uint64("seed", 0, "replay this one seed and print its trace")
	mutationFlag = flag.String("mutation", "", "with -seed: break this law on purpose")
	seedsFlag    = flag.Uint64("seeds", 1000, "how many seeds TestSeeds runs")
	soakFlag     = flag.Duration("soak", 0, "run fresh seeds for so long")
)

// TestSeeds runs many histories, on all processors, each on one.
func TestSeeds(t *testing.T) {
	n := *seedsFlag
	if testing.Short() {
		n = min(n, 100)
	}
	began := time.Now()
	steps, virtual := runSeeds(t, func(i uint64) bool { return i < n }, 1)
	took := time.Since(began)
	t.Logf("%d seeds, %d events, %s of cluster time in %s: %.1f seeds/s", n, steps, virtual.Round(time.Minute), took.Round(time.Millisecond), float64(n)/took.Seconds())
}

// runSeeds runs seeds from first on while more says so, and stops at the first failure.
func runSeeds(t *testing.T, more func(i uint64) bool, first uint64) (steps int, virtual time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := uint64(0)
	failed := 0
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				stop := failed >= 12
				mu.Unlock()
				if stop || !more(i) {
					return
				}
				r := Run(Options{Seed: first + i})
				mu.Lock()
				steps += r.Steps
				virtual += r.Virtual
				if r.Failure != nil {
					failed++
					t.Error(r.Failure)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return steps, virtual
}

// TestSameSeedSameTrace runs seeds twice: a simulation that cannot be replayed is worth little.
func TestSameSeedSameTrace(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		a, b := Run(Options{Seed: seed}), Run(Options{Seed: seed})
		if a.Hash != b.Hash || a.Steps != b.Steps {
			t.Errorf("seed %d: %x after %d events, then %x after %d", seed, a.Hash, a.Steps, b.Hash, b.Steps)
		}
	}
}

// TestReplay shows one seed: `make sim SEED=…`.
func TestReplay(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("no -seed given")
	}
	r := Run(Options{Seed: *seedFlag, Mutation: Mutation(*mutationFlag), Trace: os.Stdout})
	fmt.Printf("seed %d: trace %016x, %d events, %d batches, %s of cluster time\n", r.Seed, r.Hash, r.Steps, r.Batches, r.Virtual)
	if r.Failure != nil {
		t.Fatal(r.Failure)
	}
}

// TestSoak runs fresh seeds for as long as it is told: `make soak`.
func TestSoak(t *testing.T) {
	if *soakFlag == 0 {
		t.Skip("no -soak given")
	}
	began := time.Now()
	first := uint64(began.UnixNano())
	var n atomic.Int64
	steps, virtual := runSeeds(t, func(uint64) bool {
		goOn := time.Since(began) < *soakFlag
		if goOn {
			n.Add(1)
		}
		return goOn
	}, first)
	t.Logf("%d seeds from %d on, %d events, %s of cluster time", n.Load(), first, steps, virtual.Round(time.Hour))
}
