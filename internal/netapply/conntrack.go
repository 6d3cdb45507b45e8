package netapply

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// The kernel translates only the first packet of a flow and then remembers.
// A TCP connection ends by itself; a client's UDP socket would be sent to a
// backend that is gone for as long as it goes on asking.

// udpFilter picks the tracked flows whose memory is wrong.
type udpFilter struct {
	local map[netip.Addr]bool // the host's own addresses
	ports map[uint16]udpPort
}

type udpPort struct {
	published bool
	backends  map[netip.AddrPort]bool
}

// MatchConntrackFlow tells whether a flow is to be forgotten.
func (f udpFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	p, ok := f.ports[flow.Forward.DstPort]
	if !ok || flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	to, from = to.Unmap(), from.Unmap()
	if !to.IsLoopback() && !f.local[to] {
		return false // to a port of the same number elsewhere
	}
	if from == to {
		return p.published // it began before the port was published
	}
	return !p.backends[netip.AddrPortFrom(from, flow.Reverse.SrcPort)]
}

// touchedUDP lists the UDP ports among those that change for which flows may
// be remembered wrongly: those new or without a backend before, those that
// lost one, and those withdrawn, which are in before and not in now.
func touchedUDP(before map[netplan.PortKey]netplan.Port, now []netplan.Port) (out []uint16) {
	after := map[netplan.PortKey]netplan.Port{}
	for _, p := range now {
		after[p.PortKey] = p
		old, ok := before[p.PortKey]
		lost := func(b netip.AddrPort) bool {
			return !slices.Contains(p.Backends4, b) && !slices.Contains(p.Backends6, b)
		}
		was := slices.Concat(old.Backends4, old.Backends6)
		if p.Proto == netplan.UDP && (!ok || len(was) == 0 || slices.ContainsFunc(was, lost)) {
			out = append(out, p.Number)
		}
	}
	for k := range before {
		if _, kept := after[k]; !kept && k.Proto == netplan.UDP {
			out = append(out, k.Number)
		}
	}
	return out
}

// oweUDP notes UDP ports whose flows are to be forgotten as soon as the host's
// rules are right: before, the next packet would lead a flow back. portMu is
// held, or state for writing.
func (n *Network) oweUDP(ports []uint16) {
	for _, p := range ports {
		n.owedUDP[p] = true
	}
}

// thenForget forgets what is owed of published ports after the host's rules
// were made right. It returns the error of that, which may be of parts, with its own.
func (n *Network) thenForget(err error) error {
	if _, rest := netplan.Parts(err); rest != nil {
		return err
	}
	n.portMu.Lock()
	defer n.portMu.Unlock()
	return errors.Join(err, n.forgetUDP(slices.Collect(maps.Keys(n.owedUDP))))
}

// udpBackends are UDP ports with the backends that they have now.
func (n *Network) udpBackends(numbers []uint16) map[uint16]udpPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[uint16]udpPort{}
	for _, number := range numbers {
		p, published := n.ports[netplan.PortKey{Proto: netplan.UDP, Number: number}]
		up := udpPort{published: published, backends: map[netip.AddrPort]bool{}}
		for _, b := range slices.Concat(p.Backends4, p.Backends6) {
			up.backends[b] = true
		}
		out[number] = up
	}
	return out
}

// forgetUDP deletes the tracked flows of some ports that lead elsewhere than to
// one of their backends; no more is owed of them then. portMu is held.
func (n *Network) forgetUDP(numbers []uint16) error {
	if len(numbers) == 0 {
		return nil
	}
	own, err := n.host.addrs(0)
	if err != nil {
		return fmt.Errorf("read the host's addresses: %w", err)
	}
	f := udpFilter{local: map[netip.Addr]bool{}, ports: n.udpBackends(numbers)}
	for _, a := range own {
		f.local[a.prefix.Addr()] = true
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
	for _, number := range numbers {
		delete(n.owedUDP, number)
	}
	return nil
}
