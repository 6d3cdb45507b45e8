package orchestrate_test

import (
	"fmt"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
)

// meddle does one thing that users or nodes do.
func (m *meddler) meddle() {
	act := m.acts[m.r.IntN(len(m.acts))]
	m.tell("%s", act)
	m.now++
	switch act {
	case "image", "label", "scale", "order", "leaving", "constraint", "limit":
		m.service(m.id, func(s *swarm.ServiceSpec) { m.edit(act, s) })
		m.tell("  %s", m.svc().Current().Spec.Raw)
	case "pause", "cancel", "rollback":
		m.steer(act)
	case "drain":
		m.toggle(swarm.NodeAvailabilityDrain)
	case "hold":
		m.toggle(swarm.NodeAvailabilityPause)
	case "down":
		m.upOrDown()
	case "remove":
		if nodes := m.nodes(); len(nodes) > 3 {
			n := nodes[m.r.IntN(len(nodes))]
			m.do(model.Change{DeleteNode: n})
			delete(m.obs.Down, n)
			m.addNode(nil)
		}
	case "gate", "fail":
		id := m.id
		if act == "gate" {
			id = m.dep
		}
		for t := range m.snap.Tasks(id) {
			if t.State == model.StateRunning && t.Desired == model.StateRunning {
				m.report(t, model.StateFailed)
				break
			}
		}
	}
}

func (m *meddler) edit(what string, s *swarm.ServiceSpec) {
	r := m.r
	orders := []swarm.UpdateOrder{swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst}
	switch what {
	case "image":
		s.TaskTemplate.ContainerSpec.Image = fmt.Sprintf("img:%d", 1+r.IntN(3))
	case "label":
		s.Labels["x"] = fmt.Sprint(r.IntN(1000))
	case "scale":
		if s.Mode.Replicated != nil {
			replicas(uint64(3 + r.IntN(4)))(s)
		}
	case "order":
		s.UpdateConfig.Order, s.RollbackConfig.Order = orders[r.IntN(2)], orders[r.IntN(2)]
	case "leaving":
		delete(s.Labels, orchestrate.DrainLabel)
		if i := r.IntN(3); i < 2 {
			s.Labels[orchestrate.DrainLabel] = string(orders[i])
		}
	case "constraint":
		s.TaskTemplate.Placement.Constraints = nil
		if nodes := m.nodes(); r.IntN(2) == 0 {
			s.TaskTemplate.Placement.Constraints = []string{hostnameIsNot(nodes[r.IntN(len(nodes))])}
		}
	case "limit":
		s.TaskTemplate.Placement.MaxReplicas = []uint64{0, 3, 4}[r.IntN(3)]
	}
}

func (m *meddler) steer(how string) {
	var rev *model.NewRevision
	switch how {
	case "cancel":
		rev, _ = orchestrate.Cancel(m.svc(), m.now) // nil when there is nothing to cancel
	case "rollback":
		rev = orchestrate.Rollback(m.svc(), orchestrate.ManualRollback, m.now)
	default:
		if c, err := orchestrate.Pause(m.svc()); err == nil {
			m.do(c)
		} else if c, err := orchestrate.Resume(m.svc(), m.now); err == nil {
			m.do(c)
		}
	}
	if rev != nil {
		m.do(model.Change{NewRevision: rev})
	}
}

// toggle drains or pauses a node, or makes it active again.
func (m *meddler) toggle(to swarm.NodeAvailability) {
	nodes := m.nodes()
	n := nodes[m.r.IntN(len(nodes))]
	if m.snap.Node(n).Spec.Availability != swarm.NodeAvailabilityActive {
		to = swarm.NodeAvailabilityActive
	}
	m.tell("  node %d is %s", n, to)
	m.setNode(n, func(s *swarm.NodeSpec) { s.Availability = to })
}

// upOrDown lets a node vanish, or come back and tell of the end of some tasks.
func (m *meddler) upOrDown() {
	nodes := m.nodes()
	n := nodes[m.r.IntN(len(nodes))]
	if m.snap.Node(n).State == swarm.NodeStateReady {
		m.tell("  node %d is down", n)
		m.setState(n, swarm.NodeStateDown)
		return
	}
	m.tell("  node %d is up", n)
	m.setState(n, swarm.NodeStateReady)
	ends := []model.TaskState{model.StateFailed, model.StateComplete, model.StateShutdown}
	for t := range m.snap.AllTasks() {
		if t.Node == n && t.State >= model.StateAssigned && !t.State.Terminal() && m.r.IntN(2) == 0 {
			m.tell("  task %d has ended", t.ID.Num)
			m.report(t, ends[m.r.IntN(len(ends))])
		}
	}
}
