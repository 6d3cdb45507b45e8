package sim

import (
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// gap is a law that the product is known not to keep in one circumstance. The judge passes over
// it, so that other seeds are judged to their end, unless it was told to be strict; each gap has a
// test that is strict about a seed of its own.
type gap string

const (
	// addressForgotten: a freed address rests only as long as its dead task is still in the history
	// of the same node. When the task is deleted at once (its service or slot was removed, its job
	// ran again) or the node's block went to another node, the address is given again at once.
	addressForgotten gap = "address-forgotten"
	// neverPlaced: a task that a rollout made, that found no node and was replaced again stays
	// "pending", and the rollout counts it as under way for ever.
	neverPlaced gap = "never-placed"
	// olderStays: while an older task of a slot is still there (a rollout starts first, or a drained node
	// waits for the successor), its successors' restarts are forgotten with them, and the slot is
	// filled again when they have used up their attempts.
	olderStays gap = "older-stays"
	// heldOvertaken: a successor that is held until its predecessor may leave a node is let go while
	// that one runs, when a new revision overtakes them both.
	heldOvertaken gap = "held-overtaken"
	// surgeThird: when both tasks of a slot that starts first have to leave their node, and are both of
	// overtaken revisions, their successor comes up as a third beside them.
	surgeThird gap = "surge-third"
	// brakeEnd: a service that the brake on mass failure holds, but without a placed task that it would
	// move, is not planned when the brake lets go.
	brakeEnd gap = "brake-end"
	// blockRefused: when a node's new address block is refused because another node got it meanwhile, the
	// placements with addresses of that block, in transactions of their own, are accepted.
	blockRefused gap = "block-refused"
)

// known reports whether what would be a failure is a known gap.
func (j *judge) known(g gap, is bool) bool { return is && !j.w.opt.strict[g] }

// forgotten reports whether the history of the node says no more of the task that had an address.
func forgotten(s *step, had model.TaskID, node model.NodeID) bool {
	for i := range s.batch.Txns {
		for _, c := range s.batch.Txns[i].Changes {
			if c.DeleteTask != nil && *c.DeleteTask == had {
				return true
			}
		}
	}
	b, a := s.before.Task(had), s.after.Task(had)
	return b == nil || a == nil || a.Node != node
}

// overtaken reports whether none of a slot's tasks that are desired running is of the template in force.
func overtaken(s *step, svc *model.Service, k slotKey) bool {
	for t := range s.after.Tasks(svc.ID) {
		if slotOf(t) == k && wanted(t) && t.Template == svc.Template {
			return false
		}
	}
	return true
}

// thirdBeside reports whether all of a slot's tasks that are desired running but the newest have to leave.
func thirdBeside(s *step, svc *model.Service, k slotKey) bool {
	var staying []model.TaskID
	var last model.TaskID
	for t := range s.after.Tasks(svc.ID) {
		if slotOf(t) != k || !wanted(t) {
			continue
		}
		last = t.ID
		if stays(s.after, t) {
			staying = append(staying, t.ID)
		}
	}
	return len(staying) == 0 || len(staying) == 1 && staying[0] == last
}

// massDown reports whether so many nodes are down that the brake may have held.
func massDown(s *state.Snapshot) bool {
	n := 0
	for node := range s.Nodes() {
		if node.State == swarm.NodeStateDown {
			n++
		}
	}
	return n >= 2 && 3*n > s.NumNodes()
}

// owns reports whether an address is in one of the node's blocks.
func owns(n *model.Node, a netip.Addr) bool {
	return slices.ContainsFunc(n.Blocks, func(b netip.Prefix) bool { return b.Contains(a) })
}

// stuck reports whether the rollout has a task under way that will never be.
func stuck(s *state.Snapshot, svc *model.Service) bool {
	for t := range s.Tasks(svc.ID) {
		if inProgress(svc.Update) && t.State < model.StateAssigned && t.Desired > model.StateRunning && t.Template == svc.Template && t.CreatedAt >= svc.Update.StartedAt {
			return true
		}
	}
	return false
}
