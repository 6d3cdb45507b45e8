package schedule

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// This file is a scheduler as one would write it first: it looks at every node for every task, and shares nothing with
// the real one but the question. TestPlacementEqualsOneAtATime compares them.

// one places a service's tasks one by one.
func one(c *cluster, id model.ServiceID) {
	for t := range c.snap.Tasks(id) {
		if t.State >= model.StateAssigned {
			continue
		}
		var best *model.Node
		for n := range c.snap.Nodes() {
			if fits(c, id, n) && (best == nil || slices.Compare(rank(c, id, n), rank(c, id, best)) < 0) {
				best = n
			}
		}
		if best != nil {
			put(c, t.ID, best)
		}
	}
}

// put places a task with the generic resources that the node has left, in its order.
func put(c *cluster, id model.TaskID, n *model.Node) {
	var given []swarm.GenericResource
	for kind, count := range wantedGeneric(c, id.Service) {
		left := freeGeneric(c, n)[kind]
		if left.names == nil {
			given = append(given, model.Generic{Kind: kind, N: count}.API())
		}
		for _, name := range left.names[:min(int(count), len(left.names))] {
			given = append(given, model.Generic{Kind: kind, Name: name, N: 1}.API())
		}
	}
	place := &model.TaskPlaceSet{Task: id, Node: n.ID, Generic: given}
	if len(n.Blocks) > 0 {
		place.Gateway4 = freeAddr(c, n)
	}
	c.do(model.Change{SetTaskPlace: place})
}

// freeAddr is the first address of a node's blocks that no task has; invalid when there is none.
func freeAddr(c *cluster, n *model.Node) netip.Addr {
	for _, b := range n.Blocks {
		for a := b.Addr().Next().Next(); b.Contains(a.Next()); a = a.Next() {
			if !c.snap.AddrInUse(a) {
				return a
			}
		}
	}
	return netip.Addr{}
}

// history places some of a service's tasks on any nodes that fit, and lets some of them fail there.
func history(c *cluster, r *rand.Rand, id model.ServiceID) {
	if r.IntN(2) == 0 {
		return
	}
	favourite := model.NodeID(1 + r.IntN(int(c.snap.LastNode()))) // has most of the failures
	for t := range c.snap.Tasks(id) {
		n := c.snap.Node(favourite)
		if r.IntN(4) == 0 {
			n = c.snap.Node(model.NodeID(1 + r.IntN(int(c.snap.LastNode()))))
		}
		if r.IntN(3) == 0 || !fits(c, id, n) {
			continue
		}
		put(c, t.ID, n)
		if r.IntN(4) > 0 {
			c.do(model.Change{Report: &model.Report{Node: n.ID, Session: 1, Seq: c.index, Tasks: []model.TaskReport{{Task: t.ID, State: model.StateFailed}}}})
		}
	}
}

// fits asks a node all the questions.
func fits(c *cluster, id model.ServiceID, n *model.Node) bool {
	spec := c.snap.Service(id).Spec()
	if n.State != swarm.NodeStateReady || n.Spec.Availability != swarm.NodeAvailabilityActive {
		return false
	}
	cpu, mem, mine := n.Description.Resources.NanoCPUs, n.Description.Resources.MemoryBytes, uint64(0)
	for t := range alive(c, n.ID) {
		other := c.snap.Service(t.ID.Service).Spec()
		if r := other.TaskTemplate.Resources; r != nil && r.Reservations != nil {
			cpu, mem = cpu-r.Reservations.NanoCPUs, mem-r.Reservations.MemoryBytes
		}
		if port := hostPort(spec); port != 0 && port == hostPort(other) {
			return false
		}
		if t.ID.Service == id {
			mine++
		}
	}
	if r := spec.TaskTemplate.Resources.Reservations; r.NanoCPUs > 0 && r.NanoCPUs > cpu || r.MemoryBytes > 0 && r.MemoryBytes > mem {
		return false
	}
	for kind, count := range wantedGeneric(c, id) {
		if freeGeneric(c, n)[kind].count < count {
			return false
		}
	}
	if c.scarce && !freeAddr(c, n).IsValid() {
		return false
	}
	p := spec.TaskTemplate.Placement
	for _, expr := range p.Constraints {
		if !holds(expr, n) {
			return false
		}
	}
	if len(p.Platforms) > 0 && n.Description.Platform.Architecture != "x86_64" {
		return false // the test asks for no other
	}
	return p.MaxReplicas == 0 || mine < p.MaxReplicas
}

