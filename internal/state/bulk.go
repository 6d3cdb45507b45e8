package state

import (
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/tidwall/btree"
)

// slab is how many tasks are made in one piece of memory. A few, because the piece lives as long as
// one of them.
const slab = 16

// putTasks creates many tasks of a service. Like every change it checks before it writes: a copy to go
// back to would cost more than the tasks.
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
	order := byNode(c.Tasks)
	claims, err := w.checkPlaces(c, order)
	if err != nil {
		return err
	}
	if err := w.checkBulkNets(c); err != nil {
		return err
	}
	if err := w.claimAddrs(c, order); err != nil {
		return err
	}
	w.claimPlaces(c, order, claims)
	w.touched = slices.Grow(w.touched, len(c.Tasks))
	last, some := w.s.tasks.Max()
	atEnd := !some || last.id.Less(model.TaskID{Service: c.Service, Num: c.First})
	var hint btree.PathHint
	var room []model.Task
	for i := range c.Tasks {
		if len(room) == 0 {
			room = make([]model.Task, min(slab, len(c.Tasks)-i))
		}
		t := &room[0]
		room = room[1:]
		w.fill(t, c, i)
		if len(t.Nets) > 0 && placed(t) {
			w.claimNets(t.ID, t.Nets)
		}
		if atEnd {
			w.s.tasks.Load(at(t))
		} else {
			w.s.tasks.SetHint(at(t), &hint)
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
	t.Gateway4, t.Gateway6, t.Generic, t.Nets = from.Gateway4, from.Gateway6, from.Generic, from.Nets
	t.Message, t.Err = c.Texts[from.Message], c.Texts[from.Err]
	t.CreatedAt, t.StatusAt = w.now, w.now
	t.PlaceVer, t.DesiredVer, t.StatusVer = w.stamp(1), w.stamp(1), w.stamp(1)
}

// nodeClaim is what a node's load will be.
type nodeClaim struct {
	node model.NodeID
	load Load
}

// checkPlaces is the guard of claimPlace for many tasks, node by node, without writing.
func (w *writer) checkPlaces(c *model.TasksPut, order []int32) ([]nodeClaim, error) {
	var claims []nodeClaim
	sh := w.share(&model.Task{Template: c.Template})
	var n *model.Node
	for _, i := range order {
		t := &c.Tasks[i]
		if t.Node == 0 {
			continue
		}
		if n == nil || n.ID != t.Node {
			if n = w.s.Node(t.Node); n == nil {
				return nil, model.NotFoundf("node %s not found", w.s.name(model.NodeKey(t.Node)))
			}
			if c.Base != 0 && max(n.SpecVersion, n.StateVer, n.DescVersion) > c.Base {
				return nil, model.Stalef("node %s has changed", n.Hostname())
			}
		}
		if !books(t) {
			continue
		}
		if len(claims) == 0 || claims[len(claims)-1].node != t.Node {
			claims = append(claims, nodeClaim{t.Node, w.s.Load(t.Node)})
		}
		load := &claims[len(claims)-1].load
		sh.generic = t.Generic
		if err := ownAddress(n, t.Gateway4); err != nil {
			return nil, err
		}
		if err := load.fits(n, &sh); err != nil {
			return nil, err
		}
		load.add(&sh)
	}
	return claims, nil
}

func books(t *model.TaskNew) bool {
	return t.Node != 0 && t.State >= model.StateAssigned && !t.State.Terminal()
}

// checkBulkNets checks the tasks' addresses in overlay networks against the state and against each other.
func (w *writer) checkBulkNets(c *model.TasksPut) error {
	var given map[model.TaskNet]struct{}
	for i := range c.Tasks {
		t := &c.Tasks[i]
		if len(t.Nets) == 0 || !books(t) {
			continue
		}
		if err := w.checkNets(t.Nets); err != nil {
			return err
		}
		if given == nil {
			given = make(map[model.TaskNet]struct{}, len(c.Tasks))
		}
		for _, a := range t.Nets {
			if _, twice := given[a]; twice {
				return model.Stalef("address %s is in use", a.Addr4)
			}
			given[a] = struct{}{}
		}
	}
	return nil
}

// claimAddrs books the tasks' addresses, or none of them.
func (w *writer) claimAddrs(c *model.TasksPut, order []int32) error {
	for k, i := range order {
		t := &c.Tasks[i]
		if !books(t) || !t.Gateway4.IsValid() || w.s.addrs.add(addrKey(t.Gateway4)) {
			continue
		}
		for _, j := range order[:k] {
			if t := &c.Tasks[j]; books(t) && t.Gateway4.IsValid() {
				w.s.addrs.remove(addrKey(t.Gateway4))
			}
		}
		return model.Stalef("address %s is in use", t.Gateway4)
	}
	return nil
}

// claimPlaces lists the tasks on their nodes and books what they reserve.
func (w *writer) claimPlaces(c *model.TasksPut, order []int32, claims []nodeClaim) {
	for len(order) > 0 {
		node := c.Tasks[order[0]].Node
		if node == 0 {
			order = order[1:]
			continue
		}
		tasks, _ := w.s.onNode.Get(node)
		for ; len(order) > 0 && c.Tasks[order[0]].Node == node; order = order[1:] {
			t := &c.Tasks[order[0]]
			l := listed{task: model.TaskID{Service: c.Service, Num: c.First + uint64(order[0])}, placeVer: w.stamp(1)}
			if t.Gateway4.IsValid() {
				l.addr = addrKey(t.Gateway4)
			}
			tasks = tasks.with(l)
		}
		w.s.onNode.Set(node, tasks)
	}
	for i := range claims {
		w.s.loads.Set(claims[i].node, claims[i].load)
	}
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
