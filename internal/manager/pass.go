package manager

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/schedule"
	"github.com/skep-swarm/skep/internal/state"
)

// maxRounds bounds a pass's rounds over one service: it settles in three or four, or is planned again in the next pass.
const maxRounds = 16

// settleFor is how long a refused service rests before it is planned again with the rest.
const settleFor = model.Time(50 * time.Millisecond)

// actor is who the log says the loop is.
const actor = "swarm"

// Planner is the leader's pass without its clock, its log and its waiting: a plain value that is told what was applied and
// which nodes were seen, and answers with the batches to propose. The loop drives one for each time of leading, a simulator
// any number of them. wall is the member's clock as the swarm's time, clock the same moment for leases, which must not jump.
// Not safe for concurrent use.
type Planner struct {
	dirty  *dirty
	nodes  *nodeStates
	began  time.Time
	heard  bool // a whole lease has passed since
	lease  func() time.Duration
	downAt map[model.NodeID]model.Time
	cache  schedule.Cache
	log    *slog.Logger
	// brake is that on mass failure, as it was last told of; accepted the cluster's LossAccepted then.
	brake    *orchestrate.Brake
	accepted model.Time
	// What the last Plan took on, in case its batches get lost.
	tookServices []model.ServiceID
	tookNodes    []model.NodeID
	// final are the services that need not be planned again once what it made of them is in the state.
	final map[model.ServiceID]bool
}

// NewPlanner is the planner of a member that begins to lead with the state at s. lease is how long a
// node may be silent.
func NewPlanner(s *state.Snapshot, clock time.Time, lease func() time.Duration, log *slog.Logger) *Planner {
	return &Planner{dirty: newDirty(s), nodes: newNodeStates(s, clock, lease()), began: clock, lease: lease,
		downAt: map[model.NodeID]model.Time{}, cache: schedule.Cache{Pools: schedule.Pools{Blocks: allocate.FreeBlocks, Nets: allocate.CheckNets}}, log: log}
}

// Applied takes in one step of the state.
func (p *Planner) Applied(a replica.Applied) { p.dirty.applied(a) }

// NodeUp and NodeDown take in what node sessions saw.
func (p *Planner) NodeUp(node model.NodeID, addr string) {
	p.event(leaseEvent{node: node, up: true, addr: addr})
}

// NodeDown says that a node's lease ran out.
func (p *Planner) NodeDown(node model.NodeID, message string) {
	p.event(leaseEvent{node: node, message: message})
}

func (p *Planner) event(e leaseEvent) {
	p.nodes.event(e)
	p.dirty.nodes[e.node] = struct{}{}
}

// settled reports whether a whole lease has passed, so that silence of a node means something.
func (p *Planner) settled(clock time.Time) bool { return clock.Sub(p.began) >= p.lease() }

// Wait is how long it takes until something is due without anybody touching anything; 0 when work is left over.
func (p *Planner) Wait(wall model.Time, clock time.Time) time.Duration {
	if len(p.dirty.services) > 0 || len(p.dirty.nodes) > 0 {
		return 0
	}
	wait := time.Hour
	if at := p.dirty.timers.next(); at != 0 {
		wait = min(wait, time.Duration(at-wall))
	}
	if at := p.nodes.next(); !at.IsZero() {
		wait = min(wait, at.Sub(clock))
	}
	if left, ok := p.brakeEnds(wall); ok {
		wait = min(wait, left)
	}
	if !p.settled(clock) {
		wait = min(wait, p.began.Add(p.lease()).Sub(clock))
	}
	return max(wait, time.Millisecond)
}

// Plan plans what is dirty, as batches to propose in this order. Each is answered by Took; when one
// could not be proposed, Failed ends the pass.
func (p *Planner) Plan(snap *state.Snapshot, wall model.Time, clock time.Time) []*model.Batch {
	now := max(snap.Time(), wall)
	for _, id := range p.nodes.expire(clock) {
		p.dirty.nodes[id] = struct{}{}
	}
	if !p.heard && p.settled(clock) {
		// From now on nodes that are down count as down, those of the last leader's time too.
		p.heard = true
		p.dirty.everything(snap)
	}
	p.tookNodes = slices.Sorted(maps.Keys(p.dirty.nodes))
	clear(p.dirty.nodes)
	txns := p.nodes.txns(snap, p.tookNodes)
	txns = append(txns, p.blocks(snap)...)
	p.observe(snap, now)
	p.watchBrake(snap, now, clock)
	p.tookServices = p.dirty.take(now)
	txns = append(txns, p.plan(snap, p.tookServices, now, clock)...)
	var out []*model.Batch
	for _, b := range batches(txns) {
		out = append(out, &model.Batch{Actor: actor, Reason: "plan", Time: now, Txns: b})
	}
	return out
}

