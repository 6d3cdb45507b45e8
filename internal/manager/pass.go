package manager

import (
	"context"
	"fmt"
	"time"

	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/schedule"
	"github.com/skep-swarm/skep/internal/state"
)

// maxRounds bounds how often the deciders run over one service in a pass. They settle in three or
// four; one that does not is planned again in the next pass.
const maxRounds = 16

// settleFor is how long a refused service rests before it is planned again with the rest.
const settleFor = model.Time(50 * time.Millisecond)

// actor is who the log says the loop is.
const actor = "swarm"

// term is one time of leading.
type term struct {
	m      *Manager
	dirty  *dirty
	nodes  *nodeStates
	began  time.Time
	downAt map[model.NodeID]model.Time
}

func newTerm(m *Manager, s *state.Snapshot) *term {
	now := time.Now()
	return &term{m: m, dirty: newDirty(s), nodes: newNodeStates(s, now, m.cfg.LeasePeriod()), began: now, downAt: map[model.NodeID]model.Time{}}
}

func (t *term) lease(e leaseEvent) { t.nodes.event(e) }

// settled reports whether a whole lease has passed, so that silence of a node means something.
func (t *term) settled(now time.Time) bool { return now.Sub(t.began) >= t.m.cfg.LeasePeriod() }

// sleep is a timer for the next time that something is due without anybody touching anything.
// While work is left over from a failed pass it is due after pause.
func (t *term) sleep(pause time.Duration) *time.Timer {
	if pause > 0 {
		return time.NewTimer(pause)
	}
	if len(t.dirty.services) > 0 || len(t.dirty.nodes) > 0 {
		return time.NewTimer(0)
	}
	now := time.Now()
	wait := time.Hour
	if at := t.dirty.timers.next(); at != 0 {
		wait = min(wait, time.Duration(at)-time.Duration(now.UnixNano()))
	}
	if at := t.nodes.next(); !at.IsZero() {
		wait = min(wait, at.Sub(now))
	}
	if !t.settled(now) {
		wait = min(wait, t.began.Add(t.m.cfg.LeasePeriod()).Sub(now))
	}
	return time.NewTimer(max(wait, time.Millisecond))
}

// pass plans what is dirty and proposes it. After an error everything that was planned is dirty again.
func (t *term) pass(ctx context.Context) error {
	clock := time.Now()
	snap := t.m.cfg.State.Snapshot()
	now := max(snap.Time(), model.Time(clock.UnixNano()))
	t.nodes.expire(clock)
	txns := t.nodes.txns(snap)
	txns = append(txns, t.blocks(snap)...)
	ids := t.dirty.take(now)
	planned := t.plan(snap, ids, now, clock)
	txns = append(txns, planned...)
	if len(txns) == 0 {
		return nil
	}
	for _, b := range batches(txns) {
		out, err := t.m.cfg.Proposer.Propose(ctx, &model.Batch{Actor: actor, Reason: "plan", Time: now, Txns: b})
		if err != nil {
			for _, id := range ids {
				t.dirty.services[id] = struct{}{}
			}
			return err
		}
		t.refused(out, b, now)
	}
	return nil
}

// refused plans services again whose transactions were computed from what has changed since.
func (t *term) refused(out *model.Outcome, txns []model.Txn, now model.Time) {
	for i, err := range out.Results {
		if err == nil {
			continue
		}
		t.m.cfg.Log.Debug("a plan was refused and is made again", "err", err)
		for j := range txns[i].Changes {
			k, _, ok := state.Writes(&txns[i].Changes[j])
			if ok && (k.Kind == model.KindService || k.Kind == model.KindTask) {
				t.dirty.timers.set(model.ServiceID(k.A), now+settleFor)
			}
		}
	}
}

// blocks gives nodes without an address block their first one.
func (t *term) blocks(snap *state.Snapshot) []model.Txn {
	var out []model.Txn
	work := snap
	for id := range t.dirty.nodes {
		if n := snap.Node(id); n == nil || len(n.Blocks) > 0 {
			continue
		}
		txn, err := allocate.Node(work, id)
		if err != nil {
			t.m.cfg.Log.Warn("node gets no addresses", "err", err)
			continue
		}
		if next, err := work.With(txn.Changes...); err == nil && len(txn.Changes) > 0 {
			work = next
			out = append(out, txn)
		}
	}
	clear(t.dirty.nodes)
	return out
}

