package sim

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// massHeld is for how long tasks stay at least on nodes that went down together. The brake holds for a minute, by what
// the leader saw; the log knows of it when the batch arrives.
const massHeld = model.Time(50 * time.Second)

// node keeps book of which nodes are down by the log.
func (j *judge) node(s *step, id model.NodeID) {
	n := s.after.Node(id)
	if n == nil || n.State != swarm.NodeStateDown {
		delete(j.downAt, id)
	} else if _, known := j.downAt[id]; !known {
		j.downAt[id] = s.now
	}
}

// brake judges that the planner moves no task off a node that went down with many others, unless a user accepted the
// loss or the node is to be left anyway.
func (j *judge) brake(s *step) {
	if s.batch.Actor != "swarm" || len(s.put) == 0 {
		return
	}
	gone := 0
	for _, id := range sortedKeys(j.downAt) {
		if at := j.downAt[id]; at > s.now-massHeld {
			gone++
		}
	}
	accepted := s.before.Cluster().LossAccepted
	if gone < 2 || 3*gone <= s.before.NumNodes() || accepted > s.now-2*massHeld {
		return
	}
	for _, t := range s.put {
		svc := s.after.Service(t.ID.Service)
		if svc == nil || t.Template != svc.Template {
			continue
		}
		var left *model.Task
		wants := 0
		for o := range s.before.Tasks(t.ID.Service) {
			if slotOf(o) == slotOf(t) && o.Desired <= model.StateRunning && o.JobIteration == t.JobIteration {
				left = o
				wants++
			}
		}
		if wants != 1 || left.State.Terminal() || left.Template != t.Template || left.State < model.StateAssigned {
			continue
		}
		at, down := j.downAt[left.Node]
		n := s.before.Node(left.Node)
		if down && at > s.now-massHeld && n != nil && n.Spec.Availability == swarm.NodeAvailabilityActive && matches(s.before, svc, n) {
			j.w.fail("law: tasks stay for a minute on nodes that vanish together: %s on node %d was replaced by %s, %s after %d of %d nodes went down",
				short(left.ID), left.Node, short(t.ID), time.Duration(s.now-at), gone, s.before.NumNodes())
		}
	}
}
