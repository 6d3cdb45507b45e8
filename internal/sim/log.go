package sim

import (
	"encoding/binary"
	"errors"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// simLog is the agreed log, and the state after all of it as the judge sees it. What a majority is
// and how it agrees is Raft's affair; here a proposal has a fate.
type simLog struct {
	w       *world
	entries []entry // index i+1
	truth   *state.Snapshot
	leader  *member // nil while there is none
	term    uint64
	era     uint64 // rises when the swarm is taken up again from an older state
}

// entry is one agreed batch.
type entry struct {
	data []byte
	// hash is the state's after this entry, as the first replica that looked had it; 0 if none did.
	hash uint64
}

func newLog(w *world) *simLog { return &simLog{w: w, truth: state.New()} }

func (l *simLog) last() uint64 { return uint64(len(l.entries)) }

var (
	errUnknown     = errors.New("nobody knows whether the batch is in the log")
	errUnavailable = errors.New("there is no leader")
)

// proposal is a batch on its way, with those who want it.
type proposal struct {
	from *member
	data []byte
	// wanted tells whether anybody still waits; a proposal that nobody wants is not made again.
	wanted func() bool
	done   func(*model.Outcome, error)
}

// propose takes a member's batch to the log, again and again while its outcome is unknown. done is
// called once, with errUnavailable when there is no way to a leader.
func (m *member) propose(b *model.Batch, wanted func() bool, done func(*model.Outcome, error)) {
	w := m.w
	binary.BigEndian.PutUint64(b.ID[:], w.rng.Uint64())
	binary.BigEndian.PutUint64(b.ID[8:], w.rng.Uint64())
	data, err := state.EncodeBatch(b)
	if err != nil {
		w.fail("a batch cannot be encoded: %v", err)
		return
	}
	w.log.attempt(&proposal{m, data, wanted, done})
}

const proposeAgain = 50 * ms

func (l *simLog) attempt(p *proposal) {
	w, me := l.w, senderMember+p.from.id
	if !p.wanted() {
		p.done(nil, errUnavailable)
		return
	}
	era := l.era
	if l.leader == nil || !w.net.linked(p.from, l.leader) {
		w.after(me, w.between(1*ms, 20*ms), func() { p.done(nil, errUnavailable) })
		return
	}
	answered := false
	answer := func(delay int64, out *model.Outcome, err error) {
		w.after(me, delay, func() {
			switch {
			case answered:
			case err != nil:
				answered = true
				w.after(me, proposeAgain, func() { l.attempt(p) })
			default:
				answered = true
				p.done(out, nil)
			}
		})
	}
	way := int64(0)
	if p.from != l.leader {
		way = w.between(ms/10, 2*ms)
	}
	agree := way + w.between(ms/5, 2*ms)
	if w.chance(w.cfg.slow) {
		agree += w.between(20*ms, 400*ms)
	}
	term := l.term
	switch {
	case w.fault(w.cfg.lost):
		answer(w.between(50*ms, second), nil, errUnknown)
		return
	case w.fault(w.cfg.late):
		late := w.between(100*ms, 8*second)
		answer(w.between(50*ms, second), nil, errUnknown)
		w.after(senderLog, agree+late, func() {
			if l.era == era {
				l.commit(p.data)
			}
		})
		return
	}
	silent := w.fault(w.cfg.unknown)
	w.after(senderLog, agree, func() {
		// A leader that died meanwhile may have reached a majority or not.
		if l.era != era || l.term != term && w.chance(.5) {
			answer(w.between(50*ms, second), nil, errUnknown)
			return
		}
		out := l.commit(p.data)
		if silent || l.term != term || !w.net.linked(p.from, l.leader) {
			answer(w.between(50*ms, second), nil, errUnknown)
			return
		}
		answer(way, out, nil)
	})
}

// commit makes a batch the log's next entry.
func (l *simLog) commit(data []byte) *model.Outcome {
	b, err := state.DecodeBatch(data)
	if err != nil {
		l.w.fail("an entry of the log cannot be read: %v", err)
		return &model.Outcome{}
	}
	l.entries = append(l.entries, entry{data: data})
	index := l.last()
	before := l.truth
	after, out := before.Apply(index, b)
	l.truth = after
	l.w.trace.add(line{at: l.w.now, kind: "log %d:", a: index, batch: b, out: out})
	l.w.judge.committed(before, after, b, out)
	if l.leader != nil {
		l.leader.catchUp()
	}
	for _, m := range l.w.members {
		m.follow()
	}
	return out
}
