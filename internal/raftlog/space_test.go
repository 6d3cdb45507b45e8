package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMark checks the refusal at the mark, and that writes are accepted again.
func TestMark(t *testing.T) {
	var free atomic.Uint64
	free.Store(1 << 30)
	cfg := testConfig(t)
	cfg.LowSpaceMark = 256 << 20
	cfg.free = func(string) (uint64, error) { return free.Load(), nil }
	m := start(t, cfg)
	term := m.lead(t).Term
	m.propose(t, "before")
	free.Store(100 << 20)
	_, _, err := m.Propose(t.Context(), []byte("refused"))
	asErr[*NoSpaceError](t, err)
	if want := "the data disk has only 100 MB free, and changes need 256 MB"; !strings.Contains(err.Error(), want) {
		t.Errorf("got %q, want %q", err, want)
	}
	// Reads and leadership do not suffer.
	if _, err := m.ReadIndex(t.Context()); err != nil {
		t.Errorf("read on a full disk: %v", err)
	}
	if s := m.Stats(); !s.ChangesRefused || s.State != "Leader" || s.Term != term {
		t.Errorf("stats %+v", s)
	}
	free.Store(1 << 30)
	m.propose(t, "after")
	if m.machine.has("refused") || !m.machine.has("before") || !m.machine.has("after") {
		t.Error("wrong proposals applied")
	}
}

// TestFullDisk fills a real file system to its last byte under a running log, and
// empties it again. It runs in a mount namespace of its own.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	if os.Getenv("SKEP_RAFTLOG_MOUNTNS") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFullDisk$", "-test.v", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), "SKEP_RAFTLOG_MOUNTNS=1")
		cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil || !bytes.Contains(out, []byte("--- PASS: TestFullDisk")) {
			t.Fatalf("in the namespace: %v", err)
		}
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	cfg := crashConfig(filepath.Join(dir, "raft"))
	cfg.SegmentSize = 256 << 10
	cfg.SnapshotThreshold = 1 << 20
	// Without a mark the disk gets full for real: it is the worst that can happen.
	cfg.free = func(string) (uint64, error) { return 1 << 40, nil }

	m := start(t, cfg)
	m.lead(t)
	acked := map[string]bool{}
	n := 0
	fill := func(limit int) error {
		for range limit {
			p := fmt.Sprintf("%d-%s", n, strings.Repeat("x", 10_000))
			n++
			if _, _, err := m.Propose(t.Context(), []byte(p)); err != nil {
				return err
			}
			acked[p] = true
		}
		return nil
	}
	hog := filepath.Join(dir, "hog")
	for round := range 3 {
		if err := fill(30); err != nil {
			t.Fatalf("round %d, with room: %v", round, err)
		}
		takeAll(t, hog)
		err := fill(1000)
		if err == nil {
			t.Fatal("a full disk took 10 MB")
		}
		t.Logf("round %d: full after %d: %v", round, len(acked), err)
		if round == 1 {
			// A restart on the full disk: it must come up, lead and be readable.
			if err := m.stop(); err != nil {
				t.Fatal(err)
			}
			m = start(t, cfg)
			m.lead(t)
			takeAll(t, hog)
			if _, err := m.ReadIndex(t.Context()); err != nil {
				t.Fatalf("read on a full disk: %v", err)
			}
		}
		if err := os.Remove(hog); err != nil {
			t.Fatal(err)
		}
		// The same process accepts writes again.
		eventually(t, "writes are accepted again", func() bool { return fill(1) == nil })
		if err := m.Compact(t.Context()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	for restart := range 2 {
		for p := range acked {
			if !m.machine.has(p) {
				t.Fatalf("restart %d: %.10s was acknowledged and is gone", restart, p)
			}
		}
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m = start(t, cfg)
		m.lead(t)
	}
	if m.machine.Dups > 0 {
		t.Errorf("%d applied twice", m.machine.Dups)
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
}

// takeAll fills the disk with one file, to the last byte.
func takeAll(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for len(block) > 0 {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
