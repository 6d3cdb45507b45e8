// Package schedule gives tasks their nodes. It is the last of the leader's three
// deciders: orchestrate says which tasks there should be, allocate what addresses and
// ports they get, schedule where they run.
//
// Nodes are rows of dense columns, filters are bit sets over them, and a whole group of
// like tasks (same service, same template) is placed at once by filling the nodes like
// water: the cost is that of the nodes, not of nodes times tasks. It must not know how
// tasks come to be, nor write anything: it reads a snapshot and returns transactions.
package schedule

import (
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Texts that Docker's users know from `docker service ps`.
const (
	msgAssigned  = "scheduler assigned task to node"
	msgConfirmed = "scheduler confirmed task can run on preassigned node"
	msgPending   = "pending task scheduling"
)

// maxChunk bounds the changes of one transaction, so that a batch can hold it.
const maxChunk = 1000

// Result is what Plan decided.
type Result struct {
	// Txns place tasks, or say why they wait. Each belongs to one service and stands alone.
	// Placements carry no addresses yet; allocate.Addresses adds them.
	Txns []model.Txn
	// Waiting are the services with tasks that found no node: they want to be planned again when
	// a node, its load or a spec changes.
	Waiting []model.ServiceID
}

// Plan places the unplaced tasks of the given services, in that order. now is cluster time.
// Tasks that are placed already cost a visit each, nodes a visit per group; nothing
// is looked at when no task waits.
func Plan(snap *state.Snapshot, services []model.ServiceID, now model.Time) Result {
	return PlanNew(snap, services, nil, now)
}

// PlanNew is Plan with tasks that are about to be made: fresh holds them by service, and each gets its
// node, or its reason for waiting, written into it before it is in any state.
func PlanNew(snap *state.Snapshot, services []model.ServiceID, fresh map[model.ServiceID][]*model.TasksPut, now model.Time) Result {
	return new(Cache).PlanNew(snap, services, fresh, now)
}

// Cache keeps from one PlanNew to the next what is read from the nodes' specs and descriptions: labels,
// platforms, spread trees. It changes no result, as long as the versions of nodes tell whether they
// changed, which they do in a log's snapshots. The zero value is ready. Not safe for concurrent use.
type Cache struct {
	last *columns
	desk
	// Pools has the addresses.
	Pools Pools
}

// Pools says what allocate has left to give, so that no task is placed for which there are no addresses. Both answers may
// be missing: then there is as much as anybody wants.
type Pools struct {
	// Blocks is how many blocks of gateway addresses nodes can still get. It is asked only when a node is full.
	Blocks func(*state.Snapshot) int
	// Nets is why a task of a template cannot have an address in each of its overlay networks; nil when one can.
	Nets func(*state.Snapshot, *model.Template) error
}

// PlanNew is the function of that name, in less time.
func (c *Cache) PlanNew(snap *state.Snapshot, services []model.ServiceID, fresh map[model.ServiceID][]*model.TasksPut, now model.Time) Result {
	p := &planner{snap: snap, now: now, fresh: fresh, kept: c.last, desk: &c.desk, pools: c.Pools}
	for _, id := range services {
		p.service(id)
	}
	if p.nodes != nil {
		p.nodes.snap = nil // nothing reads it any more, and it is large
		c.last = p.nodes
	}
	return Result{Txns: p.txns, Waiting: p.waiting}
}

type planner struct {
	snap    *state.Snapshot
	now     model.Time
	fresh   map[model.ServiceID][]*model.TasksPut
	kept    *columns // of an earlier pass; may be nil
	pools   Pools
	nodes   *columns // made when the first task needs a node
	txns    []model.Txn
	waiting []model.ServiceID
	*desk
}

// desk is what a planner works on, kept for its memory: these arrays have a row for each node.
type desk struct {
	have    counts
	placed  []int32 // how many of a group each node gets
	vessels []vessel
	among   []int // the rows of the vessels
	filler  filler
}

// group is a set of tasks that any filter and score treats alike.
type group struct {
	need  *need
	tasks []job // want any node
	fixed []job // of a global service: want their own node
}

// job is a task to place: one of the state, or number i of those about to be made.
type job struct {
	task *model.Task
	put  *model.TasksPut
	i    int
}

func (j job) node() model.NodeID {
	if j.task != nil {
		return j.task.Node
	}
	return j.put.Tasks[j.i].Node
}

func (p *planner) service(id model.ServiceID) {
	svc := p.snap.Service(id)
	if svc == nil {
		return
	}
	var unplaced []*model.Task
	virgin := true // nothing of the service is, or was, anywhere
	for t := range p.snap.Tasks(id) {
		if t.State < model.StateAssigned && t.Desired <= model.StateRunning {
			unplaced = append(unplaced, t)
		}
		virgin = virgin && t.Node == 0
	}
	if len(unplaced) == 0 && len(p.fresh[id]) == 0 {
		return
	}
	if p.nodes == nil {
		p.nodes = columnsAfter(p.snap, p.kept)
		p.nodes.addrs.pool = p.pools.Blocks
		p.have.size(len(p.nodes.nodes))
	}
	p.have.clear()
	if !virgin {
		p.have.load(p.snap, p.nodes, svc.ID, p.now)
	}
	out := &txns{svc: svc}
	all := true
	for _, g := range p.groups(svc, unplaced) {
		p.have.judge(g.need.template)
		all = p.group(g, out, virgin) && all
		virgin = false
	}
	if !all {
		p.waiting = append(p.waiting, id)
	}
	p.txns = append(p.txns, out.list...)
}

// groups sorts tasks by template, oldest template first; the service's own part of the
// requirement is the same for all.
func (p *planner) groups(svc *model.Service, tasks []*model.Task) []*group {
	var out []*group
	add := func(template model.TemplateID, j job, more int) {
		i := slices.IndexFunc(out, func(g *group) bool { return g.need.template == template })
		if i < 0 {
			i = len(out)
			out = append(out, &group{need: p.newNeed(svc, template)})
		}
		if j.node() != 0 {
			out[i].fixed = append(out[i].fixed, j)
		} else {
			if len(out[i].tasks) == cap(out[i].tasks) {
				out[i].tasks = slices.Grow(out[i].tasks, more)
			}
			out[i].tasks = append(out[i].tasks, j)
		}
	}
	for _, t := range tasks {
		add(t.Template, job{task: t}, 1)
	}
	for _, put := range p.fresh[svc.ID] {
		for i := range put.Tasks {
			add(put.Template, job{put: put, i: i}, len(put.Tasks)-i)
		}
	}
	return out
}

// group places what it can and gives the rest its reason. It reports whether all was placed.
func (p *planner) group(g *group, out *txns, virgin bool) bool {
	if g.need.err != "" {
		out.pend(append(g.tasks, g.fixed...), g.need.err)
		return false
	}
	all := p.placeFixed(g, out)
	if len(g.tasks) == 0 {
		return all
	}
	if virgin && len(g.fixed) == 0 && p.placeFew(g, out) {
		return all
	}
	fit, _ := p.nodes.filter(g.need, &p.have)
	placed := p.spread(g.need, fit, len(g.tasks))
	if !p.nodes.supplyAll(g.need, placed) {
		fit, _ = p.nodes.filter(g.need, &p.have) // without those that are full, now that they stay so
		placed = p.spread(g.need, fit, len(g.tasks))
	}
	rest := p.deal(g, placed, out)
	if len(rest) == 0 {
		return all
	}
	_, refused := p.nodes.filter(g.need, &p.have)
	out.pend(rest, noSuitableNode(refused))
	return false
}

// placeFixed confirms the tasks of a global service on their nodes.
func (p *planner) placeFixed(g *group, out *txns) bool {
	all := true
	for _, t := range g.fixed {
		i, ok := p.nodes.row(t.node())
		if !ok {
			continue // the node is gone; orchestrate will take the task away
		}
		why := p.nodes.refusal(g.need, &p.have, i)
		if why == "" && !p.nodes.supply(g.need, i, 1) {
			why = filterAddrs.text(1)
		}
		if why != "" {
			out.pend([]job{t}, why)
			all = false
			continue
		}
		p.take(g.need, i, 1)
		out.place(t, p.nodes.nodes[i], msgConfirmed, p.nodes.assign(g.need, i))
	}
	return all
}

// take books k tasks on node i, so that the next group sees them.
func (p *planner) take(n *need, i int, k int32) {
	c := p.nodes
	c.cpu[i] -= n.cpu * int64(k)
	c.mem[i] -= n.mem * int64(k)
	if n.addr {
		c.addrs.left[i] = c.addrsLeft(i) - k
	}
	c.addTotal(i, k)
	for _, g := range n.generic {
		c.genericOf(g.Kind).free[i] -= g.N * int64(k)
	}
	p.have.add(i, k)
	for _, port := range n.ports {
		c.claim(port, i)
	}
}

// deal hands the tasks out to the nodes, one round after the other, so that neighbouring
// slots lie on different nodes; it returns the tasks for which there was no room.
func (p *planner) deal(g *group, placed []int32, out *txns) []job {
	var open []int
	for i, k := range placed {
		if k > 0 {
			p.take(g.need, i, k)
			open = append(open, i)
		}
	}
	tasks := g.tasks
	for len(open) > 0 {
		next := open[:0]
		for _, i := range open {
			out.place(tasks[0], p.nodes.nodes[i], msgAssigned, p.nodes.assign(g.need, i))
			tasks = tasks[1:]
			if placed[i]--; placed[i] > 0 {
				next = append(next, i)
			}
		}
		open = next
	}
	return tasks
}