// Failed makes all that the last Plan took on dirty again.
func (p *Planner) Failed() {
	for _, id := range p.tookServices {
		p.dirty.services[id] = struct{}{}
	}
	for _, id := range p.tookNodes {
		p.dirty.nodes[id] = struct{}{}
	}
}

// Afresh is a planner with the same observations for which everything is dirty: whatever it wants that
// p does not shows what p has forgotten.
func (p *Planner) Afresh(snap *state.Snapshot) *Planner {
	return &Planner{dirty: newDirty(snap), nodes: &nodeStates{seen: maps.Clone(p.nodes.seen), deadline: maps.Clone(p.nodes.deadline)},
		began: p.began, heard: p.heard, lease: p.lease, downAt: maps.Clone(p.downAt), cache: schedule.Cache{Pools: p.cache.Pools}, log: p.log}
}

// Took plans services again whose transactions were computed from what has changed since.
func (p *Planner) Took(b *model.Batch, out *model.Outcome) {
	p.dirty.expect(out.Index, p.final)
	for i, err := range out.Results {
		if err == nil {
			continue
		}
		p.log.Debug("a plan was refused and is made again", "err", err)
		// The room that it would have taken was kept from others in the same pass.
		p.dirty.wakeWaiting()
		for j := range b.Txns[i].Changes {
			k, _, ok := state.Writes(&b.Txns[i].Changes[j])
			if ok && (k.Kind == model.KindService || k.Kind == model.KindTask) {
				p.dirty.timers.set(model.ServiceID(k.A), b.Time+settleFor)
			}
		}
	}
}

// blocks gives nodes without an address block their first one.
func (p *Planner) blocks(snap *state.Snapshot) []model.Txn {
	var out []model.Txn
	work := snap
	for _, id := range p.tookNodes {
		if n := snap.Node(id); n == nil || len(n.Blocks) > 0 {
			continue
		}
		txn, err := allocate.Node(work, id)
		if err != nil {
			p.log.Warn("node gets no addresses", "err", err)
			continue
		}
		if next, err := work.With(txn.Changes...); err == nil && len(txn.Changes) > 0 {
			work = next
			out = append(out, txn)
		}
	}
	return out
}

// plan runs the deciders over the services on one working copy.
func (p *Planner) plan(snap *state.Snapshot, ids []model.ServiceID, now model.Time, clock time.Time) []model.Txn {
	w := &work{cache: &p.cache, snap: snap, now: now, base: snap, obs: orchestrate.Obs{Settled: p.settled(clock), Down: p.downAt, Agreed: snap},
		plans: map[model.ServiceID]*plan{}, next: map[model.ServiceID]model.Time{}, waiting: map[model.ServiceID]bool{}, settled: map[model.ServiceID]bool{}}
	todo := ids
	for range maxRounds {
		if len(todo) == 0 {
			break
		}
		todo = w.round(todo)
	}
	for _, id := range ids {
		p.dirty.timers.set(id, w.next[id])
		delete(p.dirty.waiting, id)
		delete(p.dirty.gated, id)
		if orchestrate.Gated(snap, id) {
			p.dirty.gated[id] = struct{}{}
		}
	}
	for id := range w.waiting {
		p.dirty.waiting[id] = struct{}{}
	}
	for _, id := range todo {
		p.dirty.services[id] = struct{}{} // not settled yet: goes on in the next pass
	}
	p.final = maps.Clone(w.settled)
	maps.DeleteFunc(p.final, func(_ model.ServiceID, is bool) bool { return !is })
	for _, err := range w.failed {
		p.log.Error("a decider wants what cannot be", "err", err)
	}
	var out []model.Txn
	out = append(out, w.blocks...)
	for _, id := range ids {
		if made := w.plans[id]; made != nil {
			out = append(out, made.txns()...)
		}
	}
	return out
}

// observe keeps what this leader sees that the state does not hold: since when nodes are down. Only nodes of which
// something was heard, or that were changed, are looked at: passes are frequent and nodes are many.
func (p *Planner) observe(snap *state.Snapshot, now model.Time) {
	for _, id := range p.tookNodes {
		if e, ok := p.nodes.seen[id]; ok && !e.up && snap.Node(id) != nil {
			if _, known := p.downAt[id]; !known {
				p.downAt[id] = now
			}
		} else {
			delete(p.downAt, id)
		}
	}
}

// work is the working copy of one pass.
type work struct {
	base, snap *state.Snapshot
	obs        orchestrate.Obs
	now        model.Time
	plans      map[model.ServiceID]*plan
	next       map[model.ServiceID]model.Time
	waiting    map[model.ServiceID]bool // found no place in their last round
	settled    map[model.ServiceID]bool // only got their first tasks, and will want nothing more
	blocks     []model.Txn
	failed     []error
	cache      *schedule.Cache
}

