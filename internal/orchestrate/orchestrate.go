// Package orchestrate decides which tasks a service should have: how many, of which
// template, in which desired state, and when a failed one is tried again. It is the
// first of the leader's three deciders; allocate and schedule give its tasks their
// addresses and nodes.
//
// Plan looks at one service and does one thing per slot; the manager asks again on a
// working copy until nothing changes. It must not know where tasks fit, nor keep
// anything between calls: delays, monitor windows and restart counts are read from the
// state, so that a new leader carries on exactly.
package orchestrate

import (
	"slices"
	"strings"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Docker's defaults and limits.
const (
	defaultHistory      = 5
	defaultRestartDelay = 5 * time.Second
	defaultMonitor      = 5 * time.Second
	// stopTimeout is how long a replacement waits for its predecessor to stop, when the
	// predecessor's own grace period is not longer.
	stopTimeout = model.Time(time.Minute)
	// orphanAfter is how long a task on a node that is down may still be alive there.
	orphanAfter = model.Time(24 * time.Hour)
)

// Obs is what the leader observes and the state does not hold.
type Obs struct {
	// Settled is false while a new leader has not waited one full lease to hear from the nodes.
	// Until then no task is given up because its node looks down.
	Settled bool
	// Down is since when nodes are down, by the leader's own observation. A new leader starts
	// counting anew, which only makes it wait longer. Nil is fine.
	Down map[model.NodeID]model.Time
	// Agreed is the state that the log has agreed on, when Plan is given a working copy of it; nil is the same. What a
	// service depends on is looked up there: the plans of others may yet be refused.
	Agreed *state.Snapshot
}

// Plan decides what to do for one service now; the service itself may be gone, then its tasks are
// removed. now is cluster time, not before snap.Time. The transactions stand alone, in order.
// next is when to ask again if nothing else happens before, 0 for never.
//
// The cost is that of the service's tasks, and of the nodes for a global service.
func Plan(snap *state.Snapshot, obs Obs, id model.ServiceID, now model.Time) (txns []model.Txn, next model.Time) {
	p := &planner{snap: snap, obs: obs, id: id, now: now, svc: snap.Service(id)}
	p.out = newTxns(snap, id, p.svc)
	tasks := collect(snap, id)
	if p.svc == nil {
		for _, t := range tasks {
			p.retire(t)
		}
		return p.out.list, p.next
	}
	p.prepare()
	switch mode := p.svc.Spec().Mode; {
	case mode.Global != nil, mode.GlobalJob != nil:
		p.global(tasks)
	case mode.ReplicatedJob != nil:
		p.replicatedJob(tasks)
	default:
		p.replicated(tasks)
	}
	p.notice()
	p.putFresh()
	return p.out.list, p.next
}

func collect(snap *state.Snapshot, id model.ServiceID) []*model.Task {
	var tasks []*model.Task
	for t := range snap.Tasks(id) {
		tasks = append(tasks, t)
	}
	return tasks
}

type planner struct {
	snap *state.Snapshot
	obs  Obs
	id   model.ServiceID
	now  model.Time
	svc  *model.Service // nil when it is gone
	out  *txns
	next model.Time

	nodes       map[model.NodeID]*nodeView
	views       []nodeView // room for more
	constraints []model.Constraint
	byID        bool // one of them asks for a node's identifier, which takes time to make
	policy      restartPolicy
	history     int // dead tasks and live ones to keep per slot, < 0 for all
	lastTask    uint64
	fresh       []model.TaskNew // first tasks of their slots
	job         bool
	crowd       map[model.TaskID]bool // tasks beyond what the service may have on their nodes
	brake       *Brake                // looked at when the first node is down
	noticed     bool                  // the brake holds tasks of this service
	waits       string                // what the closed gate waits for; empty when tasks may start
	opened      model.TemplateID      // of the gate that opens in this call, else 0
}

func (p *planner) prepare() {
	if pl := p.svc.Spec().TaskTemplate.Placement; pl != nil {
		// Constraints that cannot be read match no node in schedule and move nothing here.
		p.constraints, _ = model.ParseConstraints(pl.Constraints)
		p.byID = slices.ContainsFunc(p.constraints, func(c model.Constraint) bool { return strings.EqualFold(c.Key, "node.id") })
	}
	p.policy = newRestartPolicy(p.svc.Spec().TaskTemplate.RestartPolicy)
	p.history = historyLimit(p.snap)
	p.lastTask = p.svc.LastTask
	p.job = isJob(p.svc)
	p.lookAtGate()
}

// wake asks to be planned again at t.
func (p *planner) wake(t model.Time) {
	if p.next == 0 || t < p.next {
		p.next = t
	}
}

// replicated plans a service of N slots.
func (p *planner) replicated(tasks []*model.Task) {
	slots := bySlot(tasks)
	p.lookAt(slots)
	kept := p.scale(slots)
	p.findCrowd(kept)
	p.tend(kept)
}

// tend heals the slots that stay, goes on with the rollout and drops old history. The rollout waits
// for the next call when anything was healed, because it counts what is in flight.
func (p *planner) tend(kept []*slot) {
	for _, s := range kept {
		if !s.busy {
			p.heal(s)
		}
	}
	roll := p.rollout(kept)
	if p.out.empty() && len(p.fresh) == 0 && p.waits == "" {
		roll.plan()
	}
	for _, s := range kept {
		p.forget(s, roll)
	}
}

// lookAt takes the measure of each slot, and gives up tasks that nobody will hear of again.
func (p *planner) lookAt(slots []*slot) {
	for _, s := range slots {
		s.look(p)
		for _, t := range s.tasks {
			if p.orphan(t) {
				s.busy = true
			}
		}
		for _, t := range s.live {
			if t.Node != 0 && t.State >= model.StateAssigned && p.node(t.Node).held {
				p.hold()
			}
		}
	}
}

// putFresh makes the first tasks of slots, many in a change. They come last, because they take the
// numbers from the next one up.
func (p *planner) putFresh() {
	for rest := p.fresh; len(rest) > 0; {
		n := min(len(rest), model.MaxTasksPut)
		put := &model.TasksPut{
			Service: p.id, Template: p.svc.Template, First: p.lastTask + 1, Desired: model.StateRunning, StartAt: p.now,
			JobIteration: p.svc.JobIteration, Base: p.snap.Index(), Tasks: rest[:n:n],
		}
		created := put.Text("created")
		if p.waits != "" {
			put.Desired = model.StateReady // prepared, so that they start at once when they may
		}
		for i := range put.Tasks {
			put.Tasks[i].State, put.Tasks[i].Message = model.StateNew, created
		}
		p.lastTask += uint64(n)
		p.out.bulk(model.Change{PutTasks: put})
		rest = rest[n:]
	}
}

// newTask makes a task of the template in force.
func (p *planner) newTask(s *slot, desired model.TaskState, startAt model.Time) *model.Task {
	p.lastTask++
	t := &model.Task{
		ID: model.TaskID{Service: p.id, Num: p.lastTask}, Slot: s.num, Node: s.node, Template: p.svc.Template,
		Desired: desired, StartAt: startAt, State: model.StateNew, Message: "created",
		StatusAt: p.now, CreatedAt: p.now, JobIteration: p.svc.JobIteration,
	}
	return t
}
