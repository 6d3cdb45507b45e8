package orchestrate_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
)

// meddler is a swarm in which somebody meddles with everything in the middle of a rollout. What it counts is what a user
// sees: slots in which nothing runs because the rollout stopped a task that could have stayed.
type meddler struct {
	*world
	r       *rand.Rand
	id, dep model.ServiceID
	global  bool
	pace    int // parallelism
	risk    int // one in so many steps of a task fails, 0 for none
	acts    []string
	taken   map[place]*model.Task // what was stopped, until something runs in its place
	story   []string
}

// place is a slot of a replicated service, or a node of a global one.
type place struct {
	slot uint32
	node model.NodeID
}

func placeOf(t *model.Task) place {
	if t.Slot == 0 {
		return place{node: t.Node}
	}
	return place{slot: t.Slot}
}

func (m *meddler) tell(format string, args ...any) {
	m.story = append(m.story, fmt.Sprintf("%8.3f ", float64(m.now-1_000_000*second)/1e9)+fmt.Sprintf(format, args...))
}

func (m *meddler) svc() *model.Service { return m.snap.Service(m.id) }

// available reports whether a task could stay on a node.
func (m *meddler) available(id model.NodeID) bool {
	n := m.snap.Node(id)
	return n != nil && n.State == swarm.NodeStateReady && n.Spec.Availability == swarm.NodeAvailabilityActive
}

// meddling is what each kind of trouble consists of.
var meddling = map[string]string{
	"drain":      "drain drain image fail",
	"label":      "drain label scale image",
	"order":      "drain order leaving image",
	"constraint": "constraint image fail fail",
	"limit":      "limit drain image",
	"steer":      "pause cancel rollback image fail",
	"down":       "down down image fail",
	"hold":       "hold hold image fail",
	"gate":       "gate gate drain image fail",
	"all":        "drain label order leaving constraint limit pause cancel rollback down hold gate scale image remove fail",
}

// TestMeddlingWithARollout: whatever is done in the middle of a rollout, no more slots are out because of it than its
// parallelism, it makes no task after task, and when the trouble is over it ends.
func TestMeddlingWithARollout(t *testing.T) {
	seeds := uint64(50)
	if testing.Short() {
		seeds = 5
	}
	for kind, acts := range meddling {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			for s := uint64(1); s <= seeds; s++ {
				m := newMeddler(t, s, strings.Fields(acts))
				if why := m.run(); why != "" {
					t.Fatalf("seed %d: %s\n%s", s, why, strings.Join(m.story, "\n"))
				}
			}
		})
	}
}

func newMeddler(t *testing.T, seed uint64, acts []string) *meddler {
	r := seeded(seed)
	m := &meddler{world: newWorld(t, 4), r: r, taken: map[place]*model.Task{}, acts: acts, pace: 1 + r.IntN(2), global: r.IntN(4) == 0}
	if acts[0] == "limit" {
		m.global = false // it has no limit for a node
	}
	if r.IntN(3) == 0 {
		m.risk = 10
	}
	if r.IntN(2) == 0 {
		m.history(new(int64))
	}
	gated := strings.Contains(strings.Join(acts, " "), "gate")
	if gated {
		m.dep = m.service(0, func(s *swarm.ServiceSpec) { s.Name = "dep"; replicas(1)(s) })
	}
	delay := time.Duration(r.IntN(6)) * time.Second
	m.id = m.service(0, func(s *swarm.ServiceSpec) {
		replicas(uint64(3 + r.IntN(4)))(s)
		if m.global {
			s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
		}
		s.Labels = map[string]string{}
		if gated {
			s.Labels[orchestrate.DependsLabel] = "dep=service_healthy"
		}
		s.TaskTemplate.Placement = &swarm.Placement{}
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: &delay}
		s.UpdateConfig, s.RollbackConfig = m.policy(), m.policy()
		if s.RollbackConfig.FailureAction == swarm.UpdateFailureActionRollback {
			s.RollbackConfig.FailureAction = swarm.UpdateFailureActionPause
		}
	})
	m.settle()
	m.tell("%s", m.svc().Current().Spec.Raw)
	return m
}

func (m *meddler) policy() *swarm.UpdateConfig {
	actions := []swarm.FailureAction{swarm.UpdateFailureActionContinue, swarm.UpdateFailureActionPause, swarm.UpdateFailureActionRollback}
	c := &swarm.UpdateConfig{Parallelism: uint64(m.pace), Monitor: time.Second, Delay: time.Duration(m.r.IntN(3)) * time.Second,
		Order: swarm.UpdateOrderStopFirst, FailureAction: actions[m.r.IntN(len(actions))]}
	if m.r.IntN(3) == 0 {
		c.Order = swarm.UpdateOrderStartFirst
	}
	return c
}

// run is the whole story; what is wrong with it, or nothing.
func (m *meddler) run() string {
	m.image(m.id, "img:2")
	m.tell("image img:2")
	for range 80 {
		m.now += model.Time(m.r.Int64N(int64(2*second))) + 1
		meddles := m.r.IntN(8) == 0
		if meddles {
			m.meddle()
		} else {
			for range 1 + m.r.IntN(3) {
				m.agents()
			}
		}
		if meddles || m.r.IntN(4) > 0 {
			if why := m.look(); why != "" {
				return why
			}
		}
	}
	m.tell("quiet")
	if made := m.quiet(10 * time.Minute); made > 45 {
		return fmt.Sprintf("%d tasks are made in ten minutes without trouble", made)
	}
	if made := m.quiet(10 * time.Minute); made > 0 {
		return fmt.Sprintf("%d more tasks are made in the next ten", made)
	}
	m.heal()
	return m.unsettled()
}

