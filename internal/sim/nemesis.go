package sim

import (
	"math/rand/v2"
	"slices"
)

// nemesis makes faults for as long as the chaos lasts, and then heals them one by one, in any order.
type nemesis struct {
	w *world
}

func (n *nemesis) begin() {
	w := n.w
	if w.cfg.faults > 0 {
		n.later()
	}
	w.after(senderNemesis, w.cfg.chaos, n.heal)
}

func (n *nemesis) later() {
	w := n.w
	w.after(senderNemesis, int64(w.rng.ExpFloat64()*float64(w.cfg.faults))+ms, func() {
		if w.healing {
			return
		}
		n.strike()
		n.later()
	})
}

func (n *nemesis) strike() {
	w := n.w
	m := w.members[w.rng.IntN(len(w.members))]
	host := w.nodes[w.rng.IntN(len(w.nodes))]
	switch p := w.rng.IntN(100); {
	case p < 15:
		n.cut(link{m.id, senderNode + host.num})
	case p < 22:
		for _, o := range w.members {
			n.cut(link{o.id, senderNode + host.num})
		}
	case p < 32:
		if o := w.members[w.rng.IntN(len(w.members))]; o != m {
			n.cut(link{min(m.id, o.id), max(m.id, o.id)})
		}
	case p < 42:
		n.changeLeader()
	case p < 52:
		n.restart(m)
	case p < 64:
		if host.alive {
			host.stop()
			w.after(senderNemesis, w.between(100*ms, 40*second), func() { n.bringBack(host) })
		}
	case p < 72:
		if host.alive {
			host.cutPower()
			w.after(senderNemesis, w.between(2*second, 60*second), func() { n.bringBack(host) })
		}
	case p < 78:
		if w.cfg.steps {
			step := w.between(-20*second, 20*second)
			m.skew += step
			if step < 0 {
				w.note("manager %d: clock steps back by %d ms", uint64(m.id), uint64(-step/ms), 0)
			} else {
				w.note("manager %d: clock steps on by %d ms", uint64(m.id), uint64(step/ms), 0)
			}
		}
	case p < 84:
		n.killContainer(host)
	case p < 86:
		switch {
		case w.cfg.disasters:
			n.recover()
		case w.cfg.outages:
			n.outage()
		}
	case p < 90:
		w.note("manager %d reads its state back", uint64(m.id), 0, 0)
		m.reload()
	default:
		n.healOne()
	}
}

func (n *nemesis) cut(l link) {
	n.w.net.cut[l] = true
	n.w.note("link %d–%d is cut", uint64(l.a), uint64(l.b), 0)
}

// healOne mends one link, whichever comes first.
func (n *nemesis) healOne() {
	w := n.w
	links := n.links()
	if len(links) == 0 {
		return
	}
	l := links[w.rng.IntN(len(links))]
	delete(w.net.cut, l)
	w.note("link %d–%d is healed", uint64(l.a), uint64(l.b), 0)
	for _, m := range w.members {
		m.follow()
	}
}

func (n *nemesis) links() []link {
	var out []link
	for a := range len(n.w.members) + 1 {
		for b := range senderNode + len(n.w.nodes) + 1 {
			if l := (link{a, b}); n.w.net.cut[l] {
				out = append(out, l)
			}
		}
	}
	return out
}

func (n *nemesis) killContainer(host *node) {
	if !host.power {
		return
	}
	for _, id := range sortedTasks(host.tasks) {
		if t := host.tasks[id]; t.running && n.w.chance(.5) {
			n.w.note("t%d.%d: container is killed", uint64(id.Service), id.Num, 0)
			t.kill("killed")
			return
		}
	}
}

func (n *nemesis) bringBack(host *node) {
	if !host.alive && !host.gone && !host.lost {
		host.start()
	}
}

// changeLeader ends a lead and lets another begin, after an election.
func (n *nemesis) changeLeader() {
	w := n.w
	if w.log.leader != nil {
		w.log.leader.depose()
	}
	n.elect()
}

// elect makes some living member the leader after a while.
func (n *nemesis) elect() {
	w := n.w
	term := w.log.term
	w.after(senderNemesis, w.between(200*ms, 3*second), func() {
		if w.log.leader != nil || w.log.term != term {
			return
		}
		if m := w.members[w.rng.IntN(len(w.members))]; m.alive {
			m.lead()
			return
		}
		n.elect()
	})
}

// restart stops a member and starts it again from its snapshot.
func (n *nemesis) restart(m *member) {
	w := n.w
	if !m.alive {
		return
	}
	led := w.log.leader == m
	m.stop()
	if led {
		n.elect()
	}
	w.after(senderNemesis, w.between(200*ms, 20*second), func() { n.startAgain(m) })
}

func (n *nemesis) startAgain(m *member) {
	if !m.alive {
		m.reload()
		m.start()
	}
}

// loseOne takes a node away for good, in some seeds: whatever it was doing, the swarm must get on without it. The choice is
// made apart from all others, so that the other seeds are what they were.
func (n *nemesis) loseOne() {
	w := n.w
	r := rand.New(rand.NewPCG(w.opt.Seed, 0x1057))
	left := slices.DeleteFunc(slices.Clone(w.nodes), func(h *node) bool { return h.gone })
	if len(left) < 2 || r.IntN(3) > 0 {
		return
	}
	host := left[r.IntN(len(left))]
	host.lost = true
	end := host.stop
	if r.IntN(2) > 0 {
		end = host.cutPower
	}
	w.after(senderNemesis, r.Int64N(20*second), func() {
		if host.alive {
			end()
		}
	})
}

// heal ends all faults but one, a node after the other, and then the judge looks at the whole.
func (n *nemesis) heal() {
	w := n.w
	w.healing = true
	w.note("healing begins", 0, 0, 0)
	n.loseOne()
	for _, m := range w.members {
		w.after(senderNemesis, w.between(0, 5*second), func() { n.startAgain(m) })
	}
	for _, host := range w.nodes {
		w.after(senderNemesis, w.between(0, 10*second), func() { n.bringBack(host) })
	}
	var links func()
	links = func() {
		if n.healOne(); len(n.links()) > 0 {
			w.after(senderNemesis, w.between(0, second), links)
		}
	}
	links()
	w.after(senderNemesis, 6*second, func() {
		if w.log.leader == nil {
			n.elect()
		}
	})
	w.after(senderNemesis, 30*second, func() {
		w.users.mend()
		w.judge.await(w.now + 15*minute)
	})
}
