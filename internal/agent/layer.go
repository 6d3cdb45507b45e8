package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/runtime"
)

// layerWait bounds how long a task waits for a network that the kernel refuses before it is rejected with the reason.
const layerWait = 3 * time.Second

// laid is what of a network is in the kernel: which virtual addresses each service has there.
type laid map[model.ServiceID][]netip.Addr

// layer is one overlay network as this node has it. network.mu guards it.
type layer struct {
	has laid  // nil while nothing of it is in the kernel
	at  place // of the tables that all tasks of this node in the network go by

	// why the network is not as it should be, nil when it is, and since when. No word of the kernel but of the plan itself is
	// final: trying again does not help.
	why   error
	since time.Time
	final bool
	// behind is why some task of this node may go by tables that are older than at; nil when none does.
	behind error
}

// olderThan reports whether a task of this node may go by tables older than at.
func (l *layer) olderThan(at place) bool { return l != nil && l.has != nil && l.at.before(at) }

// broken reports whether the layer is to be tried again.
func (l *layer) broken() bool { return l.why != nil && !l.final || l.behind != nil }

// fail notes why the network is not as it should be, nil when it is.
func (l *layer) fail(why error, final bool) {
	if why != nil && l.why == nil {
		l.since = time.Now()
	}
	l.why, l.final = why, final
}

// layer returns a network's layer, a new one when there is none; n.mu is held.
func (n *network) layer(id model.NetworkID) *layer {
	l := n.layers[id]
	if l == nil {
		l = &layer{}
		n.layers[id] = l
	}
	return l
}

// laidOut notes what came of laying a network: next is the layer that it was to become, err what netapply said of it.
func (n *network) laidOut(id model.NetworkID, next layer, err error) {
	parts, rest := netplan.Parts(err)
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.layer(id)
	why := rest
	var behind error
	for _, p := range parts {
		switch {
		case p.Task != "":
			behind = p
		case p.Network == uint64(id):
			why = p.Err
		}
	}
	defer n.progress.tell()
	l.fail(why, false)
	if rest != nil {
		l.behind = rest // what was done of it is not known
		return
	}
	if l.has, l.behind = next.has, behind; behind == nil {
		l.at = next.at
	}
}

// laidAll is laidOut for the networks of a full pass, and forgets those that are no more.
func (n *network) laidAll(next map[model.NetworkID]layer, err error) {
	parts, _ := netplan.Parts(err)
	of := map[model.NetworkID][]error{}
	n.mu.Lock()
	n.lost = false
	for _, p := range parts {
		nets := p.Nets
		if p.Task == "" {
			nets = []uint64{p.Network}
		}
		n.lost = n.lost || len(nets) == 0
		for _, id := range nets {
			of[model.NetworkID(id)] = append(of[model.NetworkID(id)], p)
		}
	}
	for id, l := range n.layers {
		if _, ok := next[id]; !ok && !l.final {
			delete(n.layers, id)
		}
	}
	n.mu.Unlock()
	for id, l := range next {
		n.laidOut(id, l, errors.Join(of[id]...))
	}
}

// refuse reports whether this node cannot have a network, and notes why: its tasks say so, and nothing else of the node suffers.
func (n *network) refuse(id model.NetworkID, plan netplan.Overlay) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.node.CheckOverlay(plan)
	if err == nil {
		return false
	}
	l := n.layer(id)
	if !l.final {
		n.cfg.Log.Error("this node cannot have an overlay network", "err", err)
	}
	l.fail(err, true)
	n.progress.tell()
	return true
}

// incomplete reports whether something that concerns no more than a network or task could not be done.
func (n *network) incomplete() bool {
	n.mu.Lock()
	lost := n.lost
	n.mu.Unlock()
	return lost || len(n.brokenLayers()) > 0
}

// brokenLayers lists the networks that are to be tried again.
func (n *network) brokenLayers() []model.NetworkID {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []model.NetworkID
	for id, l := range n.layers {
		if l.broken() {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// awaitOverlays returns when the networks of a task are laid, or says after a while which is not. For networks that this node
// cannot have the error is of kind KindInvalid.
func (n *network) awaitOverlays(ctx context.Context, nets []netplan.Attachment) error {
	begun := time.Now()
	asked := false
	for {
		n.mu.Lock()
		settled, why := n.progress.settled, n.progress.why
		left, wait := n.missing(nets, begun)
		n.mu.Unlock()
		switch {
		case left == nil:
			return nil
		case wait > 0 && !asked && left.why != nil:
			asked = true
			n.change(func() { n.again = true }) // what was in the way may be gone
		case wait > 0:
		case left.why != nil:
			return runtime.Invalid("this node cannot have the task's network %s: %v", n.nets.name(left.id), left.why)
		case why != nil:
			return temporary{fmt.Errorf("overlay network %s is not up on this node: %w", n.nets.name(left.id), why)}
		default:
			return temporary{fmt.Errorf("the managers have not told this node of overlay network %d yet", left.id)}
		}
		timer := time.NewTimer(wait)
		select {
		case <-settled:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// missingNet is a network that a task waits for.
type missingNet struct {
	id  model.NetworkID
	why error // what the node knows to be in the way
}

// missing is the first of a task's networks that it cannot have yet, nil for none, and how long it is to be waited for by a task
// that has waited since begun; n.mu is held.
func (n *network) missing(nets []netplan.Attachment, begun time.Time) (*missingNet, time.Duration) {
	var out *missingNet
	wait := time.Until(begun.Add(networkWait))
	for _, a := range nets {
		id := model.NetworkID(a.Network)
		l := n.layers[id]
		switch {
		case l != nil && l.final:
			return &missingNet{id, l.why}, 0
		case l != nil && l.why != nil:
			if left := time.Until(later(begun, l.since).Add(layerWait)); out == nil || left < wait {
				out, wait = &missingNet{id, l.why}, left
			}
		case (l == nil || l.has == nil) && out == nil:
			out = &missingNet{id, nil}
		}
	}
	return out, wait
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// removeOverlays takes networks away that the managers say nothing of any more, each after its last task here.
func (n *network) removeOverlays(ctx context.Context) error {
	n.mu.Lock()
	free := make(map[model.NetworkID]bool, len(n.dying))
	for id := range n.dying {
		free[id] = true
	}
	for _, t := range n.added {
		for _, a := range t.Nets {
			delete(free, model.NetworkID(a.Network))
		}
	}
	n.mu.Unlock()
	var errs []error
	for id := range free {
		if err := n.cfg.Network.RemoveOverlay(ctx, uint64(id)); err != nil {
			errs = append(errs, &netplan.PartError{Network: uint64(id), Err: err})
			continue
		}
		n.mu.Lock()
		delete(n.dying, id)
		n.mu.Unlock()
	}
	return errors.Join(errs...)
}
