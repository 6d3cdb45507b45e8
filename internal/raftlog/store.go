package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

// store is raft's LogStore and StableStore: the write-ahead log with its records
// encrypted and the disk's free space watched. Safe for concurrent use.
type store struct {
	file   *walFile
	sealer *sealer // nil: not encrypted
	space  *space
	// fatal is called, once or more, with what makes this member unable to go on.
	fatal func(error)
	done  <-chan struct{} // closed when the log stops
	// written counts the bytes appended, as sealed.
	written atomic.Uint64
	bufs    sync.Pool

	mu    sync.Mutex
	quiet map[uint64]struct{} // entries of raft's own, which never reach the machine
	live  bool                // raft runs: errors go to fatal
}

var (
	_ raft.LogStore          = (*store)(nil)
	_ raft.StableStore       = (*store)(nil)
	_ raft.MonotonicLogStore = (*store)(nil)
)

// maxQuiet bounds the remembered quiet entries. There is one for each election, and
// only those behind the last proposal matter.
const maxQuiet = 1024

// IsMonotonic tells raft to leave no holes, which the write-ahead log cannot hold.
func (s *store) IsMonotonic() bool { return true }

func (s *store) FirstIndex() (index uint64, err error) {
	err = s.file.read(func(w *wal.WAL) error { index, err = w.FirstIndex(); return err })
	return index, err
}

func (s *store) LastIndex() (index uint64, err error) {
	err = s.file.read(func(w *wal.WAL) error { index, err = w.LastIndex(); return err })
	return index, err
}

// GetLog waits, while raft runs, for a log that a full disk keeps closed: raft
// panics when it cannot read what it must apply.
func (s *store) GetLog(index uint64, log *raft.Log) error {
	var err error
	s.patiently(func() error {
		err = s.file.read(func(w *wal.WAL) error { return w.GetLog(index, log) })
		return err
	})
	if errors.Is(err, wal.ErrNotFound) {
		return raft.ErrLogNotFound
	}
	if err == nil {
		err = s.openRecord(index, log)
	} else if errors.Is(err, wal.ErrCorrupt) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err != nil {
		err = fmt.Errorf("log entry %d: %w", index, err)
		if errors.Is(err, ErrCorrupt) {
			s.fail(err)
		}
		return err
	}
	s.note(log)
	return nil
}

func (s *store) openRecord(index uint64, log *raft.Log) error {
	if log.Index != index {
		return fmt.Errorf("%w: it says that it is entry %d", ErrCorrupt, log.Index)
	}
	if s.sealer == nil {
		return nil
	}
	data, err := s.sealer.open(log.Data, recordContext(log))
	if err != nil {
		return err
	}
	log.Data = data
	return nil
}

// fail ends this member in order. Raft panics when it cannot read an entry that it
// must apply; a goroutine of its that ends instead leaves the rest of the daemon the
// time to stop, and Run returns the error.
func (s *store) fail(err error) {
	if !s.isLive() {
		return // Run reports it
	}
	s.fatal(err)
	runtime.Goexit()
}

func (s *store) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

func (s *store) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	// Raft's own entries are few and small, and without them there is no leader and
	// so no reads: they may use the disk's last bytes.
	if hasCommand(logs) {
		if err := s.space.admitEntry(); err != nil {
			return err
		}
	}
	buf := s.takeBuf()
	defer func() { s.giveBuf(buf) }()
	sealed, buf, err := s.seal(logs, buf)
	if err != nil {
		return err
	}
	if err := s.file.storeLogs(sealed); err != nil {
		return s.writeFailed(fmt.Errorf("append to log: %w", err))
	}
	for i, l := range logs {
		s.written.Add(uint64(len(sealed[i].Data)))
		s.note(l)
	}
	return nil
}

// writeFailed sorts a failed write: a full disk passes, anything else means that
// what is on the disk is no longer known, so this member must not go on.
func (s *store) writeFailed(err error) error {
	if !isFull(err) && !errors.Is(err, ErrNotRunning) && !errors.Is(err, wal.ErrSealed) {
		s.fatal(err)
	}
	return err
}

func hasCommand(logs []*raft.Log) bool {
	for _, l := range logs {
		if l.Type == raft.LogCommand {
			return true
		}
	}
	return false
}

// maxBuf bounds the memory that is kept for encrypting.
const maxBuf = 2 << 20