// plan runs the deciders over the services on one working copy.
func (t *term) plan(snap *state.Snapshot, ids []model.ServiceID, now model.Time, clock time.Time) []model.Txn {
	w := &work{snap: snap, now: now, base: snap, obs: t.observe(snap, now, clock),
		plans: map[model.ServiceID]*plan{}, next: map[model.ServiceID]model.Time{}, waiting: map[model.ServiceID]bool{}}
	todo := ids
	for range maxRounds {
		if len(todo) == 0 {
			break
		}
		todo = w.round(todo)
	}
	for _, id := range ids {
		t.dirty.timers.set(id, w.next[id])
		delete(t.dirty.waiting, id)
	}
	for id := range w.waiting {
		t.dirty.waiting[id] = struct{}{}
	}
	for _, id := range todo {
		t.dirty.services[id] = struct{}{} // not settled yet: goes on in the next pass
	}
	for _, err := range w.failed {
		t.m.cfg.Log.Error("a decider wants what cannot be", "err", err)
	}
	var out []model.Txn
	out = append(out, w.blocks...)
	for _, id := range ids {
		if p := w.plans[id]; p != nil {
			out = append(out, p.txns()...)
		}
	}
	return out
}

// observe is what this leader sees that the state does not hold.
func (t *term) observe(snap *state.Snapshot, now model.Time, clock time.Time) orchestrate.Obs {
	for n := range snap.Nodes() {
		if e, ok := t.nodes.seen[n.ID]; ok && !e.up {
			if _, known := t.downAt[n.ID]; !known {
				t.downAt[n.ID] = now
			}
		} else {
			delete(t.downAt, n.ID)
		}
	}
	return orchestrate.Obs{Settled: t.settled(clock), Down: t.downAt}
}

// work is the working copy of one pass.
type work struct {
	base, snap *state.Snapshot
	obs        orchestrate.Obs
	now        model.Time
	plans      map[model.ServiceID]*plan
	next       map[model.ServiceID]model.Time
	waiting    map[model.ServiceID]bool // found no place in their last round
	blocks     []model.Txn
	failed     []error
}

// round runs each decider once over the services and returns those that changed.
func (w *work) round(ids []model.ServiceID) []model.ServiceID {
	changed := map[model.ServiceID]bool{}
	for _, id := range ids {
		txns, next := orchestrate.Plan(w.snap, w.obs, id, w.now)
		w.next[id] = next
		for i := range txns {
			w.take(id, &txns[i], changed)
		}
		ports := allocate.Ports(w.snap, id)
		w.take(id, &ports, changed)
	}
	placed := schedule.Plan(w.snap, ids, w.now)
	addressed := allocate.Addresses(w.snap, placed.Txns, w.now)
	for _, id := range ids {
		delete(w.waiting, id)
	}
	for _, id := range append(placed.Waiting, addressed.Waiting...) {
		w.waiting[id] = true
	}
	for i := range addressed.Blocks {
		if next, err := w.snap.With(addressed.Blocks[i].Changes...); err == nil {
			w.snap = next
			w.blocks = append(w.blocks, addressed.Blocks[i])
		}
	}
	for i := range addressed.Txns {
		if id, ok := serviceOf(&addressed.Txns[i]); ok {
			w.take(id, &addressed.Txns[i], changed)
		}
	}
	var again []model.ServiceID
	for _, id := range ids {
		if changed[id] {
			again = append(again, id)
		}
	}
	return again
}

// take makes a transaction on the working copy and remembers it for the log.
func (w *work) take(id model.ServiceID, txn *model.Txn, changed map[model.ServiceID]bool) {
	if len(txn.Changes) == 0 {
		return
	}
	next, err := w.snap.With(txn.Changes...)
	if err != nil {
		w.failed = append(w.failed, fmt.Errorf("service %d: %w", id, err))
		return
	}
	w.snap = next
	changed[id] = true
	p := w.plans[id]
	if p == nil {
		p = newPlan(w.base)
		w.plans[id] = p
	}
	p.add(txn)
}

// serviceOf is the service whose tasks a transaction changes.
func serviceOf(txn *model.Txn) (model.ServiceID, bool) {
	for i := range txn.Changes {
		if k, _, ok := state.Writes(&txn.Changes[i]); ok && (k.Kind == model.KindTask || k.Kind == model.KindService) {
			return model.ServiceID(k.A), true
		}
	}
	return 0, false
}
