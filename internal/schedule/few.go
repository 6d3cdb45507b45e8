package schedule

import (
	"math/bits"
	"strings"
)

// buckets are the nodes by how many tasks they have in all, so that the least loaded ones are found
// without looking at the others.
type buckets struct {
	sets  []set // by total
	sizes []int
	least int // no bucket below has a node
}

// maxBuckets bounds the memory of buckets; a node with more tasks than this is in the last one's place and
// makes small groups take the long way.
const maxBuckets = 4096

func (c *columns) bucketed() *buckets {
	if c.buckets == nil {
		c.buckets = &buckets{}
		for i, t := range c.total {
			c.buckets.put(i, t, len(c.nodes))
		}
	}
	return c.buckets
}

func (b *buckets) put(i int, total int32, n int) {
	at := min(int(total), maxBuckets)
	for len(b.sets) <= at {
		b.sets, b.sizes = append(b.sets, nil), append(b.sizes, 0)
	}
	if b.sets[at] == nil {
		b.sets[at] = newSet(n)
	}
	b.sets[at].add(i)
	b.sizes[at]++
	b.least = min(b.least, at)
}

// addTotal counts k more tasks on node i.
func (c *columns) addTotal(i int, k int32) {
	old := c.total[i]
	c.total[i] += k
	if b := c.buckets; b != nil {
		at := min(int(old), maxBuckets)
		b.sets[at][i>>6] &^= 1 << (i & 63)
		b.sizes[at]--
		b.put(i, c.total[i], len(c.nodes))
		for b.least < len(b.sizes)-1 && b.sizes[b.least] == 0 {
			b.least++
		}
	}
}

// fewShare says when a group is small: fewer tasks than one for so many nodes.
const fewShare = 16

// placeFew places a small group of a service that has nothing anywhere: every task gets the node that has
// the fewest tasks of all, each another one, as filling the nodes would do. It reports false, and has
// done nothing, when the group is not of that sort or there are not enough such nodes.
func (p *planner) placeFew(g *group, out *txns) bool {
	n, c := g.need, p.nodes
	if len(n.spread) > 0 || len(g.tasks)*fewShare > len(c.nodes) || len(p.have.failed) > 0 {
		return false
	}
	fit := c.staticFit(n)
	rows := make([]int, 0, 8)
	b := c.bucketed()
	for total := b.least; total < len(b.sets) && total < maxBuckets && len(rows) < len(g.tasks); total++ {
		if b.sizes[total] == 0 {
			continue
		}
		for w, word := range b.sets[total] {
			for word &= fit[w]; word != 0 && len(rows) < len(g.tasks); word &= word - 1 {
				if i := w<<6 + bits.TrailingZeros64(word); c.takes(n, i) {
					rows = append(rows, i)
				}
			}
			if len(rows) == len(g.tasks) {
				break
			}
		}
	}
	if len(rows) < len(g.tasks) {
		return false
	}
	for _, i := range rows {
		if !c.supply(n, i, 1) {
			return false
		}
	}
	for k, i := range rows {
		p.take(n, i, 1)
		out.place(g.tasks[k], c.nodes[i], msgAssigned, c.assign(n, i))
	}
	return true
}

// staticFit is the set of nodes that pass those filters whose answer is the same for the whole pass.
func (c *columns) staticFit(n *need) set {
	var key strings.Builder
	for _, k := range n.constraints {
		key.WriteString(k.String())
		key.WriteByte(0)
	}
	for _, p := range n.platforms {
		key.WriteByte(1)
		key.WriteString(p.OS)
		key.WriteByte(0)
		key.WriteString(p.Architecture)
	}
	if s, ok := c.static[key.String()]; ok {
		return s
	}
	fit := append(set(nil), c.all...)
	for _, k := range []filterKind{filterReady, filterConstraints, filterPlatform} {
		c.apply(k, n, nil, fit)
	}
	c.static[key.String()] = fit
	return fit
}

// takes asks the filters whose answer changes with every task that is placed.
func (c *columns) takes(n *need, i int) bool {
	return c.room(n, nil, i, 1) > 0 && (len(n.ports) == 0 || c.portsFree(n, i))
}
