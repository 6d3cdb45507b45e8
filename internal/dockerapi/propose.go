package dockerapi

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// maxAttempts bounds how often a write is computed again because others wrote meanwhile.
const maxAttempts = 8

// plan computes one transaction from a snapshot. It is called again with a newer one when the
// transaction came too late.
type plan func(*state.Snapshot) (model.Txn, error)

// write proposes what p plans and returns the outcome of the attempt that was accepted.
func (s *Server) write(ctx context.Context, reason string, p plan) (*model.Outcome, error) {
	var last error
	for range maxAttempts {
		snap, err := s.state(ctx)
		if err != nil {
			return nil, err
		}
		txn, err := p(snap)
		if err != nil {
			return nil, err
		}
		out, err := s.propose(ctx, reason, txn)
		if err == nil {
			return out, nil
		}
		// Someone else took the number, the name or the version: the next plan knows whom to blame.
		if kind := model.KindOf(err); kind != model.Stale && kind != model.Conflict {
			return nil, err
		}
		last = err
	}
	return nil, model.Errorf(unavailable, "too many writes at once: %v: please try again", last)
}

func (s *Server) propose(ctx context.Context, reason string, txn model.Txn) (*model.Outcome, error) {
	b := &model.Batch{Actor: "api", Reason: reason, Time: model.Time(s.now().UnixNano()), Txns: []model.Txn{txn}}
	if _, err := io.ReadFull(s.rand, b.ID[:]); err != nil {
		return nil, fmt.Errorf("make a proposal's ID: %w", err)
	}
	out, err := s.backend.Propose(ctx, b)
	if err != nil {
		return nil, err
	}
	if err := out.Results[0]; err != nil {
		return nil, rpcError(err)
	}
	return out, nil
}

// readVersion reads ?version=, the version that an update was computed from.
func readVersion(r *request, kind string) (uint64, error) {
	text := r.query("version")
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, model.Invalidf("invalid %s version '%s': it must be the Version.Index of the %s as it was read", kind, text, kind)
	}
	return v, nil
}