// round runs each decider once over the services and returns those that changed and may want more. Tasks that are
// about to be made are placed and get their addresses before they enter the working copy.
func (w *work) round(ids []model.ServiceID) []model.ServiceID {
	changed := make(map[model.ServiceID]bool)
	settles := make(map[model.ServiceID]bool)
	var fresh []model.Txn
	puts := map[model.ServiceID][]*model.TasksPut{}
	for _, id := range ids {
		txns, next := orchestrate.Plan(w.snap, w.obs, id, w.now)
		w.next[id] = next
		settles[id] = orchestrate.Settles(w.snap, id, txns, next)
		for i := range txns {
			if c := &txns[i].Changes[0]; len(txns[i].Changes) == 1 && c.PutTasks != nil {
				fresh = append(fresh, txns[i])
				puts[id] = append(puts[id], c.PutTasks)
				continue
			}
			w.take(id, &txns[i], changed)
		}
		ports := allocate.Ports(w.snap, id)
		w.take(id, &ports, changed)
		vips := allocate.VIPs(w.snap, id)
		w.take(id, &vips, changed)
		delete(w.waiting, id)
	}
	placed := w.cache.PlanNew(w.snap, ids, puts, w.now)
	w.wait(placed.Waiting)
	given, lacks := w.address(placed.Txns, changed)
	more, lack := w.allocate(fresh)
	// Who was placed and then got no address took room that others may have by now.
	freed := (lacks || lack) && given+more > 0
	var again []model.ServiceID
	for _, id := range ids {
		if v := w.snap.Service(id); v != nil && (v.PortError != "" || v.NetError != "") {
			w.waiting[id] = true // for the port or the address, even without a task
		}
		w.settled[id] = settles[id] && !changed[id] && !w.waiting[id]
		if changed[id] || len(puts[id]) > 0 && !w.settled[id] || freed && w.waiting[id] {
			again = append(again, id)
		}
	}
	w.make(fresh, len(again) > 0)
	return again
}

func (w *work) wait(ids []model.ServiceID) {
	for _, id := range ids {
		w.waiting[id] = true
	}
}

// address gives placed tasks their addresses and takes both on. It returns how many got them, and whether some did not.
func (w *work) address(placed []model.Txn, changed map[model.ServiceID]bool) (given int, lacks bool) {
	if len(placed) == 0 {
		return 0, false
	}
	addressed := allocate.Addresses(w.snap, placed, w.now)
	w.wait(addressed.Waiting)
	w.grow(addressed.Blocks)
	for i := range addressed.Txns {
		if id, ok := serviceOf(&addressed.Txns[i]); ok {
			w.take(id, &addressed.Txns[i], changed)
		}
	}
	return addressed.Given, len(addressed.Waiting) > 0
}

// allocate is address for tasks that are about to be made.
func (w *work) allocate(fresh []model.Txn) (given int, lacks bool) {
	if len(fresh) == 0 {
		return 0, false
	}
	puts := make([]*model.TasksPut, len(fresh))
	for i := range fresh {
		puts[i] = fresh[i].Changes[0].PutTasks
	}
	addressed := allocate.Fresh(w.snap, puts, w.now)
	w.wait(addressed.Waiting)
	w.grow(addressed.Blocks)
	return addressed.Given, len(addressed.Waiting) > 0
}

// make takes on tasks that did not exist before, all services' at once. When nobody will look at the working copy again
// they are only remembered for the log: to make them here would cost as much as making them there.
func (w *work) make(fresh []model.Txn, looked bool) {
	if looked {
		changes := make([]model.Change, len(fresh))
		for i := range fresh {
			changes[i] = fresh[i].Changes[0]
		}
		next, err := w.snap.With(changes...)
		if err != nil {
			for i := range fresh { // one of them cannot be: find out which
				w.take(fresh[i].Changes[0].PutTasks.Service, &fresh[i], nil)
			}
			return
		}
		w.snap = next
	}
	for i := range fresh {
		w.note(fresh[i].Changes[0].PutTasks.Service, &fresh[i], nil)
	}
}

// grow takes on the blocks that nodes got for their tasks.
func (w *work) grow(blocks []model.Txn) {
	for i := range blocks {
		if next, err := w.snap.With(blocks[i].Changes...); err == nil {
			w.snap = next
			w.blocks = append(w.blocks, blocks[i])
		}
	}
}

// take makes a transaction on the working copy and remembers it for the log, and in changed unless that is nil.
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
	w.note(id, txn, changed)
}

// note remembers for the log what was made on the working copy.
func (w *work) note(id model.ServiceID, txn *model.Txn, changed map[model.ServiceID]bool) {
	if changed != nil {
		changed[id] = true
	}
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