// holds reads the constraints that randomNeed makes.
func holds(expr string, n *model.Node) bool {
	word := strings.Fields(expr)
	equal := false
	switch word[0] {
	case "node.labels.zone":
		equal = n.Spec.Labels["zone"] == word[2]
	case "engine.labels.rack":
		equal = n.Description.Engine.Labels["rack"] == word[2]
	case "node.hostname":
		equal = n.Description.Hostname == word[2]
	case "node.role":
		equal = string(n.Spec.Role) == word[2]
	case "node.ip":
		equal = strings.HasPrefix(n.Addr, "10.0.") // 10.0.0.0/16
	case "node.platform.arch":
		equal = n.Description.Platform.Architecture == word[2]
	}
	return equal == (word[1] == "==")
}

// rank is what single choices compare, the least wins. The tree of preferences comes first: per preference the branch that
// has the fewest tasks of the service, then of all, then by name; within the last branch the node where the service does
// not keep failing, then likewise.
func rank(c *cluster, id model.ServiceID, n *model.Node) []int {
	among := slices.Collect(c.snap.Nodes())
	var out []int
	for _, pref := range c.snap.Service(id).Spec().TaskTemplate.Placement.Preferences {
		value := func(n *model.Node) string {
			if name, ok := strings.CutPrefix(pref.Spread.SpreadDescriptor, "node.labels."); ok {
				return n.Spec.Labels[name]
			}
			return n.Description.Engine.Labels[strings.TrimPrefix(pref.Spread.SpreadDescriptor, "engine.labels.")]
		}
		var tasks, total int
		smaller := map[string]bool{}
		for _, o := range among {
			if value(o) < value(n) {
				smaller[value(o)] = true
			}
		}
		among = slices.DeleteFunc(among, func(o *model.Node) bool { return value(o) != value(n) })
		for _, o := range among {
			t, all := load(c, id, o.ID)
			tasks, total = tasks+t, total+all
		}
		out = append(out, tasks, total, len(smaller))
	}
	tasks, total := load(c, id, n.ID)
	failures := 0
	for t := range c.snap.Tasks(id) {
		if t.Node == n.ID && t.State == model.StateFailed && testTime-t.StatusAt < failureWindow {
			failures++
		}
	}
	if failures < 5 {
		failures = 0
	}
	return append(out, failures, tasks, total, int(n.ID))
}

// load counts the tasks on a node: of a service, and of all.
func load(c *cluster, id model.ServiceID, n model.NodeID) (tasks, total int) {
	for t := range alive(c, n) {
		if total++; t.ID.Service == id {
			tasks++
		}
	}
	return tasks, total
}

// alive goes through the tasks that are on a node and have not ended.
func alive(c *cluster, n model.NodeID) func(yield func(*model.Task) bool) {
	return func(yield func(*model.Task) bool) {
		for id := model.ServiceID(1); id <= c.snap.LastService(); id++ {
			for t := range c.snap.Tasks(id) {
				if t.Node == n && t.State < model.StateComplete && !yield(t) {
					return
				}
			}
		}
	}
}

// left is what a node has left of a generic resource: so many, and their names when they have some.
type left struct {
	count int64
	names []string
}

func freeGeneric(c *cluster, n *model.Node) map[string]left {
	taken, out := map[model.Generic]int64{}, map[string]left{}
	for t := range alive(c, n.ID) {
		for _, r := range t.Generic {
			g := model.GenericOf(r)
			taken[model.Generic{Kind: g.Kind, Name: g.Name}] += g.N
		}
	}
	for _, r := range n.Description.Resources.GenericResources {
		g := model.GenericOf(r)
		l, used := out[g.Kind], taken[model.Generic{Kind: g.Kind, Name: g.Name}]
		if l.count += g.N - used; g.Name != "" && used == 0 {
			l.names = append(l.names, g.Name)
		}
		out[g.Kind] = l
	}
	return out
}

func wantedGeneric(c *cluster, id model.ServiceID) map[string]int64 {
	out := map[string]int64{}
	for _, r := range c.snap.Service(id).Spec().TaskTemplate.Resources.Reservations.GenericResources {
		out[r.DiscreteResourceSpec.Kind] += r.DiscreteResourceSpec.Value
	}
	return out
}

// hostPort is the one that randomNeed may give a service.
func hostPort(s *swarm.ServiceSpec) uint32 {
	if s.EndpointSpec == nil {
		return 0
	}
	return s.EndpointSpec.Ports[0].PublishedPort
}
