package sim

import (
	"cmp"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
)

// sortedKeys are a map's keys in order: the order of a map must not decide anything.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func sortedTasks[V any](m map[model.TaskID]V) []model.TaskID {
	keys := make([]model.TaskID, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b model.TaskID) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Num, b.Num))
	})
	return keys
}

// place is a place in the cluster's history.
type place struct{ incarnation, index uint64 }

func (p place) before(o place) bool {
	return p.incarnation < o.incarnation || p.incarnation == o.incarnation && p.index < o.index
}

func placeOf(s *state.Snapshot) place { return place{s.Cluster().Incarnation, s.Index()} }

// order is a task as a node is told of it.
type order struct {
	id      model.TaskID
	desired model.TaskState
	state   model.TaskState
	health  model.Health
	image   string
	stop    int64 // grace period
}

// assignments is what a manager tells a node.
type assignments struct {
	at       place
	complete bool
	tasks    []order
	removed  []model.TaskID
}

// told is what of a task the node acts on.
type told struct {
	desired  model.TaskState
	placeVer uint64
}

// session is a node's conversation with a member, both ends of it. It delivers in order or breaks.
type session struct {
	w       *world
	m       *member
	node    *node
	num     uint64
	open    bool
	toNode  int64 // when the last message to the node arrives, and to the manager
	toMgr   int64
	heard   int64 // by the manager
	told    map[model.TaskID]told
	due     map[model.TaskID]struct{}
	sending bool
	sentAt  place
}

// send delivers a message after the way's delay, behind those that were sent before.
func (s *session) send(sender int, last *int64, do func()) {
	w := s.w
	at := max(*last, w.now+w.net.delay())
	*last = at
	w.after(sender, at-w.now, func() {
		switch {
		case !s.open:
		case !w.net.reaches(s.node, s.m):
			s.breakOff()
		default:
			do()
		}
	})
}

func (s *session) tell(do func())      { s.send(s.m.sender(), &s.toNode, do) }
func (s *session) toManager(do func()) { s.send(s.node.sender(), &s.toMgr, do) }

// breakOff ends the session for both; each end notices in its own time.
func (s *session) breakOff() {
	if !s.open {
		return
	}
	s.open = false
	if s.m.sessions[s.node.num] == s {
		delete(s.m.sessions, s.node.num)
	}
	s.w.after(s.node.sender(), s.w.between(ms, 200*ms), func() { s.node.lostSession(s) })
}

// welcome begins a session at the manager's end, when it knows what the node knows.
func (m *member) welcome(n *node, last uint64, applied place, life uint64, answer func(*session, error)) {
	w := m.w
	deadline := w.now + 10*second
	var try func()
	try = func() {
		c := m.snap.Cluster()
		switch {
		case m.life != life || w.now-m.contact > lease || c == nil || c.Incarnation < applied.incarnation:
			answer(nil, errUnavailable)
			return
		case placeOf(m.snap).before(applied):
			if w.now > deadline {
				answer(nil, errUnavailable)
				return
			}
			w.after(m.sender(), 50*ms, try)
			return
		}
		known := m.snap.Node(n.id)
		if known == nil {
			answer(nil, errRemoved(m, n))
			return
		}
		s := &session{w: w, m: m, node: n, num: max(last, known.Session) + 1, open: true, heard: w.now, due: map[model.TaskID]struct{}{}}
		if old := m.sessions[n.num]; old != nil {
			s.num = max(s.num, old.num+1)
			old.breakOff()
		}
		m.sessions[n.num] = s
		answer(s, nil)
		s.complete()
	}
	try()
}

// complete tells the node all of its tasks.
func (s *session) complete() {
	snap := s.m.snap
	a := assignments{at: placeOf(snap), complete: true}
	s.told = map[model.TaskID]told{}
	for t := range snap.TasksOnNode(s.node.id) {
		s.add(&a, snap, t)
	}
	s.sentAt = a.at
	s.tell(func() { s.node.take(s, a) })
}

func (s *session) add(a *assignments, snap *state.Snapshot, t *model.Task) {
	now := told{t.Desired, t.PlaceVer}
	if old, known := s.told[t.ID]; t.State < model.StateAssigned || known && old == now {
		return
	}
	tpl := snap.Template(t.Template)
	if tpl == nil {
		return
	}
	s.told[t.ID] = now
	cs := tpl.Task.Typed.ContainerSpec
	o := order{id: t.ID, desired: t.Desired, state: t.State, health: t.Health, image: cs.Image, stop: 10 * second}
	if cs.StopGracePeriod != nil {
		o.stop = int64(*cs.StopGracePeriod)
	}
	a.tasks = append(a.tasks, o)
}

// touched notes which tasks of the node a step of the state concerns.
func (s *session) touched(a replica.Applied) {
	if s.told == nil {
		return
	}
	if a.Outcome == nil {
		s.complete()
		return
	}
	id := s.node.id
	for _, k := range a.Outcome.Touched {
		if k.Kind == model.KindNode && k.Node() == id && a.After.Node(id) == nil {
			s.tell(func() { s.node.sentAway() })
		}
		if k.Kind != model.KindTask {
			continue
		}
		b, t := a.Before.Task(k.Task()), a.After.Task(k.Task())
		if b != nil && b.Node == id || t != nil && t.Node == id {
			s.due[k.Task()] = struct{}{}
		}
	}
	if len(s.due) > 0 && !s.sending {
		s.sending = true
		s.w.after(s.m.sender(), 5*ms, s.changed)
	}
}

// changed tells the node what it does not know yet.
func (s *session) changed() {
	s.sending = false
	if !s.open {
		return
	}
	snap := s.m.snap
	a := assignments{at: placeOf(snap)}
	for _, id := range sortedTasks(s.due) {
		if t := snap.Task(id); t != nil && t.Node == s.node.id {
			s.add(&a, snap, t)
		} else if _, ok := s.told[id]; ok {
			delete(s.told, id)
			a.removed = append(a.removed, id)
		}
	}
	clear(s.due)
	if len(a.tasks)+len(a.removed) == 0 {
		return
	}
	s.sentAt = a.at
	s.tell(func() { s.node.take(s, a) })
}

// reportEntry is a node's word on its way into the log.
type reportEntry struct {
	s      *session
	report *model.Report
}

// takeReport queues a report; while one batch is agreed on the next one fills.
func (s *session) takeReport(r *model.Report) {
	m := s.m
	if s.w.mut.dropsReport(r) {
		s.ack(r.Seq)
		return
	}
	m.reports = append(m.reports, reportEntry{s, r})
	m.flush()
}

func (s *session) ack(seq uint64) { s.tell(func() { s.node.acked(s, seq) }) }

func (m *member) flush() {
	if m.flushing || len(m.reports) == 0 {
		return
	}
	m.flushing = true
	batch := m.reports
	m.reports = nil
	life := m.life
	var try func()
	try = func() {
		if m.life != life {
			return
		}
		b := &model.Batch{Actor: "agent", Reason: "report", Time: m.wall()}
		for _, e := range batch {
			b.Txns = append(b.Txns, model.Txn{Changes: []model.Change{{Report: e.report}}})
		}
		m.propose(b, func() bool { return m.life == life }, func(out *model.Outcome, err error) {
			if m.life != life {
				return
			}
			if err != nil {
				m.w.after(m.sender(), m.w.between(50*ms, 500*ms), try)
				return
			}
			m.flushing = false
			for _, e := range batch {
				e.s.ack(e.report.Seq)
			}
			m.flush()
		})
	}
	try()
}
