package manager

import (
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// maxTxn bounds the changes of one transaction, so that two fit into a batch.
const maxTxn = model.MaxBatchChanges / 2

// plan collects what the deciders want of one service in one pass.
type plan struct {
	base    *state.Snapshot // what the pass began with
	guards  map[guardKey]model.Guard
	order   []guardKey
	changes []model.Change
	created map[model.TaskID]int // index into changes of a task made in this pass
	bulk    bool                 // there is a change that made many
}

type guardKey struct {
	key   model.Key
	group model.Group
}

func newPlan(base *state.Snapshot) *plan {
	return &plan{base: base}
}

// add takes a decider's transaction in. Guards on objects that this pass itself makes say nothing
// to the log and are left out; later changes of a task made in this pass become part of its making.
func (p *plan) add(t *model.Txn) {
	if p.guards == nil {
		p.guards = make(map[guardKey]model.Guard, len(t.Guards))
	}
	for _, g := range t.Guards {
		k := guardKey{g.Key, g.Group}
		if _, have := p.guards[k]; have {
			continue
		}
		if _, exists := p.base.Version(g.Key, g.Group); exists || g.Version == 0 {
			p.guards[k] = g
			p.order = append(p.order, k)
		}
	}
	for i := range t.Changes {
		p.change(t.Changes[i])
	}
}

func (p *plan) change(c model.Change) {
	switch {
	case c.PutTask != nil:
		if p.created == nil {
			p.created = map[model.TaskID]int{}
		}
		p.created[c.PutTask.ID] = len(p.changes)
	case c.PutTasks != nil:
		p.bulk = true
	case p.bulk && p.ofBulk(&c):
		return
	case c.SetTaskPlace != nil:
		if t := p.fresh(c.SetTaskPlace.Task); t != nil {
			set := c.SetTaskPlace
			t.Node, t.Gateway4, t.Gateway6, t.Generic, t.Nets = set.Node, set.Gateway4, set.Gateway6, set.Generic, set.Nets
			t.State, t.Message, t.Err = model.StateAssigned, set.Message, ""
			return
		}
	case c.SetTaskStatus != nil:
		if t := p.fresh(c.SetTaskStatus.Task); t != nil {
			t.State, t.Message, t.Err = c.SetTaskStatus.State, c.SetTaskStatus.Message, c.SetTaskStatus.Err
			return
		}
	case c.SetTaskDesired != nil:
		if t := p.fresh(c.SetTaskDesired.Task); t != nil {
			t.Desired, t.StartAt = c.SetTaskDesired.Desired, c.SetTaskDesired.StartAt
			return
		}
	}
	p.changes = append(p.changes, c)
}

// fresh is a task of this pass, as a copy that may be changed.
func (p *plan) fresh(id model.TaskID) *model.Task {
	i, ok := p.created[id]
	if !ok {
		return nil
	}
	t := *p.changes[i].PutTask
	p.changes[i].PutTask = &t
	return &t
}

// ofBulk makes a later change of a task part of the change that made it and others.
func (p *plan) ofBulk(c *model.Change) bool {
	var id model.TaskID
	switch {
	case c.SetTaskPlace != nil:
		id = c.SetTaskPlace.Task
	case c.SetTaskStatus != nil:
		id = c.SetTaskStatus.Task
	default:
		return false
	}
	for i := range p.changes {
		put := p.changes[i].PutTasks
		if put == nil || id.Num < put.First || id.Num >= put.First+uint64(len(put.Tasks)) {
			continue
		}
		n := *put
		n.Tasks, n.Texts = slices.Clone(put.Tasks), slices.Clone(put.Texts)
		t := &n.Tasks[id.Num-put.First]
		if set := c.SetTaskPlace; set != nil {
			t.Node, t.Gateway4, t.Gateway6, t.Generic, t.Nets = set.Node, set.Gateway4, set.Gateway6, set.Generic, set.Nets
			t.State, t.Message, t.Err = model.StateAssigned, n.Text(set.Message), 0
		} else {
			t.State, t.Message, t.Err = c.SetTaskStatus.State, n.Text(c.SetTaskStatus.Message), n.Text(c.SetTaskStatus.Err)
		}
		p.changes[i].PutTasks = &n
		return true
	}
	return false
}

// txns is the plan as transactions, each small enough for a batch and each with all guards that the
// plan's own changes leave true.
func (p *plan) txns() []model.Txn {
	var out []model.Txn
	guards := make([]model.Guard, 0, len(p.order))
	for _, k := range p.order {
		guards = append(guards, p.guards[k])
	}
	for rest := p.changes; len(rest) > 0; {
		n, weight := 0, 0
		for n < len(rest) && (n == 0 || weight+rest[n].Weight() <= maxTxn) {
			weight += rest[n].Weight()
			n++
		}
		out = append(out, model.Txn{Guards: guards, Changes: rest[:n]})
		if n < len(rest) {
			guards = unwritten(guards, rest[:n])
		}
		rest = rest[n:]
	}
	return out
}

// unwritten drops guards on what the changes write: after them the version is another one.
func unwritten(guards []model.Guard, changes []model.Change) []model.Guard {
	written := map[guardKey]bool{}
	for i := range changes {
		if k, g, ok := state.Writes(&changes[i]); ok {
			written[guardKey{k, g}] = true
			if changes[i].SetTaskPlace != nil || changes[i].DeleteTask != nil {
				written[guardKey{k, model.GroupStatus}] = true
				written[guardKey{k, model.GroupPlace}] = true
			}
		}
	}
	var out []model.Guard
	for _, g := range guards {
		if !written[guardKey{g.Key, g.Group}] {
			out = append(out, g)
		}
	}
	return out
}

// batches cuts transactions into proposals.
func batches(txns []model.Txn) [][]model.Txn {
	var out [][]model.Txn
	n := 0
	for i := range txns {
		size := 0
		for j := range txns[i].Changes {
			size += txns[i].Changes[j].Weight()
		}
		if len(out) == 0 || n+size > model.MaxBatchChanges {
			out, n = append(out, nil), 0
		}
		last := len(out) - 1
		out[last] = append(out[last], txns[i])
		n += size
	}
	return out
}
