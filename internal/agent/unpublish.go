package agent

import (
	"context"
	"net/netip"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
)

// awaitUnpublished returns when no ingress port of this node leads to a task any more, or ctx ends. A task that is told to stop
// before that may be asked by a client that it does not answer any more.
func (n *network) awaitUnpublished(ctx context.Context, id model.TaskID) {
	for {
		n.mu.Lock()
		settled, leads := n.progress.settled, n.leadsTo(n.added[id])
		n.mu.Unlock()
		if !leads {
			return
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return
		}
	}
}

// leads is leadsTo for a task by its key.
func (n *network) leads(id model.TaskID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leadsTo(n.added[id])
}

// serves reports whether a task of this node is led to: by an ingress port of the node, or in a network.
func (n *network) serves(id model.TaskID) bool { return n.leads(id) || n.nets.serves(id) }

// replaceable reports whether clients are led to a task of this node, and to another task of its service as well.
func (n *network) replaceable(id model.TaskID) bool {
	n.mu.Lock()
	others := false
	for _, p := range n.applied {
		others = others || leads(p, n.added[id]) && max(len(p.Backends4), len(p.Backends6)) > 1
	}
	n.mu.Unlock()
	return others || n.nets.replaceable(id)
}

// awaitUnserved returns when nobody of this node is led to a task any more, or ctx ends.
func (n *network) awaitUnserved(ctx context.Context, id model.TaskID) {
	for {
		n.mu.Lock()
		settled, leads := n.progress.settled, n.leadsTo(n.added[id])
		n.mu.Unlock()
		if !leads && !n.nets.serves(id) {
			break
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return
		}
	}
	n.mu.Lock()
	nets := n.added[id].Nets
	n.mu.Unlock()
	n.awaitPass(ctx, n.nets.places(nets)) // the networks' tables may be newer than the kernel's
}

// leadsTo reports whether the kernel sends traffic of an ingress port to a task. n.mu is held.
func (n *network) leadsTo(t netplan.Task) bool {
	for _, p := range n.applied {
		if leads(p, t) {
			return true
		}
	}
	return false
}

// leads reports whether a task is one that an ingress port leads to.
func leads(p netplan.Port, t netplan.Task) bool {
	is := func(addr netip.Addr) func(netip.AddrPort) bool {
		return func(b netip.AddrPort) bool { return b.Addr() == addr }
	}
	return p.Mode == netplan.Ingress && (slices.ContainsFunc(p.Backends4, is(t.Addr4)) || slices.ContainsFunc(p.Backends6, is(t.Addr6)))
}
