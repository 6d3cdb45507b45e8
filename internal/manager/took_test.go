package manager

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// The room that a refused plan would have taken is there for those who found none in the same pass.
func TestRefusalWakesThoseWhoWait(t *testing.T) {
	p := &Planner{dirty: newDirty(state.New()), log: slog.New(slog.DiscardHandler)}
	p.dirty.waiting[7] = struct{}{}
	b := &model.Batch{Txns: []model.Txn{{}}}
	p.Took(b, &model.Outcome{Results: []error{nil}})
	if len(p.dirty.services) != 0 {
		t.Error("a plan that was taken wakes nobody")
	}
	p.Took(b, &model.Outcome{Results: []error{errors.New("it is gone")}})
	if _, woken := p.dirty.services[7]; !woken {
		t.Error("the service that waits was not woken")
	}
}
