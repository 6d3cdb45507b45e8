package raftlog

import (
	"context"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"io"
	"maps"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if code, ok := runChild(); ok {
		exit(code)
	}
	goleak.VerifyTestMain(m)
}

// counts is a machine that remembers how often each proposal was applied, and where.
type counts struct {
	mu   sync.Mutex
	Seen map[string]uint64 // proposal → index
	Sum  uint64            // order-dependent digest
	Dups int
}

func newCounts() *counts { return &counts{Seen: map[string]uint64{}} }

func (c *counts) Apply(index uint64, data []byte) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.Seen[string(data)]; ok {
		c.Dups++
	}
	c.Seen[string(data)] = index
	for _, b := range binary.BigEndian.AppendUint64(data[:len(data):len(data)], index) {
		c.Sum = c.Sum*1099511628211 + uint64(b)
	}
	return len(c.Seen)
}

func (c *counts) Freeze() Frozen {
	c.mu.Lock()
	defer c.mu.Unlock()
	return frozenCounts{Seen: maps.Clone(c.Seen), Sum: c.Sum}
}

type frozenCounts struct {
	Seen map[string]uint64
	Sum  uint64
}

func (f frozenCounts) Encode(w io.Writer) error { return gob.NewEncoder(w).Encode(f) }

func (c *counts) Restore(r io.Reader) error {
	var f frozenCounts
	if err := gob.NewDecoder(r).Decode(&f); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Seen, c.Sum = f.Seen, f.Sum
	if c.Seen == nil {
		c.Seen = map[string]uint64{}
	}
	return nil
}

func (c *counts) has(s string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.Seen[s]
	return ok
}

func (c *counts) digest() (int, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.Seen), c.Sum
}

// member is a log that runs in a test.
type member struct {
	*Log
	machine *counts
	cancel  context.CancelFunc
	done    chan error
	once    sync.Once
	err     error
}

func start(t testing.TB, cfg Config) *member {
	t.Helper()
	m, err := tryStart(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.stop() })
	return m
}

func tryStart(cfg Config) (*member, error) {
	m := &member{machine: newCounts(), done: make(chan error, 1)}
	var err error
	if m.Log, err = Open(cfg, m.machine); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	go func() { m.done <- m.Run(ctx) }()
	return m, nil
}

// stop ends the member and returns what Run returned.
func (m *member) stop() error {
	m.once.Do(func() {
		m.cancel()
		m.err = <-m.done
	})
	return m.err
}

func (m *member) lead(t testing.TB) Leadership {
	t.Helper()
	for {
		select {
		case l := <-m.Leadership():
			if l.Leader {
				return l
			}
		case err := <-m.done:
			t.Fatalf("Run ended: %v", err)
		case <-time.After(20 * time.Second):
			t.Fatal("not leading after 20 s")
		}
	}
}

func (m *member) propose(t testing.TB, s string) uint64 {
	t.Helper()
	index, _, err := m.Propose(t.Context(), []byte(s))
	if err != nil {
		t.Fatalf("propose %q: %v", s, err)
	}
	return index
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func testConfig(t testing.TB) Config {
	return Config{Dir: t.TempDir(), NodeID: "n1", Bootstrap: true, Key: [32]byte{1, 2, 3},
		LowSpaceMark: 1 << 20, ReserveSize: 64 << 10, SegmentSize: 1 << 20, HeartbeatTimeout: 200 * time.Millisecond}
}

func asErr[E error](t testing.TB, err error) E {
	t.Helper()
	var e E
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a %T", err, e)
	}
	return e
}

func isUnknown(err error) bool { return errors.Is(err, ErrUnknownOutcome) }
