package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
)

// unpublishWait bounds how long a task is kept from its stop signal because published ports still lead to it: the
// managers' word that they do not comes with the one to stop, or it does not come.
const unpublishWait = time.Second

// awaitUnpublished returns when no ingress port of this node leads to a task any more, or after unpublishWait. A task
// that is told to stop before that may be asked by a client that it does not answer any more.
func (n *network) awaitUnpublished(ctx context.Context, id model.TaskID) {
	timer := time.NewTimer(unpublishWait)
	defer timer.Stop()
	for {
		n.mu.Lock()
		settled, leads := n.settled, n.leadsTo(n.added[id])
		n.mu.Unlock()
		if !leads {
			return
		}
		select {
		case <-settled:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// leadsTo reports whether the kernel sends traffic of an ingress port to a task. n.mu is held.
func (n *network) leadsTo(t netplan.Task) bool {
	is := func(addr netip.Addr) func(netip.AddrPort) bool {
		return func(b netip.AddrPort) bool { return b.Addr() == addr }
	}
	for _, p := range n.applied {
		if p.Mode == netplan.Ingress && (slices.ContainsFunc(p.Backends4, is(t.Addr4)) || slices.ContainsFunc(p.Backends6, is(t.Addr6))) {
			return true
		}
	}
	return false
}

// settle notes what the kernel's published ports are now. n.mu is held.
func (n *network) settle(applied map[netplan.PortKey]netplan.Port) {
	n.applied, n.why = applied, nil
	close(n.settled)
	n.settled = make(chan struct{})
}
