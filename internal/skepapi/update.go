package skepapi

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/state"
)

// actor is who the log says this API is.
const actor = "api"

// maxAttempts bounds how often a write is made again because something else was written meanwhile.
const maxAttempts = 8

// Done is the answer to a write.
type Done struct {
	// Revision is the service's revision in force after it.
	Revision uint64
	// Message says what was done.
	Message string
}

// update handles POST …/update/{action}: pause, resume or cancel the rollout.
func (s *server) update(ctx context.Context, r *http.Request) (any, error) {
	action := r.PathValue("action")
	switch action {
	case "pause", "resume", "cancel":
	default:
		return nil, model.NotFoundf("an update can be paused, resumed or canceled, not %q", action)
	}
	return s.write(ctx, r, action+" update", func(svc *model.Service, now model.Time) (model.Change, error) {
		switch action {
		case "pause":
			return orchestrate.Pause(svc)
		case "resume":
			return orchestrate.Resume(svc, now)
		}
		rev, err := orchestrate.Cancel(svc, now)
		return model.Change{NewRevision: rev}, err
	})
}

// rollback handles POST …/rollback?to=N: back to the revision before, or to any in the history.
func (s *server) rollback(ctx context.Context, r *http.Request) (any, error) {
	text := r.URL.Query().Get("to")
	if text == "" {
		return s.write(ctx, r, "roll back", func(svc *model.Service, now model.Time) (model.Change, error) {
			rev := orchestrate.Rollback(svc, orchestrate.ManualRollback, now)
			if rev == nil {
				return model.Change{}, model.Errorf(model.FailedPrecondition, "service %s does not have a previous spec", svc.Name())
			}
			return model.Change{NewRevision: rev}, nil
		})
	}
	num, err := strconv.ParseUint(text, 10, 64)
	if err != nil || num == 0 {
		return nil, model.Invalidf("%q is not the number of a revision", text)
	}
	return s.write(ctx, r, fmt.Sprintf("roll back to revision %d", num), func(svc *model.Service, now model.Time) (model.Change, error) {
		rev, err := orchestrate.RollbackTo(svc, num, orchestrate.ManualRollback, now)
		return model.Change{NewRevision: rev}, err
	})
}

// write makes one change of a service, guarded by what it was computed from, and makes it again when
// something else was written meanwhile.
func (s *server) write(ctx context.Context, r *http.Request, reason string, plan func(*model.Service, model.Time) (model.Change, error)) (any, error) {
	var last error
	for range maxAttempts {
		snap, svc, err := s.service(ctx, r)
		if err != nil {
			return nil, err
		}
		now := max(snap.Time(), model.Time(time.Now().UnixNano()))
		change, err := plan(svc, now)
		if err != nil {
			return nil, err
		}
		txn := model.Txn{Changes: []model.Change{change}, Guards: []model.Guard{
			{Key: model.ServiceKey(svc.ID), Group: model.GroupSpec, Version: svc.SpecVersion},
			{Key: model.ServiceKey(svc.ID), Group: model.GroupUpdate, Version: svc.UpdateVersion},
		}}
		if svc.Update == nil {
			txn.Guards = txn.Guards[:1] // there is no group yet to be guarded
		}
		err = s.propose(ctx, reason+" of service "+svc.Name(), now, txn)
		if err == nil {
			return s.done(ctx, r, reason)
		}
		if kind := model.KindOf(err); kind != model.Stale && kind != model.Conflict {
			return nil, err
		}
		last = err
	}
	return nil, model.Errorf(model.Unavailable, "too many writes at once: %v: please try again", last)
}

func (s *server) done(ctx context.Context, r *http.Request, reason string) (any, error) {
	_, svc, err := s.service(ctx, r)
	if err != nil {
		return nil, err
	}
	d := Done{Revision: svc.Current().Num, Message: reason}
	if svc.Update != nil {
		d.Message = svc.Update.Message
	}
	return d, nil
}

func (s *server) propose(ctx context.Context, reason string, now model.Time, txn model.Txn) error {
	b := &model.Batch{Actor: actor, Reason: reason, Time: now, Txns: []model.Txn{txn}}
	if _, err := rand.Read(b.ID[:]); err != nil {
		return fmt.Errorf("make a proposal's ID: %w", err)
	}
	out, err := s.b.Propose(ctx, b)
	if err != nil {
		return err
	}
	return out.Results[0]
}

// acceptLoss handles POST /swarm/accept-loss: nodes that vanished together are not waited for any longer.
func (s *server) acceptLoss(ctx context.Context, _ *http.Request) (any, error) {
	var snap *state.Snapshot
	for range maxAttempts {
		var err error
		if snap, err = s.b.State(ctx); err != nil {
			return nil, err
		}
		c := *snap.Cluster()
		now := max(snap.Time(), model.Time(time.Now().UnixNano()))
		c.LossAccepted = now
		err = s.propose(ctx, "accept the loss of nodes", now, model.Txn{
			Guards:  []model.Guard{{Key: model.ClusterKey(), Group: model.GroupSpec, Version: c.SpecVersion}},
			Changes: []model.Change{{PutCluster: &c}},
		})
		if err == nil {
			return Done{Message: "nodes that went down before now are not waited for"}, nil
		}
		if model.KindOf(err) != model.Stale {
			return nil, err
		}
	}
	return nil, model.Errorf(model.Unavailable, "too many writes at once: please try again")
}
