package manager

import (
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/state"
)

// watchBrake tells the operator when the brake on mass failure takes hold, when it holds for longer than was said
// because more nodes went down, and when it lets go.
func (p *Planner) watchBrake(snap *state.Snapshot, now model.Time, clock time.Time) {
	var b *orchestrate.Brake
	if p.settled(clock) { // until then no node counts as down
		b = orchestrate.Braked(snap, p.downAt, now)
	}
	switch old := p.brake; {
	case b != nil && (old == nil || *old != *b):
		p.log.Warn("mass failure: " + b.String())
	case b == nil && old != nil:
		text := "mass failure: the nodes did not come back, and their tasks are moved"
		switch c := snap.Cluster(); {
		case now < old.Until && c != nil && c.LossAccepted != p.accepted:
			text = "mass failure: the loss is accepted, and tasks are moved"
		case now < old.Until:
			text = "mass failure is over: nodes came back, and tasks on the others are moved"
		}
		p.log.Warn(text)
	}
	p.brake, p.accepted = b, 0
	if c := snap.Cluster(); c != nil {
		p.accepted = c.LossAccepted
	}
}

// brakeEnds is how long the brake still holds; false when it does not.
func (p *Planner) brakeEnds(wall model.Time) (time.Duration, bool) {
	if p.brake == nil {
		return 0, false
	}
	return time.Duration(p.brake.Until - wall), true
}
