package orchestrate

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// surgeLimit is how long tasks stay on a node that they have to leave while their successors come up.
const surgeLimit = model.Time(5 * time.Minute)

// DrainLabel is a service's label that says in which order its tasks leave a node that is drained.
// Without it a service that updates start-first also moves so; others prepare the successor
// until it is ready, stop the old task, and start the new one.
const (
	DrainLabel      = "skep.drain"
	drainStartFirst = "start-first" // the successor runs before the old task is stopped
	drainStopFirst  = "stop-first"  // the old task is stopped at once
)

// ValidDrainOrder reports whether a value of DrainLabel means something.
func ValidDrainOrder(order string) bool { return order == drainStartFirst || order == drainStopFirst }

func (p *planner) drainOrder() string { return p.svc.Spec().Labels[DrainLabel] }

// leaving reports whether a task runs where it must not stay, but may until its successor is there: on a
// drained node, or one that changed so that it no longer matches. Tasks of global services and of
// jobs have nobody to wait for.
func (p *planner) leaving(s *slot, t *model.Task) bool {
	if t.State != model.StateRunning || t.Node == 0 || s.node != 0 || p.job {
		return false
	}
	v := p.node(t.Node)
	if !v.lost(p.svc) || v.node == nil || v.down || v.node.State == swarm.NodeStateDown {
		return false
	}
	return p.drainOrder() != drainStopFirst && p.now < v.node.UpdatedAt+surgeLimit && p.again(s, t)
}

// surge gives the tasks that leave a successor, and stops them when it is ready, or runs when the
// service starts first. A successor for which there is no room is not waited for.
func (p *planner) surge(s *slot, leaving, good []*model.Task) bool {
	if len(leaving) == 0 {
		return false
	}
	last := leaving[len(leaving)-1]
	if older := leaving[:len(leaving)-1]; len(older) > 0 {
		// Their successor would be a third.
		for _, t := range older {
			p.out.add(desire(t, model.StateShutdown))
			p.out.because(p.node(t.Node).node)
		}
		p.out.while(last)
		return true
	}
	startFirst := p.drainOrder() == drainStartFirst || p.drainOrder() == "" && p.updateOrder() == swarm.UpdateOrderStartFirst
	if len(good) == 0 {
		if heir := s.live[len(s.live)-1]; heir != last && !p.leaving(s, heir) {
			p.wake(p.node(last.Node).node.UpdatedAt + surgeLimit)
			return false // it failed and waits for its own delay
		}
		desired := model.StateReady
		if startFirst && p.waits == "" {
			desired = model.StateRunning
		}
		t := p.newTask(s, desired, p.now)
		t.Restarts = p.policy.record(p.account(s, last), p.svc.Template, p.now)
		p.out.add(put(t))
		p.out.because(p.node(last.Node).node)
		return true
	}
	heir := good[len(good)-1]
	if startFirst && p.waits == "" && heir.Desired < model.StateRunning {
		// It was held back by the gate, or follows one that failed.
		if p.now < heir.StartAt {
			p.wake(heir.StartAt)
			return false
		}
		if until := heir.StartAt + p.stopLimit(s); p.stopping(s, heir.ID.Num) && p.now < until {
			p.wake(until) // beside one that stops it would be a third
			return false
		}
		p.out.add(desire(heir, model.StateRunning))
		p.out.while(last)
		return true
	}
	enough := model.StateReady
	if startFirst || p.waits != "" {
		enough = model.StateRunning // behind a closed gate nobody can take over
	}
	if heir.State < enough && heir.State != model.StatePending {
		p.wake(p.node(last.Node).node.UpdatedAt + surgeLimit)
		return false
	}
	for _, t := range leaving {
		p.out.add(desire(t, model.StateShutdown))
		p.out.because(p.node(t.Node).node)
	}
	p.out.while(heir)
	return true
}

// updateOrder is the order of updates, whether or not a rollback is under way.
func (p *planner) updateOrder() swarm.UpdateOrder {
	if c := p.svc.Spec().UpdateConfig; c != nil {
		return c.Order
	}
	return swarm.UpdateOrderStopFirst
}
