package manager

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/raftlog"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
)

// Machine fits a replica to the log.
type Machine struct{ *replica.Replica }

// Freeze is the state as it is now.
func (m Machine) Freeze() raftlog.Frozen { return m.Snapshot() }

var _ raftlog.Machine = Machine{}

// Log is what proposals go into; *raftlog.Log is one.
type Log interface {
	Propose(ctx context.Context, data []byte) (index uint64, result any, err error)
}

// Proposer puts batches into the log and sorts its errors into kinds. Safe for concurrent use.
type Proposer struct{ Log Log }

// proposeAgain is how long to wait before a batch whose outcome is unknown is proposed once more.
const proposeAgain = 50 * time.Millisecond

// Propose returns what became of a batch. A batch without an ID gets one, so that it can be
// proposed again when its outcome stays unknown: it is applied once all the same. Errors: Unavailable
// without a leader, Exhausted when the disk is too full, Invalid when it is too large, or the
// context's.
func (p *Proposer) Propose(ctx context.Context, b *model.Batch) (*model.Outcome, error) {
	if b.ID == ([16]byte{}) {
		if _, err := rand.Read(b.ID[:]); err != nil {
			return nil, fmt.Errorf("propose: %w", err)
		}
	}
	if b.Time == 0 {
		b.Time = model.Time(time.Now().UnixNano())
	}
	data, err := state.EncodeBatch(b)
	if err != nil {
		return nil, err
	}
	for {
		_, result, err := p.Log.Propose(ctx, data)
		if err == nil {
			return outcome(result)
		}
		if !errors.Is(err, raftlog.ErrUnknownOutcome) || ctx.Err() != nil {
			return nil, sortError(err)
		}
		select {
		case <-time.After(proposeAgain):
		case <-ctx.Done():
			return nil, sortError(err)
		}
	}
}

func outcome(result any) (*model.Outcome, error) {
	switch r := result.(type) {
	case *model.Outcome:
		return r, nil
	case error:
		return nil, r
	}
	return nil, fmt.Errorf("propose: the state answered %T", result)
}

func sortError(err error) error {
	var notLeader *raftlog.NotLeaderError
	var full *raftlog.NoSpaceError
	switch {
	case errors.As(err, &full):
		return model.Errorf(model.Exhausted, "%v", full)
	case errors.As(err, &notLeader), errors.Is(err, raftlog.ErrNotRunning), errors.Is(err, raftlog.ErrUnknownOutcome):
		return model.Errorf(model.Unavailable, "rpc error: code = DeadlineExceeded desc = the swarm has no leader at the moment. It's possible that too few managers are online. Make sure more than half of the managers are online.")
	case errors.Is(err, raftlog.ErrTooLarge):
		return model.Invalidf("%v", err)
	}
	return err
}
