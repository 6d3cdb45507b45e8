package netapply

import (
	"context"
	"fmt"
	"slices"

	"github.com/skep-swarm/skep/internal/netplan"
)

// SetPorts publishes ports, or gives those that are published other backends,
// and withdraws the ports of del, in one nftables transaction that touches
// only their chains. Removed backends get no new connections when it returns:
// TCP connections drain, UDP flows are cut over. A port without a backend
// refuses. Withdrawing what is not published is no error.
func (n *Network) SetPorts(ctx context.Context, set []netplan.Port, del []netplan.PortKey) error {
	n.state.RLock()
	defer n.state.RUnlock()
	if !n.ready {
		return ErrNotReady
	}
	for _, p := range set {
		if err := n.node.CheckPort(p); err != nil {
			return err
		}
		if slices.Contains(del, p.PortKey) {
			return fmt.Errorf("port %v is both published and withdrawn", p.PortKey)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n.portMu.Lock()
	defer n.portMu.Unlock()
	fresh, before := map[netplan.PortKey]bool{}, map[netplan.PortKey]netplan.Port{}
	n.mu.Lock()
	for _, p := range set {
		old, ok := n.ports[p.PortKey]
		fresh[p.PortKey] = !ok
		if ok {
			before[p.PortKey] = old
		}
	}
	del = slices.DeleteFunc(slices.Clone(del), func(k netplan.PortKey) bool {
		old, ok := n.ports[k]
		before[k] = old
		return !ok
	})
	total := len(n.ports) - len(del)
	n.mu.Unlock()
	for _, isNew := range fresh {
		total += b2i(isNew)
	}
	if total > netplan.MaxPorts {
		return fmt.Errorf("%d published ports: at most %d fit on one node", total, netplan.MaxPorts)
	}
	if len(set)+len(del) == 0 {
		return nil
	}
	err := n.hostFW.setPorts(n.node.HostLink(), set, fresh, del)
	n.mu.Lock()
	for _, p := range set {
		n.ports[p.PortKey] = p
	}
	for _, k := range del {
		delete(n.ports, k)
	}
	n.mu.Unlock()
	touched := touchedUDP(before, set)
	n.oweUDP(touched)
	if err != nil {
		// Someone has removed what we meant to change: compare everything.
		if _, err = n.hostFW.reconcile(netplan.HostSpace(n.node, n.portList()).Table); err != nil {
			return err
		}
	}
	return n.forgetUDP(touched)
}

func (n *Network) portList() []netplan.Port {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]netplan.Port, 0, len(n.ports))
	for _, p := range n.ports {
		out = append(out, p)
	}
	return out
}
