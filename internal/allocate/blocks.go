package allocate

import (
	"net/netip"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// NodeBlock is a block of the gateway pool for a node: the lowest one that no node has and no
// node reaches by another way. routes are the node's own, for one that has not joined yet.
// The error is Exhausted and names what is in the way.
func NodeBlock(snap *state.Snapshot, routes []netip.Prefix) (netip.Prefix, error) {
	return findBlock(snap, routes, nil)
}

// Node plans a node's first block: a transaction without changes when it has one. The error is that
// of NodeBlock.
func Node(snap *state.Snapshot, id model.NodeID) (model.Txn, error) {
	n := snap.Node(id)
	if n == nil || len(n.Blocks) > 0 {
		return model.Txn{}, nil
	}
	b, err := findBlock(snap, n.Routes, nil)
	if err != nil {
		return model.Txn{}, err
	}
	return blockTxn(n, []netip.Prefix{b}), nil
}

// grow gives a node another block.
func (a *allocator) grow(h *host) error {
	b, err := findBlock(a.snap, h.node.Routes, a.given)
	if err != nil {
		return err
	}
	h.blocks = append(slices.Clone(h.blocks), b)
	a.given = append(a.given, b)
	a.blocks = append(a.blocks, blockTxn(h.node, h.blocks))
	return nil
}

// blockTxn is guarded by the state's own refusal of overlapping blocks; a node's spec has no part
// in it.
func blockTxn(n *model.Node, blocks []netip.Prefix) model.Txn {
	return model.Txn{Changes: []model.Change{{SetNodeBlocks: &model.NodeBlocksSet{Node: n.ID, Blocks: blocks}}}}
}

// FreeBlocks counts the blocks of the gateway pool that nodes can still get.
func FreeBlocks(snap *state.Snapshot) (n int) {
	_, _ = walkBlocks(snap, nil, nil, func(netip.Prefix) bool { n++; return true })
	return n
}

// findBlock is the lowest free block that is not among those given.
func findBlock(snap *state.Snapshot, routes, given []netip.Prefix) (block netip.Prefix, err error) {
	full, err := walkBlocks(snap, routes, given, func(b netip.Prefix) bool { block = b; return false })
	if err == nil && !block.IsValid() {
		err = full()
	}
	return block, err
}

// walkBlocks calls yield for the pool's free blocks from the lowest on, until it says no. full makes the error of a
// pool that has none.
func walkBlocks(snap *state.Snapshot, routes, given []netip.Prefix, yield func(netip.Prefix) bool) (full func() error, err error) {
	c := snap.Cluster()
	if c == nil || !c.GatewayPool.IsValid() {
		return nil, model.Errorf(model.FailedPrecondition, "the swarm has no gateway pool")
	}
	pool := c.GatewayPool.Masked()
	// Routes of every node count: all of them must reach the block.
	taken, clash := slices.Clone(given), map[netip.Prefix]string{}
	avoid := func(rs []netip.Prefix, name string) {
		for _, r := range rs {
			// A default route is a route to anywhere, not to the pool.
			if r.Bits() > 0 && r.Overlaps(pool) {
				taken = append(taken, r)
				clash[r] = name
			}
		}
	}
	avoid(routes, "this node")
	nodes := 0
	for n := range snap.Nodes() {
		taken = append(taken, n.Blocks...)
		nodes += len(n.Blocks)
		avoid(withoutBlocks(n), "node "+n.Hostname())
	}
	slices.SortFunc(taken, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	block, ok := netip.PrefixFrom(pool.Addr(), max(blockBits, pool.Bits())), true
	for ok && pool.Overlaps(block) {
		at, hit := firstOverlap(taken, block)
		// One whose node was removed may have tasks of which nobody has said yet that they are dead.
		if !hit && snap.AddrsInUse(block) == 0 && !yield(block) {
			break
		}
		behind := last(block)
		if hit {
			// The search goes on behind what is in the way, and never back.
			taken = taken[at:]
			if l := last(taken[0]); l.Compare(behind) > 0 {
				behind = l
			}
		}
		block, ok = blockAfter(behind, block.Bits())
	}
	return func() error { return exhausted(pool, nodes+len(given), clash) }, nil
}

// blockAfter is the first whole block behind an address; ok is false at the end of all addresses.
func blockAfter(a netip.Addr, bits int) (b netip.Prefix, ok bool) {
	if a = a.Next(); !a.IsValid() {
		return netip.Prefix{}, false
	}
	if b = netip.PrefixFrom(a, bits).Masked(); b.Addr() == a {
		return b, true
	}
	if a = last(b).Next(); !a.IsValid() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, bits), true
}

// firstOverlap finds the first of the sorted prefixes that overlaps b.
func firstOverlap(sorted []netip.Prefix, b netip.Prefix) (int, bool) {
	for i, p := range sorted {
		if p.Overlaps(b) {
			return i, true
		}
		if p.Addr().Compare(last(b)) > 0 {
			break
		}
	}
	return 0, false
}

// last is the highest address of an IPv4 prefix.
func last(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(a)
}

// withoutBlocks are a node's routes without those that skep made for the nodes' own blocks.
func withoutBlocks(n *model.Node) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(n.Routes), func(r netip.Prefix) bool { return slices.Contains(n.Blocks, r) })
}

func exhausted(pool netip.Prefix, nodes int, clash map[netip.Prefix]string) error {
	var worst netip.Prefix
	for r := range clash {
		if !worst.IsValid() || r.Bits() < worst.Bits() || r.Bits() == worst.Bits() && r.Addr().Less(worst.Addr()) {
			worst = r
		}
	}
	if worst.IsValid() {
		return model.Errorf(model.Exhausted, "gateway pool %s has no free /%d: %d given to nodes, and %s reaches %s by another way", pool, blockBits, nodes, clash[worst], worst)
	}
	return model.Errorf(model.Exhausted, "gateway pool %s has no free /%d: all %d given to nodes; give the swarm a larger pool", pool, blockBits, nodes)
}

// Gateway6 is a task's IPv6 address: the node's /64 with the whole IPv4 address as its host part,
// unique however many blocks the node has. It is invalid when the node has no prefix.
func Gateway6(prefix netip.Prefix, v4 netip.Addr) netip.Addr {
	if !prefix.IsValid() || !v4.Is4() {
		return netip.Addr{}
	}
	b, h := prefix.Masked().Addr().As16(), v4.As4()
	copy(b[12:], h[:])
	return netip.AddrFrom16(b)
}
