package orchestrate

import (
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// nodeView is what a node means for the service that is planned.
type nodeView struct {
	node    *model.Node // nil when it was removed
	down    bool        // and the leader is sure of it
	held    bool        // down, but one of so many that the leader waits
	drained bool
	active  bool // takes new tasks: ready and available
	paused  bool
	matches bool // the service's constraints
}

func (p *planner) node(id model.NodeID) *nodeView {
	if v, ok := p.nodes[id]; ok {
		return v
	}
	n := p.snap.Node(id)
	if len(p.views) == 0 {
		p.views = make([]nodeView, 16)
	}
	v := &p.views[0]
	p.views = p.views[1:]
	v.node = n
	if n != nil {
		v.down = n.State == swarm.NodeStateDown && p.obs.Settled
		v.held = v.down && p.held(n)
		v.down = v.down && !v.held
		if v.held {
			p.wake(p.brake.Until) // whatever is decided for this node now is decided again then
		}
		v.drained = n.Spec.Availability == swarm.NodeAvailabilityDrain
		v.paused = n.Spec.Availability == swarm.NodeAvailabilityPause
		v.active = n.State == swarm.NodeStateReady && n.Spec.Availability == swarm.NodeAvailabilityActive
		v.matches = p.matches(n)
	}
	if p.nodes == nil {
		p.nodes = map[model.NodeID]*nodeView{}
	}
	p.nodes[id] = v
	return v
}

func (p *planner) matches(n *model.Node) bool {
	if len(p.constraints) == 0 {
		return true
	}
	id := ""
	if c := p.snap.Cluster(); c != nil && p.byID {
		id = c.Namer().NodeID(n.ID)
	}
	return model.NodeMatches(p.constraints, n, id)
}

// lost reports whether tasks on the node must run elsewhere: it is gone, down or drained, or it
// changed so that it no longer matches. When it was the service that changed, the rollout
// moves its tasks, a few at a time; on a paused node nothing is touched.
func (v *nodeView) lost(svc *model.Service) bool {
	switch {
	case v.node == nil || v.down || v.drained:
		return true
	case v.matches || v.paused:
		return false
	}
	return v.node.SpecVersion > svc.SpecVersion || v.node.DescVersion > svc.SpecVersion
}

// misplaced reports whether the rollout must move the node's tasks.
func (v *nodeView) misplaced(svc *model.Service) bool {
	return v.node != nil && !v.matches && !v.paused && !v.lost(svc)
}

// orphan gives up a task whose node was removed, or has been down for a day.
func (p *planner) orphan(t *model.Task) bool {
	if t.Node == 0 || t.State < model.StateAssigned || t.State.Terminal() {
		return false
	}
	v := p.node(t.Node)
	why := "node was removed"
	if v.node != nil {
		since, ok := p.obs.Down[t.Node]
		if !v.down || !ok || t.Desired <= model.StateRunning {
			return false
		}
		if p.now < since+orphanAfter {
			p.wake(since + orphanAfter)
			return false
		}
		why = "node has been down for 24 hours"
	}
	p.out.add(model.Change{SetTaskStatus: &model.TaskStatusSet{Task: t.ID, State: model.StateOrphaned, Message: "orphaned", Err: why}})
	p.out.because(v.node)
	return true
}

// retire takes a task out of the cluster: its node stops it, then it is deleted.
func (p *planner) retire(t *model.Task) {
	switch {
	case t.State.Terminal() || t.State < model.StateAssigned:
		p.out.add(remove(t))
	case p.orphan(t):
	case t.Desired < model.StateRemove:
		p.out.add(desire(t, model.StateRemove))
	}
}
