package schedule

import (
	"math/bits"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// set is a set of nodes by their row.
type set []uint64

func newSet(n int) set       { return make(set, (n+63)/64) }
func (s set) add(i int)      { s[i>>6] |= 1 << (i & 63) }
func (s set) has(i int) bool { return s[i>>6]&(1<<(i&63)) != 0 }
func (s set) intersect(o set) {
	for i := range s {
		s[i] &= o[i]
	}
}
func (s set) len() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// each calls f for the rows of the set, in order.
func (s set) each(f func(i int)) {
	for w, word := range s {
		for word != 0 {
			f(w<<6 + bits.TrailingZeros64(word))
			word &= word - 1
		}
	}
}

// columns are the nodes as dense rows, with what earlier groups of the same pass took.
type columns struct {
	snap  *state.Snapshot
	nodes []*model.Node
	rows  []int32              // by node number, row+1
	index map[model.NodeID]int // instead, when numbers are few and far between
	all   set
	ready set
	has   []capacity // what the node has in all
	cpu   []int64    // free
	mem   []int64
	total []int32 // tasks of any service
	addrs addrs

	matches   map[string]set // by constraint
	platforms map[swarm.Platform]set
	claimed   map[model.HostPort]set // by this pass
	generic   map[string]*genericColumn
	trees     map[string]*branch
	static    map[string]set // by the part of a need that does not change in a pass
	buckets   *buckets       // made when the first small group comes
}

type capacity struct{ cpu, mem int64 }

// columnsAfter are the columns of a snapshot. They are made of those of an earlier pass, which are used up: small
// services are planned in swarms of many nodes, and what nothing happened to is not even looked at.
func columnsAfter(snap *state.Snapshot, old *columns) *columns {
	if old != nil && old.follow(snap) {
		old.load()
		return old
	}
	n := snap.NumNodes()
	c := &columns{
		snap: snap, nodes: make([]*model.Node, 0, n), ready: newSet(n),
		has: make([]capacity, n), cpu: make([]int64, n), mem: make([]int64, n), total: make([]int32, n),
		matches: map[string]set{}, platforms: map[swarm.Platform]set{}, trees: map[string]*branch{}, static: map[string]set{},
	}
	for node := range snap.Nodes() {
		i := len(c.nodes)
		c.nodes = append(c.nodes, node)
		c.read(i)
	}
	c.number()
	c.load()
	return c
}

// read takes from a node what reports and leases change all the time, and reports whether it takes tasks.
func (c *columns) read(i int) (ready bool) {
	node := c.nodes[i]
	c.has[i] = capacity{node.Description.Resources.NanoCPUs, node.Description.Resources.MemoryBytes}
	c.ready[i>>6] &^= 1 << (i & 63)
	if ready = node.State == swarm.NodeStateReady && node.Spec.Availability == swarm.NodeAvailabilityActive; ready {
		c.ready.add(i)
	}
	return ready
}

// follow brings the rows up to a later snapshot, and reports whether that could be done: what depends on the nodes'
// specs and descriptions is made anew when one of these has changed.
func (c *columns) follow(snap *state.Snapshot) bool {
	if snap.NumNodes() != len(c.nodes) {
		return false
	}
	i, same, readiness := 0, true, true
	for node := range snap.Nodes() {
		if was := c.nodes[i]; node != was {
			if same = alike(node, was); !same {
				break
			}
			c.nodes[i] = node
			wasReady := c.ready.has(i)
			readiness = c.read(i) == wasReady && readiness
		}
		i++
	}
	if !readiness || len(c.static) > maxKept {
		clear(c.static)
	}
	if len(c.matches)+len(c.platforms) > maxKept {
		clear(c.matches)
		clear(c.platforms)
	}
	if len(c.trees) > maxTrees {
		clear(c.trees)
	}
	c.snap = snap
	return same
}

// load begins a pass: nothing is taken but what the snapshot says.
func (c *columns) load() {
	for i, has := range c.has {
		c.cpu[i], c.mem[i] = has.cpu, has.mem
	}
	clear(c.total)
	c.addrs.reset(len(c.nodes))
	for id, load := range c.snap.Loads() {
		if i, ok := c.row(id); ok {
			c.cpu[i] -= load.NanoCPUs
			c.mem[i] -= load.MemoryBytes
			c.total[i] = int32(load.Tasks)
		}
	}
	c.claimed, c.generic, c.buckets = map[model.HostPort]set{}, map[string]*genericColumn{}, nil
}

// maxKept bounds the sets that are kept from pass to pass, and maxTrees the spread trees, which are larger.
const (
	maxKept  = 4096
	maxTrees = 256
)

// alike reports whether two states of a node are the same to filters; reports and leases make new ones
// all the time.
func alike(a, b *model.Node) bool {
	return a == b || a.ID == b.ID && a.SpecVersion == b.SpecVersion && a.DescVersion == b.DescVersion && a.Addr == b.Addr
}

// number gives the nodes their rows.
func (c *columns) number() {
	n := len(c.nodes)
	c.all = newSet(n)
	if last := n - 1; last >= 0 && uint64(c.nodes[last].ID) <= uint64(8*n+1024) {
		c.rows = make([]int32, c.nodes[last].ID+1)
	} else {
		c.index = make(map[model.NodeID]int, n)
	}
	for i, node := range c.nodes {
		c.all.add(i)
		if c.rows != nil {
			c.rows[node.ID] = int32(i + 1)
		} else {
			c.index[node.ID] = i
		}
	}
}

// row is the place of a node in the columns.
func (c *columns) row(id model.NodeID) (int, bool) {
	if c.rows == nil {
		i, ok := c.index[id]
		return i, ok
	}
	if uint64(id) >= uint64(len(c.rows)) || c.rows[id] == 0 {
		return 0, false
	}
	return int(c.rows[id] - 1), true
}

// match is the set of nodes that satisfy a constraint; many services share a few of them.
func (c *columns) match(k model.Constraint) set {
	name := k.String()
	if s, ok := c.matches[name]; ok {
		return s
	}
	s := newSet(len(c.nodes))
	byID := strings.EqualFold(k.Key, "node.id")
	for i, n := range c.nodes {
		id := ""
		if cl := c.snap.Cluster(); byID && cl != nil {
			id = cl.Namer().NodeID(n.ID)
		}
		if k.Match(n, id) {
			s.add(i)
		}
	}
	c.matches[name] = s
	return s
}

// platform is the set of nodes that run one of the platforms.
func (c *columns) platform(ps []swarm.Platform) set {
	s := newSet(len(c.nodes))
	for _, p := range ps {
		one, ok := c.platforms[p]
		if !ok {
			one = newSet(len(c.nodes))
			for i, n := range c.nodes {
				if model.PlatformMatches([]swarm.Platform{p}, n.Description.Platform) {
					one.add(i)
				}
			}
			c.platforms[p] = one
		}
		for i := range s {
			s[i] |= one[i]
		}
	}
	return s
}

func (c *columns) claim(p model.HostPort, i int) {
	if c.claimed[p] == nil {
		c.claimed[p] = newSet(len(c.nodes))
	}
	c.claimed[p].add(i)
}

// portsFree reports whether node i has all the ports to give.
func (c *columns) portsFree(n *need, i int) bool {
	for _, p := range n.ports {
		if s := c.claimed[p]; s != nil && s.has(i) {
			return false
		}
		for _, clash := range c.nodes[i].PortClashes {
			if clash.Protocol == p.Protocol && uint32(clash.Port) == p.Port {
				return false
			}
		}
		if slices.Contains(c.snap.Load(c.nodes[i].ID).HostPorts, p) {
			return false
		}
	}
	return true
}

// room is how many more tasks of the need node i can hold, or most when it can hold that many; the other filters have
// passed. Without have, the service has none anywhere.
func (c *columns) room(n *need, have *counts, i int, most int32) int32 {
	r := int64(most)
	r = min(r, share(c.cpu[i], n.cpu, r))
	r = min(r, share(c.mem[i], n.mem, r))
	for _, g := range n.generic {
		r = min(r, c.genericOf(g.Kind).free[i]/g.N)
	}
	if n.maxReplicas > 0 && have != nil {
		r = min(r, int64(n.maxReplicas-have.tasks[i]))
	}
	if len(n.ports) > 0 {
		r = min(r, 1)
	}
	if n.addr && c.addrs.dry {
		r = min(r, int64(c.addrsLeft(i)))
	}
	return int32(max(r, 0))
}

// share is how often each goes into free, or most. Nearly always it is most, which a multiplication tells in a tenth of
// the time that a division takes.
func share(free, each, most int64) int64 {
	if each <= 0 {
		return most
	}
	if hi, lo := bits.Mul64(uint64(each), uint64(most)); hi == 0 && free >= 0 && lo <= uint64(free) {
		return most
	}
	return free / each
}
