package sim

// network is who can reach whom. Cutting a link loses what is on it.
type network struct {
	w   *world
	cut map[link]bool
}

// link is between a member and another, or a member and a node (by its sender number).
type link struct{ a, b int }

func (n *network) linked(a, b *member) bool {
	if a == nil || b == nil || !a.alive || !b.alive || a.lost || b.lost {
		return false
	}
	return a == b || !n.cut[link{min(a.id, b.id), max(a.id, b.id)}]
}

func (n *network) reaches(from *node, m *member) bool {
	return from.alive && m.alive && !n.cut[link{m.id, senderNode + from.num}]
}

func (n *network) delay() int64 {
	w := n.w
	if w.fault(w.cfg.lag / 4) {
		return w.between(10*ms, 500*ms)
	}
	return w.between(ms/20, 3*ms)
}
