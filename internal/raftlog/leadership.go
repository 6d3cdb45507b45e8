package raftlog

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/raft"
)

// Leadership is a change of this member's part.
type Leadership struct {
	Leader bool
	// Term is the term of a gain.
	Term uint64
	// Index is the last entry that was applied when leadership was gained. All
	// entries of former leaders are in: the machine is as new as any was.
	Index uint64
}

// leading holds whether this member leads and has applied all that came before.
type leading struct {
	changes chan Leadership // the latest one that was not received yet

	mu    sync.Mutex
	now   Leadership
	moved chan struct{} // closed when now changes
}

func (l *leading) init() {
	l.changes = make(chan Leadership, 1)
	l.moved = make(chan struct{})
}

// set is called from one goroutine.
func (l *leading) set(v Leadership) {
	l.mu.Lock()
	same := !v.Leader && !l.now.Leader
	l.now = v
	close(l.moved)
	l.moved = make(chan struct{})
	l.mu.Unlock()
	if same {
		return
	}
	select {
	case <-l.changes:
	default:
	}
	l.changes <- v
}

var errNotLeading = errors.New("not leading")

// wait returns nil when this member leads, and an error when the next thing that
// happens is that it does not.
func (l *leading) wait(ctx context.Context) error {
	l.mu.Lock()
	now, moved := l.now, l.moved
	l.mu.Unlock()
	if now.Leader {
		return nil
	}
	select {
	case <-moved:
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now.Leader {
		return nil
	}
	return errNotLeading
}

// Leadership tells of gains and losses: a gain once the machine has caught up with
// all that former leaders committed, a loss at once. Only the latest is kept for a
// slow reader, so two gains with different terms may follow each other. One reader.
func (l *Log) Leadership() <-chan Leadership { return l.lead.changes }

// watchLeadership turns raft's notes into Leadership.
func (l *Log) watchLeadership(ctx context.Context, r *raft.Raft) {
	defer l.lead.set(Leadership{})
	for {
		select {
		case <-ctx.Done():
			return
		case gained := <-l.notify:
			if !gained {
				l.lead.set(Leadership{})
				continue
			}
			term := r.CurrentTerm()
			if !l.catchUp(ctx, r) {
				l.lead.set(Leadership{})
				continue
			}
			l.lead.set(Leadership{Leader: true, Term: term, Index: l.AppliedIndex()})
		}
	}
}

// catchUp waits until the machine has seen everything that was in the log.
func (l *Log) catchUp(ctx context.Context, r *raft.Raft) bool {
	done := make(chan error, 1)
	l.future(func() raft.Future { return r.Barrier(0) }, func(err error) { done <- err })
	select {
	case err := <-done:
		return err == nil
	case <-ctx.Done():
		return false
	case <-l.failed:
		return false
	}
}

// Leader is the node ID of the leader as far as this member knows; empty for none.
func (l *Log) Leader() string {
	r, err := l.running()
	if err != nil {
		return ""
	}
	_, id := r.LeaderWithID()
	return string(id)
}

// Ready is closed when the machine was restored from disk and Run takes part.
func (l *Log) Ready() <-chan struct{} { return l.ready }
