package raftlog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"
)

// fullFS is a file system that can be told to be full.
type fullFS struct {
	segmentFS
	full *atomic.Bool
}

func (f fullFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	if f.full.Load() {
		return nil, unix.ENOSPC
	}
	return f.segmentFS.Create(dir, name, size)
}

func (f fullFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	if f.full.Load() {
		return nil, unix.ENOSPC
	}
	return f.segmentFS.OpenWriter(dir, name)
}

// TestWaitForRoom: raft's own writes and its reads wait on a full disk instead of
// making raft panic, and end when the log stops.
func TestWaitForRoom(t *testing.T) {
	cfg, err := testConfig(t).withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	var full atomic.Bool
	stop := make(chan struct{})
	sp := &space{dir: cfg.Dir, mark: 1, free: freeSpace}
	file := &walFile{dir: cfg.Dir, vfs: fullFS{full: &full}, segmentSize: 1 << 20, space: sp, logger: newHCLogger(cfg.Logger, "t")}
	if err := file.open(); err != nil {
		t.Fatal(err)
	}
	sealer, err := newSealer(cfg.Key)
	if err != nil {
		t.Fatal(err)
	}
	s := &store{file: file, sealer: sealer, space: sp, done: stop, quiet: map[uint64]struct{}{}, live: true,
		fatal: func(err error) { t.Errorf("fatal: %v", err) }}
	if err := s.StoreLog(&raft.Log{Index: 1, Term: 1, Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	if err := file.reopen(unix.ENOSPC, noUndo); !isFull(err) {
		t.Fatalf("reopen on a full disk: %v", err)
	}
	results := make(chan error, 2)
	try := func(fn func() error) {
		returned := false
		defer func() {
			if !returned {
				results <- errors.New("ended")
			}
		}()
		err := fn()
		returned = true
		results <- err
	}
	set := func() error { return s.SetUint64([]byte("term"), 7) }
	get := func() error { return s.GetLog(1, new(raft.Log)) }
	for _, fn := range []func() error{set, get} {
		full.Store(true)
		_ = file.reopen(unix.ENOSPC, noUndo)
		go try(fn)
		select {
		case err := <-results:
			t.Fatalf("did not wait for room: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		full.Store(false)
		if err := <-results; err != nil {
			t.Errorf("with room again: %v", err)
		}
	}
	if v, err := s.GetUint64([]byte("term")); err != nil || v != 7 {
		t.Errorf("term %d, %v", v, err)
	}
	full.Store(true)
	_ = file.reopen(unix.ENOSPC, noUndo)
	go try(set)
	go try(get)
	close(stop)
	for range 2 {
		if err := <-results; err == nil || err.Error() != "ended" {
			t.Errorf("when the log stops: %v", err)
		}
	}
	if err := file.close(); err != nil {
		t.Error(err)
	}
}

// TestDamageWhileRunning: a record that goes bad under a running member ends Run
// with the reason, not the process.
func TestDamageWhileRunning(t *testing.T) {
	cfg := testConfig(t)
	m := start(t, cfg)
	m.lead(t)
	index := m.propose(t, strings.Repeat("x", 500))
	files, err := filepath.Glob(filepath.Join(cfg.Dir, "wal", "*.wal"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	at := int64(usedLen(data) - 200)
	if _, err := f.WriteAt([]byte{^data[at]}, at); err != nil {
		t.Fatal(err)
	}
	ended := make(chan bool, 1)
	go func() {
		returned := false
		defer func() { ended <- !returned }()
		err := m.store.GetLog(index, new(raft.Log))
		returned = true
		t.Errorf("read a damaged record: %v", err)
	}()
	if !<-ended {
		t.Error("raft's goroutine would have gone on, and panicked")
	}
	err = <-m.done
	m.done <- err
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "log entry") {
		t.Errorf("Run ended with %v", err)
	}
	if _, _, err := m.Propose(t.Context(), []byte("y")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("propose after that: %v", err)
	}
}

// TestSnapshotBySize: few large entries are cut too, and a snapshot that fails
// leaves nothing behind.
func TestSnapshotBySize(t *testing.T) {
	cfg := testConfig(t)
	cfg.SnapshotBytes, cfg.TrailingLogs, cfg.SegmentSize = 1<<20, 2, 256<<10
	m := start(t, cfg)
	m.lead(t)
	for i := range 12 {
		m.propose(t, string(bytes.Repeat([]byte{byte('a' + i)}, 200_000)))
	}
	eventually(t, "the log is cut", func() bool {
		first, err := m.store.FirstIndex()
		return err == nil && first > 5
	})
	sink, err := m.snaps.Create(1, 99, 9, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Cancel(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*.tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
