package raftlog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// Member is one of those that keep the log.
type Member struct {
	ID    string
	Voter bool
}

// Members are those of the latest configuration that this member knows.
func (l *Log) Members() []Member {
	r, err := l.running()
	if err != nil {
		return nil
	}
	var members []Member
	for _, s := range r.GetConfiguration().Configuration().Servers {
		members = append(members, Member{ID: string(s.ID), Voter: s.Suffrage == raft.Voter})
	}
	return members
}

// AddVoter lets a node keep the log and vote. It works on the leader; adding a
// member again changes nothing. A new one is added with AddNonvoter first, and gets its vote when
// it has caught up: members vote for none that they do not know as a voter, so that if
// the leader died while the new one knows only older members, nobody could be elected.
func (l *Log) AddVoter(ctx context.Context, id string) error {
	return l.change(ctx, "add member "+id, func(r *raft.Raft, limit time.Duration) raft.Future {
		return r.AddVoter(raft.ServerID(id), raft.ServerAddress(id), 0, limit)
	})
}

// AddNonvoter lets a node keep the log without a vote, until it has caught up.
func (l *Log) AddNonvoter(ctx context.Context, id string) error {
	return l.change(ctx, "add member "+id, func(r *raft.Raft, limit time.Duration) raft.Future {
		return r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), 0, limit)
	})
}

// RemoveServer ends a node's membership; removing one that is none changes nothing.
func (l *Log) RemoveServer(ctx context.Context, id string) error {
	return l.change(ctx, "remove member "+id, func(r *raft.Raft, limit time.Duration) raft.Future {
		return r.RemoveServer(raft.ServerID(id), 0, limit)
	})
}

// TransferLeadership makes another member the leader: the one that is named, or for
// "" the one that is most up to date.
func (l *Log) TransferLeadership(ctx context.Context, to string) error {
	return l.change(ctx, "transfer leadership", func(r *raft.Raft, _ time.Duration) raft.Future {
		if to == "" {
			return r.LeadershipTransfer()
		}
		return r.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
	})
}

// Compact takes a snapshot now and cuts the log. It is nil when there is nothing new.
func (l *Log) Compact(ctx context.Context) error {
	r, err := l.running()
	if err != nil {
		return err
	}
	err = l.do(ctx, func() raft.Future { return r.Snapshot() })
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("take snapshot: %w", err)
	}
	return nil
}

func (l *Log) change(ctx context.Context, what string, start func(*raft.Raft, time.Duration) raft.Future) error {
	r, err := l.leader()
	if err != nil {
		return err
	}
	var limit time.Duration
	if deadline, ok := ctx.Deadline(); ok {
		limit = max(time.Until(deadline), time.Millisecond)
	}
	err = l.do(ctx, func() raft.Future { return start(r, limit) })
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return &NotLeaderError{Leader: l.Leader()}
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (l *Log) do(ctx context.Context, start func() raft.Future) error {
	done := make(chan error, 1)
	l.future(start, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.failed:
		return l.fatalErr()
	}
}

// Stats are numbers for people and metrics.
type Stats struct {
	State          string // Follower, Candidate, Leader, Shutdown
	Term           uint64
	LastIndex      uint64 // in the log
	CommitIndex    uint64
	AppliedIndex   uint64
	LastContact    time.Time // with the leader; zero for never, or on the leader
	InFlight       int       // proposals that wait for their outcome
	FreeBytes      uint64    // on the data disk
	ChangesRefused bool      // because the disk is below the mark
}

// Stats are the numbers of this moment.
func (l *Log) Stats() Stats {
	s := Stats{State: raft.Shutdown.String(), AppliedIndex: l.AppliedIndex(), InFlight: len(l.slots)}
	if free, err := l.space.free(l.space.dir); err == nil {
		s.FreeBytes, s.ChangesRefused = free, free < l.space.mark
	}
	r, err := l.running()
	if err != nil {
		return s
	}
	s.State, s.Term = r.State().String(), r.CurrentTerm()
	s.LastIndex, s.CommitIndex = r.LastIndex(), r.CommitIndex()
	if r.State() != raft.Leader {
		s.LastContact = r.LastContact()
	}
	return s
}

const (
	transportTimeout = 10 * time.Second
	transportPool    = 3 // idle connections kept to each member
)

// openTransport makes raft's transport over the stream, or for a member without
// one, a transport to nowhere.
func (l *Log) openTransport() (raft.Transport, func() error) {
	switch {
	case l.cfg.transport != nil:
		return l.cfg.transport, func() error { return nil }
	case l.cfg.Stream == nil:
		_, trans := raft.NewInmemTransport(raft.ServerAddress(l.cfg.NodeID))
		return trans, trans.Close
	}
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  &streamLayer{Stream: l.cfg.Stream, node: l.cfg.NodeID},
		MaxPool: transportPool,
		Timeout: transportTimeout,
		Logger:  l.logger,
	})
	return trans, func() error {
		trans.CloseStreams()
		return trans.Close()
	}
}

// streamLayer lets raft dial node IDs.
type streamLayer struct {
	Stream
	node string
}

func (s *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.Stream.Dial(string(address), timeout)
}

func (s *streamLayer) Addr() net.Addr { return nodeAddr(s.node) }

// nodeAddr is a node ID where a network address is asked for.
type nodeAddr string

func (nodeAddr) Network() string  { return "skep" }
func (a nodeAddr) String() string { return string(a) }