func (s *store) takeBuf() []byte {
	if b, ok := s.bufs.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return nil
}

func (s *store) giveBuf(buf []byte) {
	if cap(buf) > 0 && cap(buf) <= maxBuf {
		s.bufs.Put(&buf)
	}
}

// seal makes encrypted copies of the entries in buf, which it may replace: raft still
// uses what it handed over.
func (s *store) seal(logs []*raft.Log, buf []byte) (sealed []*raft.Log, used []byte, err error) {
	size := 0
	for _, l := range logs {
		if len(l.Extensions) > 0 {
			return nil, buf, errors.New("append to log: entries with extensions cannot be stored")
		}
		size += len(l.Data) + recordOverhead
	}
	if s.sealer == nil {
		return logs, buf, nil
	}
	buf = slices.Grow(buf, size) // never moves below: the copies point into it
	copies := make([]raft.Log, len(logs))
	sealed = make([]*raft.Log, len(logs))
	for i, l := range logs {
		copies[i] = *l
		start := len(buf)
		buf = s.sealer.seal(buf, l.Data, recordContext(l))
		copies[i].Data = buf[start:len(buf):len(buf)]
		sealed[i] = &copies[i]
	}
	return sealed, buf, nil
}

// recordContext is what a record is bound to besides its key: its place in the log.
func recordContext(l *raft.Log) []byte {
	b := make([]byte, 0, 17)
	b = binary.BigEndian.AppendUint64(b, l.Index)
	b = binary.BigEndian.AppendUint64(b, l.Term)
	return append(b, byte(l.Type))
}

func (s *store) DeleteRange(minIndex, maxIndex uint64) error {
	err := s.file.write(func(w *wal.WAL) error { return w.DeleteRange(minIndex, maxIndex) }, noUndo)
	if err != nil {
		return s.writeFailed(fmt.Errorf("cut log: %w", err))
	}
	return nil
}

func (s *store) note(l *raft.Log) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch l.Type {
	case raft.LogCommand, raft.LogConfiguration:
		delete(s.quiet, l.Index)
	default:
		if len(s.quiet) >= maxQuiet {
			oldest := l.Index
			for i := range s.quiet {
				oldest = min(oldest, i)
			}
			delete(s.quiet, oldest)
		}
		s.quiet[l.Index] = struct{}{}
	}
}

// lastApplicable is the last entry up to index that reaches the machine.
func (s *store) lastApplicable(index uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if _, ok := s.quiet[index]; !ok {
			return index
		}
		index--
	}
}

func (s *store) setLive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = true
}

func (s *store) isLive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live
}

// Get returns nil without an error when there is no such key, as raft expects.
func (s *store) Get(key []byte) (val []byte, err error) {
	err = s.file.read(func(w *wal.WAL) error { val, err = w.Get(key); return err })
	return val, err
}

func (s *store) GetUint64(key []byte) (uint64, error) {
	val, err := s.Get(key)
	if err != nil || len(val) == 0 {
		return 0, err
	}
	if len(val) != 8 {
		return 0, fmt.Errorf("%w: %q is not a number", ErrCorrupt, key)
	}
	return binary.LittleEndian.Uint64(val), nil
}

func (s *store) SetUint64(key []byte, val uint64) error {
	return s.Set(key, binary.LittleEndian.AppendUint64(nil, val))
}

// Set stores a value of raft's own: its term or vote. Raft panics when it cannot
// save its term, so while it runs, Set waits until there is room again: a member
// that cannot vote is as good as absent, and the others go on without it.
func (s *store) Set(key, val []byte) error {
	var err error
	s.patiently(func() error {
		err = s.file.write(func(w *wal.WAL) error { return w.Set(key, val) }, noUndo)
		return err
	})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("save %q: %w", key, err)
	if s.isLive() {
		s.fatal(err)
		runtime.Goexit() // see fail
	}
	return err
}

// patiently tries until the disk is not what stands in the way. Before raft runs it
// tries once. When the log stops meanwhile, the goroutine ends: raft must neither
// take the thing for done nor panic.
func (s *store) patiently(try func() error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		if err := try(); !isFull(err) || !s.isLive() {
			return
		}
		select {
		case <-s.done:
			runtime.Goexit()
		case <-time.After(pause):
		}
	}
}
