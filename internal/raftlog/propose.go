package raftlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Propose puts data into the log and returns its index and what Machine.Apply
// returned for it, on this member, once it is committed and applied. Data belongs to
// the log from then on. When too many proposals are under way it waits for a place.
//
// Errors after which nothing was done: NotLeaderError, NoSpaceError, ErrTooLarge,
// ErrNotRunning, and the context's when it ended before the proposal was handed
// over. After ErrUnknownOutcome the proposal may have been applied, or may be yet;
// it wraps the context's error if that was the reason.
func (l *Log) Propose(ctx context.Context, data []byte) (index uint64, result any, err error) {
	if len(data) > l.cfg.MaxProposal {
		return 0, nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), l.cfg.MaxProposal)
	}
	r, err := l.leader()
	if err != nil {
		return 0, nil, err
	}
	if err := l.space.admit(); err != nil {
		return 0, nil, err
	}
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	case <-l.stop:
		return 0, nil, ErrNotRunning
	}
	if err := ctx.Err(); err != nil {
		<-l.slots
		return 0, nil, err
	}
	return l.await(ctx, l.handOver(ctx, r, data))
}

type outcome struct {
	index  uint64
	result any
	err    error
}

// handOver gives the proposal to raft. The slot is held until raft has answered,
// also when nobody waits for the answer any more.
func (l *Log) handOver(ctx context.Context, r *raft.Raft, data []byte) <-chan outcome {
	var timeout time.Duration // 0: no limit
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(deadline), time.Millisecond)
	}
	done := make(chan outcome, 1)
	l.futures.run(func() {
		defer func() { <-l.slots }()
		f := r.Apply(data, timeout)
		if err := f.Error(); err != nil {
			done <- outcome{err: l.proposalError(err)}
			return
		}
		done <- outcome{index: f.Index(), result: f.Response()}
	})
	return done
}

func (l *Log) await(ctx context.Context, done <-chan outcome) (uint64, any, error) {
	select {
	case o := <-done:
		return o.index, o.result, o.err
	case <-ctx.Done():
	case <-l.failed:
	}
	select {
	case o := <-done:
		return o.index, o.result, o.err
	default:
	}
	cause := ctx.Err()
	if cause == nil {
		cause = l.fatalErr()
	}
	return 0, nil, fmt.Errorf("%w: %w", ErrUnknownOutcome, cause)
}

// proposalError sorts what raft says of a proposal into done-nothing and unknown.
func (l *Log) proposalError(err error) error {
	var full *NoSpaceError
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return &NotLeaderError{Leader: l.Leader()}
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return context.DeadlineExceeded
	case errors.As(err, &full):
		return full
	}
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
}

// running is raft while Run works.
func (l *Log) running() (*raft.Raft, error) {
	if r := l.raft.Load(); r != nil {
		return r, nil
	}
	return nil, ErrNotRunning
}

// leader is raft if this member leads.
func (l *Log) leader() (*raft.Raft, error) {
	r, err := l.running()
	if err != nil {
		return nil, err
	}
	if r.State() != raft.Leader {
		return nil, &NotLeaderError{Leader: l.Leader()}
	}
	return r, nil
}

type readResult struct {
	index uint64
	err   error
}

// ReadIndex is the index that a reader must wait for (with Wait, on any member) to
// see everything that was acknowledged before the call. The leader asks a majority
// whether it still leads; calls that come together share one round.
// The error is NotLeaderError on other members.
func (l *Log) ReadIndex(ctx context.Context) (uint64, error) {
	if _, err := l.leader(); err != nil {
		return 0, err
	}
	answer := make(chan readResult, 1)
	select {
	case l.reads <- answer:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-l.stop:
		return 0, ErrNotRunning
	}
	select {
	case a := <-answer:
		return a.index, a.err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-l.stop:
		return 0, ErrNotRunning
	}
}

// maxReadGroup bounds the reads that share one round.
const maxReadGroup = 1024

// serveReads answers reads: all that wait, with one question to the majority.
func (l *Log) serveReads(ctx context.Context, r *raft.Raft) {
	for {
		var group []chan readResult
		select {
		case <-ctx.Done():
			return
		case first := <-l.reads:
			group = append(group, first)
		}
	gather:
		for len(group) < maxReadGroup {
			select {
			case next := <-l.reads:
				group = append(group, next)
			default:
				break gather
			}
		}
		index, err := l.readIndex(ctx, r)
		for _, answer := range group {
			answer <- readResult{index, err}
		}
	}
}

func (l *Log) readIndex(ctx context.Context, r *raft.Raft) (uint64, error) {
	// A new leader's commit index says little until an entry of its own term is committed.
	if err := l.lead.wait(ctx); err != nil {
		return 0, &NotLeaderError{Leader: l.Leader()}
	}
	index := r.CommitIndex()
	verified := make(chan error, 1)
	l.future(r.VerifyLeader, func(err error) { verified <- err })
	select {
	case err := <-verified:
		if err != nil {
			return 0, &NotLeaderError{Leader: l.Leader()}
		}
	case <-ctx.Done():
		return 0, ErrNotRunning
	}
	return l.store.lastApplicable(index), nil
}

// AppliedIndex is the last entry that the machine has seen.
func (l *Log) AppliedIndex() uint64 {
	index, _ := l.fsm.at()
	return index
}

// Wait returns when the machine has seen the entry at index: one that Propose or
// ReadIndex returned.
func (l *Log) Wait(ctx context.Context, index uint64) error {
	for {
		at, changed := l.fsm.at()
		if at >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-l.stop:
			return ErrNotRunning
		}
	}
}
