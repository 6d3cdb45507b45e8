package sim

import (
	"bytes"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// recover takes the swarm up again from what one of its managers has, as from a backup or by force-new-cluster:
// what was agreed on since is forgotten, and a new incarnation begins. Now and then a manager of the former life
// is still there for a while, and serves nodes.
func (n *nemesis) recover() {
	w := n.w
	from := w.members[w.rng.IntN(len(w.members))]
	if from.snap.Cluster() == nil || from.snap.NumNodes() < 2 {
		return
	}
	base := w.copied(from.snap)
	old := w.members[w.rng.IntN(len(w.members))]
	if old.alive && w.zombie == nil && w.chance(.5) {
		n.outlives(old)
	}
	for _, m := range w.members {
		if m.alive {
			m.stop()
		}
	}
	w.note("the swarm is taken up again at index %d of %d", base.Index(), w.log.last(), 0)
	w.log.takeUp(base)
	w.judge.takeUp(base)
	c := *base.Cluster()
	w.lives++
	c.Incarnation = w.lives
	w.commitNow("recover", model.Change{PutCluster: &c})
	for _, m := range w.members {
		m.snap = w.copied(base)
		w.after(senderNemesis, w.between(100*ms, 5*second), func() { n.startAgain(m) })
	}
	n.elect()
	w.after(senderUser, w.between(second, 10*second), w.users.missing)
}

// outlives lets a manager go on as one of the swarm's former life, and puts an empty one in its place.
func (n *nemesis) outlives(m *member) {
	w := n.w
	if w.log.leader == m {
		m.depose()
	}
	m.lost = true
	w.zombie = m
	w.note("manager %d lives on in the swarm's former life", uint64(m.id), 0, 0)
	for i, o := range w.members {
		if o == m {
			w.members[i] = newMember(w, m.id)
		}
	}
	w.after(senderNemesis, w.between(5*second, 40*second), func() {
		m.stop()
		w.zombie = nil
	})
}

// copied is a state as it comes out of a file.
func (w *world) copied(s *state.Snapshot) *state.Snapshot {
	out, err := state.Decode(bytes.NewReader(w.judge.encode(s)))
	if err != nil {
		w.fail("a snapshot of index %d cannot be restored: %v", s.Index(), err)
		return s
	}
	return out
}

// takeUp forgets what was agreed on after a state.
func (l *simLog) takeUp(base *state.Snapshot) {
	l.entries = l.entries[:base.Index():base.Index()]
	l.truth = base
	l.era++
	l.term++
	l.leader = nil
}

// takeUp opens the judge's books again at a state.
func (j *judge) takeUp(base *state.Snapshot) {
	clear(j.addrs)
	clear(j.freed)
	clear(j.bases)
	clear(j.downAt)
	clear(j.waiting)
	for a, r := range j.rests {
		switch {
		case !base.Resting(a, base.Time()):
			delete(j.rests, a)
		case r.since > base.Time():
			j.rests[a] = rest{since: base.Time(), unsure: true} // freed again in what is forgotten
		}
	}
	for t := range base.AllTasks() {
		if booked(t) && t.Gateway4.IsValid() {
			j.addrs[t.Gateway4] = t.ID
		}
	}
}

// outage lets many hosts lose power at once.
func (n *nemesis) outage() {
	w := n.w
	w.note("many hosts lose power", 0, 0, 0)
	for _, h := range w.nodes {
		if h.alive && w.chance(.7) {
			h.cutPower()
			w.after(senderNemesis, w.between(10*second, 120*second), func() { n.bringBack(h) })
		}
	}
}