// agents lets some task take a step, or fail.
func (m *meddler) agents() {
	var can []*model.Task
	for t := range m.snap.AllTasks() {
		if n := m.snap.Node(t.Node); n != nil && n.State == swarm.NodeStateReady && t.State >= model.StateAssigned && !t.State.Terminal() {
			can = append(can, t)
		}
	}
	if len(can) == 0 {
		return
	}
	t, next := can[m.r.IntN(len(can))], model.TaskState(0)
	switch {
	case t.Desired > model.StateRunning:
		next = model.StateShutdown
		if m.r.IntN(10) == 0 {
			next = model.StateFailed
		}
	case m.risk > 0 && m.r.IntN(m.risk) == 0:
		next = []model.TaskState{model.StateFailed, model.StateRejected}[m.r.IntN(2)]
	case t.State < model.StateReady:
		next = model.StateReady
	case t.Desired == model.StateRunning && t.State < model.StateRunning:
		next = model.StateRunning
	default:
		return
	}
	m.tell("  task %d of slot %d: %s", t.ID.Num, t.Slot, next)
	m.report(t, next)
}

// look plans, and counts the slots that are out because of the rollout.
func (m *meddler) look() string {
	before := m.snap
	m.plan()
	up, live, newest := map[place]bool{}, map[place]bool{}, map[place]*model.Task{}
	for t := range m.snap.Tasks(m.id) {
		at, was := placeOf(t), before.Task(t.ID)
		live[at] = live[at] || t.Desired <= model.StateRunning
		up[at] = up[at] || t.State == model.StateRunning && t.Desired == model.StateRunning
		if t.Desired < model.StateRemove {
			newest[at] = t
		}
		switch {
		case was == nil:
			m.tell("plan: task %d of slot %d on node %d, template %d, desired %s", t.ID.Num, t.Slot, t.Node, t.Template, t.Desired)
		case was.Desired != t.Desired:
			m.tell("plan: task %d of slot %d on node %d is desired %s", t.ID.Num, t.Slot, t.Node, t.Desired)
			if was.State == model.StateRunning && was.Desired == model.StateRunning && t.Desired == model.StateShutdown && m.available(t.Node) {
				m.taken[at] = t
			}
		}
	}
	for at, t := range m.taken {
		follower := newest[at]
		lost := follower != nil && follower.ID.Num > t.ID.Num && follower.Node != 0 && !m.available(follower.Node)
		if follower == nil || up[at] || !live[at] || lost || m.overSince(at, t.ID.Num) {
			delete(m.taken, at) // or it is out for another reason than the rollout
		}
	}
	if len(m.taken) > m.pace {
		return fmt.Sprintf("%d slots are out because of the rollout, the parallelism is %d: %v", len(m.taken), m.pace, m.taken)
	}
	return ""
}

// overSince reports whether a later task of the place came up, ended by itself, or was lost: what follows is not the rollout's.
func (m *meddler) overSince(at place, num uint64) bool {
	for t := range m.snap.Tasks(m.id) {
		if t.ID.Num <= num || placeOf(t) != at {
			continue
		}
		switch t.State {
		case model.StateFailed, model.StateRejected, model.StateComplete, model.StateOrphaned:
			return true
		}
		if t.RunningSince != 0 {
			return true
		}
	}
	return false
}

// quiet lets time pass in which every task does what it is told, and counts the tasks that are made.
func (m *meddler) quiet(d time.Duration) (made uint64) {
	from, until := m.svc().LastTask, m.now+model.Time(d)
	for m.now < until {
		m.plan()
		m.obey()
		m.plan()
		step := 5 * second
		if m.next > m.now {
			step = min(step, m.next-m.now)
		}
		m.now += max(step, second/10)
	}
	return m.svc().LastTask - from
}

// heal ends all trouble.
func (m *meddler) heal() {
	m.tell("heal")
	m.now += second
	for _, n := range m.nodes() {
		if m.snap.Node(n).State != swarm.NodeStateReady {
			m.setState(n, swarm.NodeStateReady)
		}
		if m.snap.Node(n).Spec.Availability != swarm.NodeAvailabilityActive {
			m.setNode(n, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityActive })
		}
	}
	for range 4 {
		m.quiet(7 * time.Minute)
		if c, err := orchestrate.Resume(m.svc(), m.now); err == nil {
			m.do(c)
		}
	}
}

// unsettled is what is not as the service says, or nothing.
func (m *meddler) unsettled() string {
	running, old, waiting := 0, 0, 0
	for t := range m.snap.Tasks(m.id) {
		switch {
		case t.Desired > model.StateRunning:
		case t.State != model.StateRunning || t.Desired < model.StateRunning:
			waiting++
		default:
			running++
			if t.Template != m.svc().Template {
				old++
			}
		}
	}
	want, spec := 0, m.svc().Spec()
	if r := spec.Mode.Replicated; r != nil {
		want = int(*r.Replicas)
	} else {
		for _, n := range m.nodes() {
			if c := spec.TaskTemplate.Placement.Constraints; len(c) == 0 || c[0] != hostnameIsNot(n) {
				want++
			}
		}
	}
	u := m.svc().Update
	if under := u != nil && u.CompletedAt == 0; under || running != want || old > 0 || waiting > 0 {
		return fmt.Sprintf("it does not end: %d of %d run, %d of them are old, %d wait: %+v", running, want, old, waiting, u)
	}
	return ""
}

func (m *meddler) nodes() (ids []model.NodeID) {
	for n := range m.snap.Nodes() {
		ids = append(ids, n.ID)
	}
	return ids
}

func hostnameIsNot(n model.NodeID) string { return fmt.Sprintf("node.hostname!=node-%d", n) }
