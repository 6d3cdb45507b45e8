package schedule

import (
	"math"
	"net/netip"

	"github.com/skep-swarm/skep/internal/state"
)

// addrs is what the nodes have left of gateway addresses. Nearly always a node whose blocks are full gets another one,
// so nothing is asked of nodes that get no task, and the pool is asked only when a task comes to a node
// that is full. When there are no blocks left, addresses are a resource like any other.
type addrs struct {
	left   []int32 // by row; unknown until somebody asks
	blocks int     // that the pool has left; unknown until somebody asks
	dry    bool    // the pool has none left: who is full stays so
	pool   func(*state.Snapshot) int
}

const unknown = math.MinInt32

// reset begins a pass.
func (a *addrs) reset(n int) {
	if a.left == nil {
		a.left = make([]int32, n)
	}
	for i := range a.left {
		a.left[i] = unknown
	}
	a.blocks, a.dry = unknown, false
}

// addrsLeft is how many addresses node i has for tasks; those that rest count, for they are given when no others are left.
func (c *columns) addrsLeft(i int) int32 {
	if c.addrs.left[i] == unknown {
		c.addrs.left[i] = 0
		for _, b := range c.nodes[i].Blocks {
			c.addrs.left[i] += blockSize(b) - int32(c.snap.AddrsInUse(b))
		}
	}
	return c.addrs.left[i]
}

// blockSize is how many tasks can have an address of a block: all but the network, the gateway and the broadcast
// address.
func blockSize(b netip.Prefix) int32 { return int32(max(1<<min(32-b.Bits(), 30)-3, 0)) }

// newBlock is the size of a block of the pool.
func (c *columns) newBlock() int32 {
	const bits = 24
	pool := c.snap.Cluster().GatewayPool
	return blockSize(netip.PrefixFrom(pool.Addr(), max(bits, pool.Bits())))
}

// supply sees to it that node i has k addresses for tasks of a need: from blocks of the pool when its own are full. It
// reports false when the pool has too few left. What it has is the node's then, the pool is dry, and tasks that are
// not placed yet are to be placed anew.
func (c *columns) supply(n *need, i int, k int32) bool {
	a := &c.addrs
	if !n.addr || a.dry || a.pool == nil {
		return true
	}
	for k > c.addrsLeft(i) {
		if a.blocks == unknown {
			a.blocks = a.pool(c.snap)
		}
		if a.blocks <= 0 {
			a.dry = true
			return false
		}
		a.blocks--
		a.left[i] += c.newBlock()
	}
	return true
}

// supplyAll is supply for all nodes that are to get tasks.
func (c *columns) supplyAll(n *need, placed []int32) bool {
	for i, k := range placed {
		if k > 0 && !c.supply(n, i, k) {
			return false
		}
	}
	return true
}
