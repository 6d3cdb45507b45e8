package sim

import (
	"bytes"
	"hash/fnv"
	"time"

	"github.com/skep-swarm/skep/internal/manager"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
)

// lease is how long a node, or the leader, may be silent.
const lease = 15 * second

// backOff is the pause after a pass whose batch did not get into the log.
const backOff = 20 * ms

// member is a manager: its copy of the state, the sessions that it serves, and the planner while
// it leads.
type member struct {
	w     *world
	id    int
	alive bool
	lost  bool   // of a former life of the swarm: it knows of nobody any more
	life  uint64 // rises when it starts or stops: events of a former life do nothing
	snap  *state.Snapshot
	skew  int64 // of its clock

	applying bool
	contact  int64 // when it last heard of the leader
	sessions map[int]*session
	reports  []reportEntry
	flushing bool

	// Of a leader.
	planner *manager.Planner
	swarm   manager.Clock // the swarm's time, however its own clock steps
	watch   []replica.Applied
	base    *state.Snapshot // what the plan under way was computed from
	passing bool
	wakes   uint64
	heard   map[model.NodeID]int64
	up      map[model.NodeID]bool
	refused model.Time // when a plan was made of which a transaction was refused
}

func newMember(w *world, id int) *member {
	m := &member{w: w, id: id, snap: state.New(), sessions: map[int]*session{}}
	if w.cfg.skew > 0 {
		m.skew = w.between(-w.cfg.skew, w.cfg.skew)
	}
	return m
}

// now is the swarm's time on a leader, as its loop takes it.
func (m *member) now() model.Time { return m.swarm.Now(m.wall(), m.clock(), m.snap.Time()) }

func (m *member) wall() model.Time { return epoch + model.Time(m.w.now+m.skew) }

// clock is the moment for leases; it knows no steps.
func (m *member) clock() time.Time { return time.Unix(0, m.w.now) }

func (m *member) sender() int { return senderMember + m.id }

func (m *member) start() {
	m.alive = true
	m.life++
	m.contact = m.w.now
	m.applying = false
	m.w.note("manager %d starts at index %d", uint64(m.id), m.snap.Index(), 0)
	m.follow()
	m.tick(m.life)
}

func (m *member) stop() {
	if m.w.log.leader == m {
		m.depose()
	}
	m.alive = false
	m.life++
	m.reports, m.flushing = nil, false
	for _, id := range sortedKeys(m.sessions) {
		m.sessions[id].breakOff()
	}
	m.w.note("manager %d stops", uint64(m.id), 0, 0)
}

// reload replaces the replica by what a restart from its snapshot gives.
func (m *member) reload() {
	s, err := state.Decode(bytes.NewReader(m.w.judge.encode(m.snap)))
	if err != nil {
		m.w.fail("manager %d cannot restore its snapshot of index %d: %v", m.id, m.snap.Index(), err)
		return
	}
	m.snap = s
}

// follow applies the next entry after a while, if there is one within reach.
func (m *member) follow() {
	w := m.w
	if m.applying || !m.alive || m.lost || m.snap.Index() >= w.log.last() || w.log.leader != m && !w.net.linked(m, w.log.leader) {
		return
	}
	m.applying = true
	delay := w.between(ms/10, 3*ms)
	if w.chance(w.cfg.lag) {
		delay += w.between(5*ms, 300*ms)
	}
	life := m.life
	w.after(m.sender(), delay, func() {
		if m.life != life {
			return
		}
		m.applying = false
		if m.snap.Index() < w.log.last() {
			m.contact = w.now
			if behind := w.log.last() - m.snap.Index(); behind > 50 && !w.healing && w.chance(.3) {
				m.install()
			} else {
				m.apply()
			}
		}
		m.follow()
	})
}

// catchUp applies all that is agreed, as a new leader must.
func (m *member) catchUp() {
	for m.snap.Index() < m.w.log.last() {
		m.apply()
	}
}

func (m *member) apply() {
	w := m.w
	e := &w.log.entries[m.snap.Index()]
	b, err := state.DecodeBatch(e.data)
	if err != nil {
		w.fail("manager %d cannot read entry %d: %v", m.id, m.snap.Index()+1, err)
		return
	}
	before := m.snap
	after, out := before.Apply(before.Index()+1, b)
	m.snap = after
	w.judge.replicated(m)
	m.applied(replica.Applied{Before: before, After: after, Outcome: out})
}

// install takes a snapshot of the leader instead of the entries that it missed.
func (m *member) install() {
	if m.w.log.leader == nil || m.w.log.leader == m {
		return
	}
	s, err := state.Decode(bytes.NewReader(m.w.judge.encode(m.w.log.leader.snap)))
	if err != nil {
		m.w.fail("manager %d cannot read the leader's snapshot: %v", m.id, err)
		return
	}
	m.w.note("manager %d takes a snapshot of index %d", uint64(m.id), s.Index(), 0)
	before := m.snap
	m.snap = s
	m.applied(replica.Applied{Before: before, After: s})
}

