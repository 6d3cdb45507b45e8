package raftlog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sink is a machine that costs nothing.
type sink struct{}

func (sink) Apply(uint64, []byte) any  { return nil }
func (sink) Freeze() Frozen            { return sink{} }
func (sink) Encode(w io.Writer) error  { return nil }
func (sink) Restore(r io.Reader) error { return nil }

func benchLog(b *testing.B, change func(*Config)) *Log {
	cfg := Config{Dir: b.TempDir(), NodeID: "n1", Bootstrap: true, LowSpaceMark: 1 << 20}
	if change != nil {
		change(&cfg)
	}
	l, err := Open(cfg, sink{})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	for !(<-l.Leadership()).Leader {
	}
	return l
}

func cpuTime() time.Duration {
	var ru unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// run proposes b.N times from a number of writers and reports latencies and CPU.
func run(b *testing.B, l *Log, writers int, data []byte) {
	took := make([]time.Duration, b.N)
	next := make(chan int, b.N)
	for i := range b.N {
		next <- i
	}
	close(next)
	b.ResetTimer()
	began, cpu := time.Now(), cpuTime()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := range next {
				t := time.Now()
				if _, _, err := l.Propose(context.Background(), bytes.Clone(data)); err != nil {
					b.Error(err)
					return
				}
				took[i] = time.Since(t)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "proposals/s")
	b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(b.N), "cpu-µs/op")
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkPropose: one object is 200 bytes, a batch is 1,000 of them.
func BenchmarkPropose(b *testing.B) {
	for _, c := range []struct{ writers, size int }{{1, 200}, {64, 200}, {1, 200_000}, {8, 200_000}} {
		for _, plain := range []bool{false, true} {
			b.Run(fmt.Sprintf("writers=%d/bytes=%d/plain=%v", c.writers, c.size, plain), func(b *testing.B) {
				l := benchLog(b, func(cfg *Config) { cfg.noEncrypt = plain })
				run(b, l, c.writers, bytes.Repeat([]byte{7}, c.size))
			})
		}
	}
}

// BenchmarkReadIndex: linearizable reads by 64 readers.
func BenchmarkReadIndex(b *testing.B) {
	l := benchLog(b, nil)
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := l.ReadIndex(context.Background()); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkSeal is the encryption of one record alone, there and back.
func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{200, 200_000} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			s, err := newSealer([32]byte{1})
			if err != nil {
				b.Fatal(err)
			}
			data, buf := make([]byte, size), make([]byte, 0, size+recordOverhead)
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := s.open(s.seal(buf, data, nil), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSnapshotStream encrypts and decrypts 64 MB.
func BenchmarkSnapshotStream(b *testing.B) {
	plain := make([]byte, 64<<20)
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		var out bytes.Buffer
		w, err := newSealWriter(&out, [32]byte{}, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(plain); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		r, err := newOpenReader(&out, [32]byte{}, nil)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); err != nil || n != int64(len(plain)) {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkEncryptionOverhead compares an encrypted log with a plain one in the same
// run, in turns, with batches of 1,000 objects from 8 writers.
func BenchmarkEncryptionOverhead(b *testing.B) {
	plain := benchLog(b, func(cfg *Config) { cfg.noEncrypt = true })
	sealed := benchLog(b, nil)
	data := bytes.Repeat([]byte{7}, 200_000)
	burst := func(l *Log) (wall, cpu time.Duration) {
		began, used := time.Now(), cpuTime()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 25 {
					if _, _, err := l.Propose(context.Background(), bytes.Clone(data)); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
		return time.Since(began), cpuTime() - used
	}
	var wall, cpu [2]time.Duration
	for b.Loop() {
		for i, l := range []*Log{plain, sealed} {
			w, c := burst(l)
			wall[i], cpu[i] = wall[i]+w, cpu[i]+c
		}
	}
	b.ReportMetric(float64(wall[1])/float64(wall[0]), "time-ratio")
	b.ReportMetric(float64(cpu[1])/float64(cpu[0]), "cpu-ratio")
	b.ReportMetric(float64(b.N)*200*1000/wall[1].Seconds(), "objects/s")
}
