package sim

import (
	"net/netip"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
)

// gap is a law that the product is known not to keep in one circumstance. The judge passes over
// it, so that other seeds are judged to their end, unless it was told to be strict; each gap has a
// test that is strict about a seed of its own.
type gap string

const (
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
	// blockRefused: when a node's new address block is refused because another node got it meanwhile, the
	// placements with addresses of that block, in transactions of their own, are accepted.
	blockRefused gap = "block-refused"
)

// known reports whether what would be a failure is a known gap.
func (j *judge) known(g gap, is bool) bool { return is && !j.w.opt.strict[g] }

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

// owns reports whether an address is in one of the node's blocks.
func owns(n *model.Node, a netip.Addr) bool {
	return slices.ContainsFunc(n.Blocks, func(b netip.Prefix) bool { return b.Contains(a) })
}
