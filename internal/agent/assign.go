package agent

import (
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// maxTasks bounds what a node takes on, its history included.
const maxTasks = 20000

// draft is a complete set whose parts are arriving.
type draft struct {
	templates map[uint64]*template
	tasks     []*pb.Task
	payloads  []*pb.Payload
	node      *pb.NodeInfo
}

// takeAssignments applies what the managers want. An older word than the last one is refused: the session ends.
func (a *Agent) takeAssignments(m *pb.Assignments) error {
	parsed := make(map[uint64]*template, len(m.Templates))
	for _, tm := range m.Templates {
		t, err := parseTemplate(tm)
		if err != nil {
			return err
		}
		parsed[tm.Id] = t
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	at := placeOf(m.At)
	if at.before(a.applied) {
		return model.Stalef("assignments of index %d, and the node has applied %d", at.Index, a.applied.Index)
	}
	if m.Complete {
		return a.takeComplete(m, parsed, at)
	}
	if a.draft != nil {
		return model.Invalidf("a change in the middle of a complete set")
	}
	if len(a.byID)+len(m.Tasks) > maxTasks {
		return model.Errorf(model.Exhausted, "more than %d tasks on one node", maxTasks)
	}
	var ops []op
	if m.Node != nil {
		ops = a.setNode(ops, m.Node)
	}
	for id, t := range parsed {
		a.templates[id] = t
		ops = append(ops, op{tplKey(id), encode(t.msg)})
	}
	a.safe.add(m.Payloads)
	var fresh []*task
	for _, tm := range m.Tasks {
		ops, fresh = a.assign(ops, fresh, tm, m.Withdrawal)
	}
	a.safe.drop(m.PayloadsRemoved)
	for _, ref := range m.Removed {
		if t := a.byID[model.TaskID{Service: model.ServiceID(ref.GetService()), Num: ref.GetNum()}]; t != nil {
			t.remove()
		}
	}
	a.finishAssign(ops, fresh, at)
	return nil
}

// takeComplete gathers the parts of a complete set and applies the whole; a.mu is held.
func (a *Agent) takeComplete(m *pb.Assignments, parsed map[uint64]*template, at place) error {
	if a.draft == nil {
		a.draft = &draft{templates: map[uint64]*template{}}
	}
	d := a.draft
	for id, t := range parsed {
		d.templates[id] = t
	}
	d.tasks = append(d.tasks, m.Tasks...)
	d.payloads = append(d.payloads, m.Payloads...)
	if m.Node != nil {
		d.node = m.Node
	}
	if len(d.tasks) > maxTasks {
		return model.Errorf(model.Exhausted, "more than %d tasks on one node", maxTasks)
	}
	if m.More {
		return nil
	}
	a.draft = nil
	a.safe.replace(d.payloads)
	var ops []op
	for id, t := range d.templates {
		a.templates[id] = t
		ops = append(ops, op{tplKey(id), encode(t.msg)})
	}
	var fresh []*task
	nets := map[model.NetworkID]bool{}
	wanted := make(map[model.TaskID]bool, len(d.tasks))
	for _, tm := range d.tasks {
		wanted[taskID(tm)] = true
		ops, fresh = a.assign(ops, fresh, tm, 0)
		if model.TaskState(tm.State).Terminal() {
			continue // it has given its addresses back
		}
		for _, n := range tm.Nets {
			nets[model.NetworkID(n.Network)] = true
		}
	}
	for id, t := range a.byID {
		if !wanted[id] {
			t.remove()
		}
	}
	// After the tasks: a full pass takes away what it does not know of, and a node that lost its memory has just heard of them.
	if d.node != nil {
		ops = a.setNode(ops, d.node)
	}
	a.finishAssign(append(ops, a.overlays.keep(nets)...), fresh, at)
	if !a.known {
		a.known = true
		close(a.knowing)
	}
	return nil
}

func (a *Agent) setNode(ops []op, m *pb.NodeInfo) []op {
	a.node = m
	if err := a.net.setNode(m); err != nil {
		a.cfg.Log.Error("the managers' word on the network cannot be used", "err", err)
	}
	return append(ops, op{keyNode, encode(m)})
}

// assign takes one task; a.mu is held.
func (a *Agent) assign(ops []op, fresh []*task, m *pb.Task, withdrawal uint64) ([]op, []*task) {
	id := taskID(m)
	if t := a.byID[id]; t != nil && t.leaves() {
		t.next = m
		return ops, fresh
	} else if t != nil {
		t.assign(m, withdrawal)
		// What the managers know less of than the node is reported again, and so is what they knew before they were taken back.
		_, _, st := t.snapshot()
		older := st.State > model.TaskState(m.State) || st.State == model.TaskState(m.State) && st.health() != model.Health(m.Health)
		if older && st.State >= model.StateAccepted {
			a.rep.mark(id)
		}
		return append(ops, op{taskPrefix + idText(id), encode(forDisk(m))}), fresh
	}
	t := newTask(a, m, a.templates[m.Template], statusOf(m))
	a.byID[id] = t
	a.adopt(t)
	return append(ops, op{taskPrefix + idText(id), encode(forDisk(m))}), append(fresh, t)
}

// finishAssign writes everything down together, then lets the new tasks begin; a.mu is held.
func (a *Agent) finishAssign(ops []op, fresh []*task, at place) {
	used := map[uint64]bool{}
	for _, t := range a.byID {
		used[t.msg.Template] = true
		used[t.next.GetTemplate()] = true
	}
	for id := range a.templates {
		if !used[id] {
			delete(a.templates, id)
			ops = append(ops, op{Key: tplKey(id)})
		}
	}
	a.applied = at
	a.saved(a.store.write(append(ops, op{keyApplied, encode(at)})...))
	for _, t := range fresh {
		a.launch(t)
	}
}

// statusOf is where a task stands by the managers' word, for a node that has none of its own.
func statusOf(m *pb.Task) status {
	st := status{State: model.TaskState(m.State)}
	if len(m.HostPorts) > 0 {
		st.HostPorts = wire.Ports(m.HostPorts)
	}
	return st
}
