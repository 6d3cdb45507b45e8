package sim

import (
	"errors"

	"github.com/skep-swarm/skep/internal/model"
)

const heartbeat = 5 * second

var errSentAway = errors.New("the node is not in this swarm any more")

// errRemoved is what a manager that is not behind says to a node that it does not know.
func errRemoved(m *member, n *node) error {
	if m.snap.LastNode() >= n.id {
		return errSentAway
	}
	return errUnavailable
}

// node is a host with its agent: what it keeps on disk, what runs on it, and its session.
type node struct {
	w     *world
	num   int // among the hosts there ever were
	id    model.NodeID
	power bool   // the host runs
	alive bool   // and the daemon on it
	life  uint64 // of the daemon
	gone  bool   // sent away; it does not come back
	lost  bool   // dead for good, and nobody removes it

	// On disk.
	last    uint64 // session
	applied place
	tasks   map[model.TaskID]*task

	s       *session
	calling bool

	// Of the reporter.
	dirty  []model.TaskID
	isNew  map[model.TaskID]bool // in dirty
	sent   []model.TaskID
	seq    uint64
	sentOn bool
}

func newNode(w *world, num int, id model.NodeID) *node {
	return &node{w: w, num: num, id: id, tasks: map[model.TaskID]*task{}, isNew: map[model.TaskID]bool{}}
}

func (n *node) sender() int { return senderNode + n.num }

func (n *node) start() {
	n.power, n.alive = true, true
	n.life++
	n.w.note("node %d: daemon starts", uint64(n.id), 0, 0)
	for _, id := range sortedTasks(n.tasks) {
		t := n.tasks[id]
		t.prepared, t.busy = false, false
		t.drive()
	}
	n.call(n.w.between(ms, 300*ms))
}

// stop ends the daemon; containers go on.
func (n *node) stop() {
	n.alive = false
	n.life++
	n.w.note("node %d: daemon stops", uint64(n.id), 0, 0)
	if n.s != nil {
		n.s.breakOff()
		n.s = nil
	}
	n.calling = false
}

// cutPower ends everything on the host.
func (n *node) cutPower() {
	n.stop()
	n.power = false
	n.w.note("node %d: no power", uint64(n.id), 0, 0)
	for _, id := range sortedTasks(n.tasks) {
		n.tasks[id].kill("the node was restarted")
	}
}

// call begins a session with some manager after a while.
func (n *node) call(delay int64) {
	if n.calling || !n.alive || n.gone {
		return
	}
	n.calling = true
	w, life := n.w, n.life
	w.after(n.sender(), delay, func() {
		if n.life != life {
			return
		}
		m := w.members[w.pick(len(w.members))]
		if w.zombie != nil && w.chance(.4) {
			m = w.zombie
		}
		again := func() {
			n.calling = false
			n.call(w.between(100*ms, 2*second))
		}
		if !m.alive || !w.net.reaches(n, m) {
			again()
			return
		}
		w.after(n.sender(), w.net.delay(), func() {
			if n.life != life {
				return
			}
			m.welcome(n, n.last, n.applied, m.life, func(s *session, err error) {
				switch {
				case n.life != life:
					if s != nil {
						s.breakOff()
					}
				case errors.Is(err, errSentAway):
					n.sentAway()
				case err != nil:
					again()
				default:
					n.calling = false
					n.welcomed(s)
				}
			})
		})
	})
}

func (n *node) welcomed(s *session) {
	w := n.w
	n.last = max(n.last, s.num)
	n.s = s
	w.note("node %d: session %d with manager %d", uint64(n.id), s.num, uint64(s.m.id))
	// What was under way is unsaid.
	for _, id := range n.sent {
		n.mark(id)
	}
	n.sent, n.sentOn, n.seq = nil, false, 0
	n.beat(s)
	n.report()
}

func (n *node) beat(s *session) {
	s.toManager(func() { s.heard = s.w.now })
	n.w.after(n.sender(), heartbeat, func() {
		if n.s == s && s.open {
			n.beat(s)
		}
	})
}

func (n *node) lostSession(s *session) {
	if n.s != s {
		return
	}
	n.s = nil
	n.call(n.w.between(ms, second))
}

// sentAway makes the node forget the swarm: it stops everything.
func (n *node) sentAway() {
	if n.gone {
		return
	}
	n.gone = true
	n.w.note("node %d: sent away", uint64(n.id), 0, 0)
	n.stop()
	for _, id := range sortedTasks(n.tasks) {
		n.tasks[id].kill("sent away")
		delete(n.tasks, id)
	}
}

// take applies what a manager wants. An older word than the last one ends the session.
func (n *node) take(s *session, a assignments) {
	if n.s != s {
		return
	}
	if a.at.before(n.applied) {
		n.w.note("node %d: refuses index %d, has applied %d", uint64(n.id), a.at.index, n.applied.index)
		s.breakOff()
		return
	}
	n.applied = a.at
	wanted := map[model.TaskID]bool{}
	for _, o := range a.tasks {
		wanted[o.id] = true
		n.assign(o)
	}
	if a.complete {
		for _, id := range sortedTasks(n.tasks) {
			if !wanted[id] {
				n.tasks[id].remove()
			}
		}
	}
	for _, id := range a.removed {
		if t := n.tasks[id]; t != nil {
			t.remove()
		}
	}
}

func (n *node) assign(o order) {
	t := n.tasks[o.id]
	if t == nil {
		t = newTask(n, o)
		n.tasks[o.id] = t
		n.w.note("node %d: gets t%d.%d", uint64(n.id), uint64(o.id.Service), o.id.Num)
		t.drive()
		return
	}
	if t.removed {
		t.heir = &o
		return
	}
	desired := max(t.desired, o.desired)
	if o.state.Terminal() && !t.st.State.Terminal() {
		desired = max(desired, model.StateShutdown)
	}
	t.want(desired)
	if older := t.st.State > o.state || t.st.State == o.state && t.st.Health != o.health; older && t.st.State >= model.StateAccepted {
		n.mark(o.id)
	}
}

// mark notes that a task has something to say.
func (n *node) mark(id model.TaskID) {
	if !n.isNew[id] {
		n.isNew[id] = true
		n.dirty = append(n.dirty, id)
	}
	n.report()
}

// report sends what is new, one report at a time.
func (n *node) report() {
	s := n.s
	if s == nil || n.sentOn || len(n.dirty) == 0 {
		return
	}
	r := &model.Report{Node: n.id, Session: s.num}
	n.sent, n.dirty = n.dirty, nil
	clear(n.isNew)
	for _, id := range n.sent {
		t := n.tasks[id]
		if t == nil || t.removed || t.st.State < model.StateAccepted || t.st.State > model.StateRejected {
			continue
		}
		r.Tasks = append(r.Tasks, model.TaskReport{Task: id, State: t.st.State, Message: t.st.Message, Err: t.st.Err, PID: t.st.PID, ExitCode: t.st.ExitCode, Health: t.st.Health})
	}
	if len(r.Tasks) == 0 {
		n.sent = nil
		return
	}
	n.seq++
	n.sentOn = true
	r.Seq = n.seq
	s.toManager(func() { s.takeReport(r) })
}

func (n *node) acked(s *session, seq uint64) {
	if n.s == s && seq == n.seq {
		n.sent, n.sentOn = nil, false
		n.report()
	}
}
