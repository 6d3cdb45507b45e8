package raftlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestProposeAndRestart(t *testing.T) {
	cfg := testConfig(t)
	m := start(t, cfg)
	began := time.Now()
	m.lead(t)
	if d := time.Since(began); d > 150*time.Millisecond {
		t.Errorf("a member that is alone took %v to lead", d)
	}
	for i := range 100 {
		index, result, err := m.Propose(t.Context(), fmt.Appendf(nil, "p%d", i))
		if err != nil {
			t.Fatal(err)
		}
		if result != i+1 {
			t.Fatalf("result %v of proposal %d", result, i)
		}
		if m.AppliedIndex() < index {
			t.Fatalf("acknowledged at %d, applied to %d", index, m.AppliedIndex())
		}
	}
	n, sum := m.machine.digest()
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}

	m = start(t, cfg)
	l := m.lead(t)
	if l.Index == 0 || l.Term == 0 {
		t.Errorf("leadership gained with %+v", l)
	}
	if n2, sum2 := m.machine.digest(); n2 != n || sum2 != sum {
		t.Errorf("after a restart %d proposals with digest %x, before %d with %x", n2, sum2, n, sum)
	}
	index, err := m.ReadIndex(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(t.Context(), index); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshotAndRestart(t *testing.T) {
	cfg := testConfig(t)
	cfg.TrailingLogs = 5
	m := start(t, cfg)
	m.lead(t)
	for i := range 50 {
		m.propose(t, fmt.Sprintf("a%d", i))
	}
	if err := m.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	if first, err := m.store.FirstIndex(); err != nil || first < 40 {
		t.Errorf("after a snapshot the log begins at %d, %v", first, err)
	}
	for i := range 50 {
		m.propose(t, fmt.Sprintf("b%d", i))
	}
	n, sum := m.machine.digest()
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m = start(t, cfg)
	m.lead(t)
	if n2, sum2 := m.machine.digest(); n2 != n || sum2 != sum {
		t.Errorf("%d proposals with digest %x, want %d with %x", n2, sum2, n, sum)
	}
}

func TestNothingReadableOnDisk(t *testing.T) {
	cfg := testConfig(t)
	m := start(t, cfg)
	m.lead(t)
	const secret = "a secret that must not be read from the disk"
	m.propose(t, secret)
	if err := m.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.propose(t, secret+" again")
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), "secret that") {
			t.Errorf("%s holds a proposal in clear", path)
		}
		return err
	})
	if err != nil || files < 5 {
		t.Fatalf("looked at %d files: %v", files, err)
	}
}

func TestWrongKeyOrNode(t *testing.T) {
	cfg := testConfig(t)
	m := start(t, cfg)
	m.lead(t)
	m.propose(t, "x")
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	wrong := cfg
	wrong.Key[0]++
	if _, err := Open(wrong, newCounts()); !errors.Is(err, ErrWrongKey) {
		t.Errorf("wrong key: %v", err)
	}
	wrong = cfg
	wrong.NodeID = "n2"
	if _, err := Open(wrong, newCounts()); err == nil || !strings.Contains(err.Error(), "belongs to node n1") {
		t.Errorf("wrong node: %v", err)
	}
	// Neither harmed it.
	m = start(t, cfg)
	m.lead(t)
	if !m.machine.has("x") {
		t.Error("proposal is gone")
	}
}

func TestDirectoryInUse(t *testing.T) {
	cfg := testConfig(t)
	cfg.DataRoot = "/var/lib/skep"
	m := start(t, cfg)
	m.lead(t)
	_, err := Open(cfg, newCounts())
	if e := asErr[*InUseError](t, err); e.PID != os.Getpid() {
		t.Errorf("pid %d, want %d", e.PID, os.Getpid())
	}
	want := fmt.Sprintf("data root /var/lib/skep is in use by another skep daemon (pid %d)", os.Getpid())
	if err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestLimitsAndStates(t *testing.T) {
	cfg := testConfig(t)
	cfg.MaxProposal = 1000
	m, err := Open(cfg, newCounts())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Propose(t.Context(), []byte("x")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before Run: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Run after Close: %v", err)
	}

	r := start(t, cfg)
	r.lead(t)
	if _, _, err := r.Propose(t.Context(), make([]byte, 1001)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := r.Propose(ctx, []byte("late")); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("cancelled before: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Propose(t.Context(), []byte("x")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after Run: %v", err)
	}
	if r.machine.has("late") {
		t.Error("a proposal that was refused was applied")
	}
}
