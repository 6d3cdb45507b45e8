package state

import (
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/tidwall/btree"
)

// slab is how many tasks are made in one piece of memory. A few, because the piece lives as long as
// one of them.
const slab = 16

// putTasks creates many tasks of a service. One alone is checked before anything is written; of
// several, txn keeps a copy to go back to.
func (w *writer) putTasks(c *model.TasksPut) error {
	v := w.s.Service(c.Service)
	switch {
	case v == nil:
		return model.NotFoundf("service %s not found", w.s.name(model.ServiceKey(c.Service)))
	case c.First <= v.LastTask:
		return model.Conflictf("task number %d of service %s was given before", c.First, v.Name())
	case len(c.Tasks) == 0 || len(c.Tasks) > model.MaxTasksPut:
		return model.Invalidf("%d tasks in one change", len(c.Tasks))
	}
	for i := range c.Tasks {
		if t := &c.Tasks[i]; int(max(t.Message, t.Err)) >= len(c.Texts) {
			return model.Invalidf("a task's text is missing")
		}
	}
	if err := w.claimPlaces(c); err != nil {
		return err
	}
	w.touched = slices.Grow(w.touched, len(c.Tasks))
	last, _ := w.s.tasks.Max()
	atEnd := last == nil || last.ID.Service < c.Service || last.ID.Service == c.Service && last.ID.Num < c.First
	var hint btree.PathHint
	var room []model.Task
	for i := range c.Tasks {
		if len(room) == 0 {
			room = make([]model.Task, min(slab, len(c.Tasks)-i))
		}
		t := &room[0]
		room = room[1:]
		w.fill(t, c, i)
		if atEnd {
			w.s.tasks.Load(t)
		} else {
			w.s.tasks.SetHint(t, &hint)
		}
		w.touch(model.TaskKey(t.ID))
	}
	n := *v
	n.LastTask = c.First + uint64(len(c.Tasks)) - 1
	w.s.services.Set(n.ID, &n)
	return nil
}

func (w *writer) fill(t *model.Task, c *model.TasksPut, i int) {
	from := &c.Tasks[i]
	t.ID = model.TaskID{Service: c.Service, Num: c.First + uint64(i)}
	t.Template, t.Desired, t.StartAt, t.JobIteration = c.Template, c.Desired, c.StartAt, c.JobIteration
	t.Slot, t.State, t.Node = from.Slot, from.State, from.Node
	t.Gateway4, t.Gateway6, t.Generic = from.Gateway4, from.Gateway6, from.Generic
	t.Message, t.Err = c.Texts[from.Message], c.Texts[from.Err]
	t.CreatedAt, t.StatusAt = w.now, w.now
	t.PlaceVer, t.DesiredVer, t.StatusVer = w.stamp(1), w.stamp(1), w.stamp(1)
}

// claimPlaces books what claimPlace books for one, node by node.
func (w *writer) claimPlaces(c *model.TasksPut) error {
	var hint btree.PathHint
	sh := w.share(&model.Task{Template: c.Template})
	order := byNode(c.Tasks)
	for from := 0; from < len(order); {
		node := c.Tasks[order[from]].Node
		to := from + 1
		for to < len(order) && c.Tasks[order[to]].Node == node {
			to++
		}
		if node != 0 {
			if err := w.claimNode(c, node, order[from:to], sh, &hint); err != nil {
				return err
			}
		}
		from = to
	}
	return nil
}

func (w *writer) claimNode(c *model.TasksPut, node model.NodeID, tasks []int32, sh share, hint *btree.PathHint) error {
	n := w.s.Node(node)
	if n == nil {
		return model.NotFoundf("node %s not found", w.s.name(model.NodeKey(node)))
	}
	if c.Base != 0 && (n.SpecVersion > c.Base || n.StateVer > c.Base) {
		return model.Stalef("node %s has changed", n.Hostname())
	}
	load := w.s.Load(node)
	booked := false
	for _, i := range tasks {
		t, id := &c.Tasks[i], model.TaskID{Service: c.Service, Num: c.First + uint64(i)}
		if t.State >= model.StateAssigned && !t.State.Terminal() {
			sh.generic = t.Generic
			if err := load.fits(n, &sh); err != nil {
				return err
			}
			if t.Gateway4.IsValid() {
				if len(c.Tasks) == 1 && w.s.AddrInUse(t.Gateway4) {
					return model.Stalef("address %s is in use", t.Gateway4)
				}
				if _, taken := w.s.addrs.Set(addrKey(t.Gateway4), id); taken {
					return model.Stalef("address %s is in use", t.Gateway4)
				}
			}
			load.add(&sh)
			booked = true
		}
		w.s.onNode.SetHint(nodeTask{node, id}, hint)
	}
	if booked {
		w.s.loads.Set(node, load)
	}
	return nil
}

// byNode is the order of the tasks by their nodes, then as they are.
func byNode(tasks []model.TaskNew) []int32 {
	order := make([]int32, len(tasks))
	highest := model.NodeID(0)
	for i := range tasks {
		order[i] = int32(i)
		highest = max(highest, tasks[i].Node)
	}
	if len(tasks) == 1 {
		return order
	}
	if uint64(highest) > uint64(16*len(tasks)) {
		slices.SortStableFunc(order, func(a, b int32) int {
			switch x, y := tasks[a].Node, tasks[b].Node; {
			case x < y:
				return -1
			case x > y:
				return 1
			}
			return 0
		})
		return order
	}
	start := make([]int32, highest+2)
	for i := range tasks {
		start[tasks[i].Node+1]++
	}
	for i := 1; i < len(start); i++ {
		start[i] += start[i-1]
	}
	for i := range tasks {
		at := &start[tasks[i].Node]
		order[*at] = int32(i)
		*at++
	}
	return order
}
