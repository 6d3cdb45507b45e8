package netapply

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

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
	total := len(n.ports)
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
	if err != nil {
		// Someone has removed what we meant to change: compare everything.
		if _, err = n.hostFW.reconcile(netplan.HostSpace(n.node, n.portList()).Table); err != nil {
			return err
		}
	}
	return n.forgetUDP(before, set, del)
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

// udpFilter picks the tracked flows whose translation no longer holds.
type udpFilter struct {
	gone  map[uint16]map[netip.AddrPort]bool // published port → backends it lost
	fresh map[uint16]bool                    // ports that flows may have reached before they were published
}

// MatchConntrackFlow tells whether a flow is to be forgotten.
func (f udpFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	from, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok {
		return false
	}
	if f.fresh[flow.Forward.DstPort] && from.Unmap() == to.Unmap() {
		return true
	}
	return f.gone[flow.Forward.DstPort][netip.AddrPortFrom(from.Unmap(), flow.Reverse.SrcPort)]
}

// forgetUDP deletes the tracked flows of removed UDP backends: the kernel
// would go on sending a connected client's datagrams to them. before holds the
// ports as they were.
func (n *Network) forgetUDP(before map[netplan.PortKey]netplan.Port, now []netplan.Port, del []netplan.PortKey) error {
	f := udpFilter{gone: map[uint16]map[netip.AddrPort]bool{}, fresh: map[uint16]bool{}}
	after := map[netplan.PortKey]netplan.Port{}
	for _, p := range now {
		after[p.PortKey] = p
		if old, ok := before[p.PortKey]; p.Proto == netplan.UDP && (!ok || len(old.Backends4)+len(old.Backends6) == 0) {
			f.fresh[p.Number] = true
		}
	}
	_ = del // withdrawn ports are in before and not in after
	for k, old := range before {
		if k.Proto != netplan.UDP {
			continue
		}
		kept := after[k]
		for _, b := range slices.Concat(old.Backends4, old.Backends6) {
			if !slices.Contains(kept.Backends4, b) && !slices.Contains(kept.Backends6, b) {
				if f.gone[k.Number] == nil {
					f.gone[k.Number] = map[netip.AddrPort]bool{}
				}
				f.gone[k.Number][b] = true
			}
		}
	}
	if len(f.gone) == 0 && len(f.fresh) == 0 {
		return nil
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(n.host.fd), unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open conntrack: %w", err)
	}
	defer h.Close()
	families := []netlink.InetFamily{unix.AF_INET}
	if n.node.IPv6() {
		families = append(families, unix.AF_INET6)
	}
	for _, fam := range families {
		if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, fam, f); err != nil {
			return fmt.Errorf("forget UDP flows of removed backends: %w", err)
		}
	}
	return nil
}
