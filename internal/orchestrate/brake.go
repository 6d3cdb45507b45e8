package orchestrate

import (
	"fmt"
	"slices"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// brakeWindow is the time within which nodes vanish together, and for which their tasks are then held.
const brakeWindow = model.Time(time.Minute)

// brakeNodes is the least number of nodes that are a mass: one may always fail.
const brakeNodes = 2

// Brake says that so many nodes went down together that the leader rather doubts its own sight: it does
// not move their tasks before Until, or before a user accepts the loss (model.Cluster.LossAccepted).
type Brake struct {
	Down, Of int        // so many of the nodes that were up
	Until    model.Time // cluster time
}

// String is the brake as an operator reads it.
func (b *Brake) String() string {
	return fmt.Sprintf("%d of %d nodes went down within a minute: their tasks are not moved before %s unless the loss is accepted",
		b.Down, b.Of, time.Unix(0, int64(b.Until)).UTC().Format(time.RFC3339))
}

// massFailure is a service's notice. It does not change while the brake holds, so that services which
// nothing happened to need not be planned again.
const massFailure = "many nodes went down at once: their tasks are held for a minute, in case the nodes come back"

// Braked looks whether more than a third of the nodes went down within the window, not longer than
// the window ago; nil when not. down is Obs.Down, now cluster time. The cost is that of the nodes in
// down.
func Braked(snap *state.Snapshot, down map[model.NodeID]model.Time, now model.Time) *Brake {
	if len(down) < brakeNodes {
		return nil
	}
	accepted := model.Time(0)
	if c := snap.Cluster(); c != nil {
		accepted = c.LossAccepted
	}
	var since []model.Time
	for id, at := range down {
		// Whatever the state says of it yet: a new leader learns of all nodes at once that are silent, of some of
		// which the state knows already.
		if snap.Node(id) != nil {
			since = append(since, at)
		}
	}
	slices.Sort(since)
	var b *Brake
	first := 0
	for i, at := range since {
		for since[first] <= at-brakeWindow {
			first++
		}
		gone, of := i-first+1, snap.NumNodes()-first
		if at > accepted && at > now-brakeWindow && gone >= brakeNodes && 3*gone > of {
			b = &Brake{Down: gone, Of: of, Until: at + brakeWindow}
		}
	}
	return b
}

// held reports whether a node that is down is one of a mass.
func (p *planner) held(n *model.Node) bool {
	at, ok := p.obs.Down[n.ID]
	if !ok {
		return false
	}
	if p.brake == nil {
		if p.brake = Braked(p.snap, p.obs.Down, p.now); p.brake == nil {
			p.brake = &Brake{}
		}
	}
	return p.now < p.brake.Until && at > p.now-2*brakeWindow
}

// hold takes note that a task would move but for the brake.
func (p *planner) hold() {
	p.noticed = true
	p.wake(p.brake.Until)
}

// notice writes down for the users why tasks of the service are held, and takes it back afterwards.
func (p *planner) notice() {
	text := p.waits
	if p.noticed {
		text = massFailure
	}
	if p.svc.Notice != text || p.opened != 0 {
		p.out.add(model.Change{SetNotice: &model.NoticeSet{Service: p.id, Text: text, Opened: p.opened}})
	}
}
