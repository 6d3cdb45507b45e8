package raftlog

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// walFile is a write-ahead log that survives a full disk. The library's log stays
// unusable once a write or the change to a new segment has failed, until it is
// opened again; walFile does that, in the same process, and gives up the disk's
// reserve if that is what it takes.
//
// Safe for concurrent use; writes are one at a time.
type walFile struct {
	dir         string
	vfs         types.VFS
	segmentSize int
	space       *space
	logger      *hcLogger

	mu     sync.RWMutex // held for reading while w is used, for writing while it is replaced
	w      *wal.WAL
	broken error // what the last write failed with; w must be opened again before the next
	closed bool
}

func (f *walFile) open() error {
	if err := f.openOnce(); !isFull(err) {
		return err
	}
	f.space.release()
	return f.openOnce()
}

func (f *walFile) openOnce() error {
	if err := repairTail(f.dir, f.vfs, f.segmentSize); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	w, err := wal.Open(f.dir,
		wal.WithSegmentFiler(segment.NewFiler(f.dir, f.vfs)),
		wal.WithSegmentSize(f.segmentSize),
		wal.WithLogger(f.logger))
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	f.w, f.broken = w, nil
	return nil
}

// close ends the use of the log; later calls get ErrNotRunning.
func (f *walFile) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.w == nil {
		return nil
	}
	w := f.w
	f.w = nil
	return w.Close()
}

// read lets fn use the log. A log that could not be opened again after a failed
// write is tried once more.
func (f *walFile) read(fn func(*wal.WAL) error) error {
	if err := f.heal(); err != nil {
		return err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.w == nil {
		return f.unusable()
	}
	return fn(f.w)
}

func (f *walFile) heal() error {
	f.mu.RLock()
	ill := f.w == nil && !f.closed && f.broken != nil
	f.mu.RUnlock()
	if !ill {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.w != nil || f.closed {
		return nil
	}
	return f.open()
}

func (f *walFile) unusable() error {
	if f.closed || f.broken == nil {
		return ErrNotRunning
	}
	return f.broken
}

// write lets fn change the log. A change that fails because the disk is full, or
// was when the log last changed segments, is tried once more after the log was
// opened again; undo is called before, to take back what may be left of the first try.
func (f *walFile) write(fn func(*wal.WAL) error, undo func(*wal.WAL) error) error {
	err := f.tryWrite(fn)
	if err == nil || !retryable(err) {
		return err
	}
	if isFull(err) {
		f.space.release()
	}
	if err := f.reopen(err, undo); err != nil {
		return err
	}
	return f.tryWrite(fn)
}

func (f *walFile) tryWrite(fn func(*wal.WAL) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.w == nil {
		return f.unusable()
	}
	return fn(f.w)
}

// retryable reports whether opening the log again may help: the disk was full, or
// the log was left sealed, or closed, by an earlier failure of that kind.
func retryable(err error) bool {
	return isFull(err) || errors.Is(err, wal.ErrSealed)
}

func (f *walFile) reopen(cause error, undo func(*wal.WAL) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrNotRunning
	}
	if f.w != nil {
		if err := f.w.Close(); err != nil && !isFull(err) {
			f.w, f.broken = nil, cause
			return fmt.Errorf("close log to open it again: %w", err)
		}
		f.w = nil
	}
	f.broken = cause
	if err := f.open(); err != nil {
		return err
	}
	if err := undo(f.w); err != nil {
		return fmt.Errorf("take back a failed write: %w", err)
	}
	return nil
}

// storeLogs appends entries, all or none.
func (f *walFile) storeLogs(logs []*raft.Log) error {
	first := logs[0].Index
	return f.write(
		func(w *wal.WAL) error { return w.StoreLogs(logs) },
		func(w *wal.WAL) error {
			last, err := w.LastIndex()
			if err != nil || last < first {
				return err
			}
			return w.DeleteRange(first, last)
		})
}

func noUndo(*wal.WAL) error { return nil }
