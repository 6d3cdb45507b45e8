// Package replica is this manager's copy of the state: the machine under the log, and the
// place where everyone else looks.
//
// The log applies entries to it one after another; whoever wants to know (the leader's loop,
// node sessions, the API) reads the current snapshot without locks and waits on a
// Watch for what changed. It must not know what the log is made of, nor who reads.
package replica

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Applied is one step of the state.
type Applied struct {
	Before, After *state.Snapshot
	// Outcome says what was touched. It is nil when the whole state was replaced by a
	// snapshot, or when a slow watcher missed steps: look at everything then.
	Outcome *model.Outcome
}

// Replica holds the current snapshot. Safe for concurrent use.
type Replica struct {
	current atomic.Pointer[state.Snapshot]

	mu      sync.Mutex
	watches map[*Watch]struct{}
	grew    chan struct{} // closed and replaced when the index rises
}

// New is a replica of the empty state.
func New() *Replica {
	r := &Replica{watches: map[*Watch]struct{}{}, grew: make(chan struct{})}
	r.current.Store(state.New())
	return r
}

// Snapshot is the state as applied so far.
func (r *Replica) Snapshot() *state.Snapshot { return r.current.Load() }

// Apply takes one entry of the log. Its result is a *model.Outcome, or an error when the entry
// cannot be read, which changes nothing on any member alike.
func (r *Replica) Apply(index uint64, data []byte) any {
	b, err := state.DecodeBatch(data)
	if err != nil {
		return fmt.Errorf("log entry %d: %w", index, err)
	}
	before := r.current.Load()
	after, out := before.Apply(index, b)
	r.publish(Applied{before, after, out})
	return out
}

// Restore replaces the state by an encoded snapshot.
func (r *Replica) Restore(in io.Reader) error {
	s, err := state.Decode(in)
	if err != nil {
		return err
	}
	r.publish(Applied{Before: r.current.Load(), After: s})
	return nil
}

func (r *Replica) publish(a Applied) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current.Store(a.After)
	close(r.grew)
	r.grew = make(chan struct{})
	for w := range r.watches {
		w.push(a)
	}
}

// WaitIndex waits until the entry at index has been applied.
func (r *Replica) WaitIndex(ctx context.Context, index uint64) (*state.Snapshot, error) {
	for {
		r.mu.Lock()
		s, grew := r.current.Load(), r.grew
		r.mu.Unlock()
		if s.Index() >= index {
			return s, nil
		}
		select {
		case <-grew:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for log index %d (at %d): %w", index, s.Index(), context.Cause(ctx))
		}
	}
}

// maxPending is how many steps a watcher may be behind before it is told to look at everything.
const maxPending = 1024

// Watch is one reader's queue of steps, in order.
type Watch struct {
	r     *Replica
	mu    sync.Mutex
	queue []Applied
	ready chan struct{} // holds a token while the queue is not empty
}

// Watch begins with the next step; the snapshot is the state before it. Close it when done.
func (r *Replica) Watch() (*state.Snapshot, *Watch) {
	w := &Watch{r: r, ready: make(chan struct{}, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watches[w] = struct{}{}
	return r.current.Load(), w
}

// Close ends the watch.
func (w *Watch) Close() {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	delete(w.r.watches, w)
}

// Ready can be received from when Take has something to give.
func (w *Watch) Ready() <-chan struct{} { return w.ready }

// Take returns all steps since the last call, oldest first. It does not block.
func (w *Watch) Take() []Applied {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queue
	w.queue = nil
	return q
}

// Next waits for steps and takes them.
func (w *Watch) Next(ctx context.Context) ([]Applied, error) {
	for {
		select {
		case <-w.ready:
			if q := w.Take(); len(q) > 0 {
				return q, nil
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (w *Watch) push(a Applied) {
	w.mu.Lock()
	if len(w.queue) >= maxPending {
		w.queue = append(w.queue[:0:0], Applied{Before: w.queue[0].Before, After: a.After})
	} else {
		w.queue = append(w.queue, a)
	}
	w.mu.Unlock()
	select {
	case w.ready <- struct{}{}:
	default:
	}
}