func (m *member) applied(a replica.Applied) {
	for _, id := range sortedKeys(m.sessions) {
		m.sessions[id].touched(a)
	}
	if m.planner != nil {
		m.watch = append(m.watch, a)
		m.wake(m.w.between(ms/50, ms/2))
	}
}

// hash is a short form of a whole state.
func hashOf(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64() | 1
}

// lead makes a member the leader.
func (m *member) lead() {
	l := m.w.log
	l.term++
	l.leader = m
	m.catchUp()
	m.w.note("manager %d leads, term %d, index %d", uint64(m.id), l.term, m.snap.Index())
	m.planner = manager.NewPlanner(m.snap, m.clock(), func() time.Duration { return time.Duration(lease) }, m.w.quiet)
	m.watch, m.passing, m.wakes, m.swarm = nil, false, 0, manager.Clock{}
	m.heard, m.up = map[model.NodeID]int64{}, map[model.NodeID]bool{}
	m.wake(0)
	for _, o := range m.w.members {
		o.follow()
	}
}

// depose ends a member's lead.
func (m *member) depose() {
	m.w.log.leader = nil
	m.w.log.term++
	m.planner = nil
	m.w.note("manager %d leads no more", uint64(m.id), 0, 0)
}

// tick is what a manager does every second: tell the leader which nodes it sees, and mind leases.
func (m *member) tick(life uint64) {
	w := m.w
	w.after(m.sender(), second, func() {
		if m.life != life {
			return
		}
		m.tick(life)
		leader := w.log.leader
		if leader != nil && w.net.linked(m, leader) {
			m.contact = w.now
			for _, id := range sortedKeys(m.sessions) {
				if s := m.sessions[id]; w.now-s.heard < lease {
					leader.hear(s.node.id)
				}
			}
		}
		if w.now-m.contact > lease {
			for _, id := range sortedKeys(m.sessions) {
				m.sessions[id].breakOff()
			}
		}
		for _, id := range sortedKeys(m.sessions) {
			if s := m.sessions[id]; w.now-s.heard >= lease {
				s.breakOff()
			}
		}
		if leader == m {
			m.expire()
		}
		m.follow()
	})
}

// hear is the leader's news of a node.
func (m *member) hear(n model.NodeID) {
	m.heard[n] = m.w.now
	if !m.up[n] && m.planner != nil {
		m.up[n] = true
		m.planner.NodeUp(n, "")
		m.wake(ms)
	}
}

func (m *member) expire() {
	for _, n := range sortedKeys(m.heard) {
		if m.up[n] && m.w.now-m.heard[n] > lease {
			m.up[n] = false
			m.planner.NodeDown(n, "heartbeat failure")
			m.wake(ms)
		}
	}
}

// wake lets the leader plan in a while.
func (m *member) wake(delay int64) {
	m.wakes++
	n, term := m.wakes, m.w.log.term
	m.w.after(m.sender(), delay, func() {
		if m.w.log.leader == m && m.w.log.term == term && (m.wakes == n || len(m.watch) > 0) && !m.passing {
			m.pass()
		}
	})
}

// pass is one pass of the leader's loop, up to its first batch.
func (m *member) pass() {
	w := m.w
	held := 0
	if len(m.watch) > 0 && w.fault(w.cfg.stale) {
		held = 1 + w.rng.IntN(len(m.watch))
	}
	for _, a := range m.watch[:len(m.watch)-held] {
		m.planner.Applied(a)
	}
	m.watch = m.watch[len(m.watch)-held:]
	snap := w.mut.snapshot(m.snap)
	m.base = m.snap
	plan := m.planner.Plan(snap, m.now(), m.clock())
	w.note("manager %d plans at index %d: %d batches", uint64(m.id), m.snap.Index(), uint64(len(plan)))
	w.judge.planned(m, plan)
	if len(plan) > 0 {
		m.passing = true
		m.proposePlan(plan, w.log.term)
		return
	}
	m.sleep()
}

// sleep waits until something is due.
func (m *member) sleep() {
	if len(m.watch) > 0 {
		m.wake(ms / 10)
		return
	}
	wait := int64(m.planner.Wait(m.now(), m.clock()))
	if m.w.mut.forgetsTimer(m) {
		return
	}
	m.wake(wait)
}

func (m *member) proposePlan(plan []*model.Batch, term uint64) {
	w := m.w
	leads := func() bool { return w.log.leader == m && w.log.term == term }
	b := plan[0]
	sent := w.mut.batch(m, b)
	m.propose(sent, leads, func(out *model.Outcome, err error) {
		switch {
		case !leads():
			return
		case err != nil:
			m.planner.Failed()
			m.passing = false
			m.wake(backOff)
			return
		}
		for _, r := range out.Results {
			if r != nil {
				m.refused = b.Time
			}
		}
		m.planner.Took(b, out)
		if len(plan) > 1 {
			m.proposePlan(plan[1:], term)
			return
		}
		m.passing = false
		m.sleep()
	})
	w.judge.bases[sent.ID] = m.base
}
