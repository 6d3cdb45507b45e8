package manager

import (
	"container/heap"
	"maps"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
)

// dirty is what has to be planned: services that were touched, and services whose time has come.
type dirty struct {
	services map[model.ServiceID]struct{}
	nodes    map[model.NodeID]struct{}
	// waiting are the services with tasks that found no node: whatever frees capacity or changes
	// a node makes them dirty.
	waiting map[model.ServiceID]struct{}
	// gated are the services that wait for others: whatever happens to any service or node makes them dirty. They are few, and not
	// so for long.
	gated  map[model.ServiceID]struct{}
	timers timers
	// expected are the services, by log index, whose tasks in that entry are all that was planned for them.
	expected map[uint64]map[model.ServiceID]bool
}

func newDirty(s *state.Snapshot) *dirty {
	d := &dirty{services: map[model.ServiceID]struct{}{}, nodes: map[model.NodeID]struct{}{}, waiting: map[model.ServiceID]struct{}{}, gated: map[model.ServiceID]struct{}{}, timers: timers{at: map[model.ServiceID]*timer{}},
		expected: map[uint64]map[model.ServiceID]bool{}}
	d.everything(s)
	return d
}

// everything marks all services and nodes, those too that are gone but left tasks behind.
func (d *dirty) everything(s *state.Snapshot) {
	for v := range s.Services() {
		d.services[v.ID] = struct{}{}
	}
	for id, ok := s.NextServiceWithTasks(1); ok; id, ok = s.NextServiceWithTasks(id + 1) {
		d.services[id] = struct{}{}
	}
	for n := range s.Nodes() {
		d.nodes[n.ID] = struct{}{}
	}
}

// expect says that the entry at a log index is the leader's own plan. The services that settled are not planned
// again for the tasks that it made; what else is done to them in it, or in any other entry, counts as ever.
func (d *dirty) expect(index uint64, settled map[model.ServiceID]bool) {
	if len(settled) > 0 {
		d.expected[index] = settled
	}
}

// applied marks what one step of the state concerns.
func (d *dirty) applied(a replica.Applied) {
	settled := d.expected[a.After.Index()]
	if len(d.expected) > 0 {
		maps.DeleteFunc(d.expected, func(index uint64, _ map[model.ServiceID]bool) bool { return index <= a.After.Index() })
	}
	if a.Outcome == nil {
		d.everything(a.After)
		return
	}
	count := false
	for _, k := range a.Outcome.Touched {
		switch k.Kind {
		case model.KindService:
			maps.Copy(d.services, d.gated)
			d.services[k.Service()] = struct{}{}
			if released(a, k.Service()) {
				d.wakeWaiting()
			}
		case model.KindTask:
			maps.Copy(d.services, d.gated)
			if settled[model.ServiceID(k.A)] {
				continue
			}
			d.services[model.ServiceID(k.A)] = struct{}{}
			if freed(a, k.Task()) {
				d.wakeWaiting()
			}
		case model.KindNode:
			d.node(a, k.Node())
			count = count || recounts(a, k.Node())
		case model.KindNetwork:
			d.wakeWaiting()
		case model.KindCluster:
			d.everything(a.After)
		}
	}
	if count {
		d.down(a.After)
	}
}

// recounts reports whether a node came, went, or changed between up and down in this step.
func recounts(a replica.Applied, id model.NodeID) bool {
	before, after := a.Before.Node(id), a.After.Node(id)
	return before == nil || after == nil || before.State != after.State
}

// down marks the services that have tasks on nodes that are down: what becomes of those hangs on how
// many other nodes are.
func (d *dirty) down(s *state.Snapshot) {
	for n := range s.Nodes() {
		if n.State != swarm.NodeStateDown {
			continue
		}
		for t := range s.TasksOnNode(n.ID) {
			d.services[t.ID.Service] = struct{}{}
		}
	}
}

// freed reports whether a task gave its place up in this step.
func freed(a replica.Applied, id model.TaskID) bool {
	before := a.Before.Task(id)
	if before == nil || before.Node == 0 || before.State.Terminal() {
		return false
	}
	after := a.After.Task(id)
	return after == nil || after.State.Terminal()
}

// released reports whether a service gave published ports or virtual addresses up in this step.
func released(a replica.Applied, id model.ServiceID) bool {
	before, after := a.Before.Service(id), a.After.Service(id)
	switch {
	case before == nil || len(before.Ports)+len(before.VIPs) == 0:
		return false
	case after == nil:
		return true
	}
	return !slices.Equal(before.Ports, after.Ports) || !slices.Equal(before.VIPs, after.VIPs)
}

func (d *dirty) node(a replica.Applied, id model.NodeID) {
	d.nodes[id] = struct{}{}
	d.wakeWaiting()
	maps.Copy(d.services, d.gated) // an update leaves out what is on paused nodes
	for t := range a.After.TasksOnNode(id) {
		d.services[t.ID.Service] = struct{}{}
	}
	for v := range a.After.Services() {
		if mode := v.Spec().Mode; mode.Global != nil || mode.GlobalJob != nil {
			d.services[v.ID] = struct{}{}
		}
	}
}

func (d *dirty) wakeWaiting() { maps.Copy(d.services, d.waiting) }

// take empties the set of services and returns it, due ones included, in order.
func (d *dirty) take(now model.Time) []model.ServiceID {
	for {
		id, ok := d.timers.due(now)
		if !ok {
			break
		}
		d.services[id] = struct{}{}
	}
	out := slices.Sorted(maps.Keys(d.services))
	clear(d.services)
	return out
}

// timers says when each service wants to be planned again.
type timers struct {
	at    map[model.ServiceID]*timer
	queue timerQueue
}

type timer struct {
	service model.ServiceID
	at      model.Time
	pos     int
}

// set replaces a service's time; 0 means none.
func (t *timers) set(id model.ServiceID, at model.Time) {
	old := t.at[id]
	switch {
	case old == nil && at != 0:
		n := &timer{service: id, at: at}
		t.at[id] = n
		heap.Push(&t.queue, n)
	case old != nil && at == 0:
		heap.Remove(&t.queue, old.pos)
		delete(t.at, id)
	case old != nil:
		old.at = at
		heap.Fix(&t.queue, old.pos)
	}
}

// next is the earliest time, 0 for none.
func (t *timers) next() model.Time {
	if len(t.queue) == 0 {
		return 0
	}
	return t.queue[0].at
}

// due takes one service out whose time has come.
func (t *timers) due(now model.Time) (model.ServiceID, bool) {
	if len(t.queue) == 0 || t.queue[0].at > now {
		return 0, false
	}
	n := heap.Pop(&t.queue).(*timer)
	delete(t.at, n.service)
	return n.service, true
}

type timerQueue []*timer

func (q timerQueue) Len() int           { return len(q) }
func (q timerQueue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q timerQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].pos, q[j].pos = i, j
}
func (q *timerQueue) Push(x any) {
	n := x.(*timer)
	n.pos = len(*q)
	*q = append(*q, n)
}
func (q *timerQueue) Pop() any {
	n := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return n
}
