package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// Machine is what the log's proposals change. Apply and Restore are called from one
// goroutine at a time, in log order; Freeze between them.
type Machine interface {
	// Apply applies a proposal. It must be deterministic: every member gets the same
	// proposals at the same indexes. The result goes to whoever proposed, if that was
	// this member. data must not be changed.
	Apply(index uint64, data []byte) (result any)
	// Freeze is the state as it is now. It must be quick and must not change while
	// later proposals are applied: it is encoded meanwhile.
	Freeze() Frozen
	// Restore replaces the state with an encoded one, or leaves it alone and returns
	// an error.
	Restore(r io.Reader) error
}

// Frozen is a state that does not change.
type Frozen interface {
	Encode(w io.Writer) error
}

// fsm is raft's state machine over a Machine.
type fsm struct {
	machine Machine

	mu      sync.Mutex
	applied uint64        // last entry that the machine has seen
	changed chan struct{} // closed when applied moves
}

var _ raft.BatchingFSM = (*fsm)(nil)

func newFSM(m Machine) *fsm { return &fsm{machine: m, changed: make(chan struct{})} }

func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	results := make([]any, len(logs))
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			results[i] = f.machine.Apply(l.Index, l.Data)
		}
	}
	if len(logs) > 0 {
		f.advance(logs[len(logs)-1].Index)
	}
	return results
}

func (f *fsm) advance(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = index
	close(f.changed)
	f.changed = make(chan struct{})
}

// at is the applied index and a channel that is closed when it moves.
func (f *fsm) at() (uint64, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied, f.changed
}

func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	index, _ := f.at()
	return &fsmSnapshot{index: index, state: f.machine.Freeze()}, nil
}

// Restore reads what fsmSnapshot wrote, to the end: only there is it certain that
// nothing was cut off.
func (f *fsm) Restore(r io.ReadCloser) error {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	if err := f.machine.Restore(r); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	f.advance(binary.BigEndian.Uint64(head[:]))
	return nil
}

type fsmSnapshot struct {
	index uint64
	state Frozen
}

func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	err := s.write(sink)
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s *fsmSnapshot) write(w io.Writer) error {
	if _, err := w.Write(binary.BigEndian.AppendUint64(nil, s.index)); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if err := s.state.Encode(w); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

func (s *fsmSnapshot) Release() {}
