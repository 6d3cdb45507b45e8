package netplan

import (
	"net/netip"
	"slices"
	"strconv"
)

// taskLink is the name of the interface of a task's i-th attachment.
func taskLink(i int) string { return "eth" + strconv.Itoa(i) }

func vniMAC(kind byte, vni uint32) MAC {
	return MAC{0x02, kind, 0, byte(vni >> 16), byte(vni >> 8), byte(vni)}
}

// VXLANLink is the name of a network's VXLAN device.
func VXLANLink(vni uint32) string { return "vx-" + strconv.FormatUint(uint64(vni), 10) }

// OverlaySpace plans a network's sandbox without the tasks of this node. While no other node has a task there, it has
// no VXLAN device: a node alone opens no port.
func OverlaySpace(n Node, o Overlay) Space {
	mtu := n.overlayMTU(o)
	s := Space{
		Name: OverlayName(o.Num),
		Links: []Link{
			{Name: "lo", Kind: "lo"},
			{Name: OverlayBridge, Kind: "bridge", MTU: mtu, MAC: vniMAC(0x75, o.VNI)},
		},
		Sysctls: slices.Concat(bridged, quiet6),
	}
	if o.IPv6() {
		s.Sysctls = append(s.Sysctls, enable6)
	}
	if len(o.Remotes) == 0 {
		return s
	}
	s.Links = append(s.Links, Link{
		Name: VXLANLink(o.VNI), Kind: "vxlan", MTU: mtu, MAC: vniMAC(0x76, o.VNI), Master: OverlayBridge, Port: true, Shared: true,
		VNI: o.VNI, VTEP: n.VTEP, VXLANPort: n.vxlanPort(),
	})
	remotes := slices.SortedFunc(slices.Values(o.Remotes), func(a, b Remote) int { return a.Addr4.Compare(b.Addr4) })
	for _, r := range remotes {
		s.Neighbours = append(s.Neighbours, RemoteNeighbours(o, r)...)
	}
	return s
}

// RemoteNeighbours are what one task on another node adds to a network's sandbox: whose Ethernet address it has, through
// which port it is reached, and on which node it is.
func RemoteNeighbours(o Overlay, r Remote) []Neighbour {
	vx, mac := VXLANLink(o.VNI), macOf(r.Addr4)
	out := []Neighbour{{Link: vx, Addr: r.Addr4, MAC: mac}, {Link: vx, MAC: mac}, {Link: vx, MAC: mac, VTEP: r.VTEP}}
	if r.Addr6.IsValid() {
		out = append(out, Neighbour{Link: vx, Addr: r.Addr6, MAC: mac})
	}
	return out
}

// OverlayPort plans what a task of this node adds to the sandbox of its network.
func OverlayPort(n Node, o Overlay, t Task, a Attachment) Space {
	port := "t" + t.Name()
	return Space{
		Name: OverlayName(o.Num),
		Links: []Link{{
			Name: port, Kind: "peer", MTU: n.overlayMTU(o), MAC: portMAC(a.Addr4), Master: OverlayBridge, Port: true, Shared: true,
			Index: portIndex(a.Addr4),
		}},
		Neighbours: []Neighbour{{Link: port, MAC: macOf(a.Addr4)}},
	}
}

// attach adds a task's i-th network to its namespace: an interface, its addresses, and what is on the link. A route
// over it leads nowhere else.
func (s *Space) attach(n Node, o Overlay, t Task, i int) {
	a, name := t.Nets[i], taskLink(i)
	s.Links = append(s.Links, Link{
		Name: name, Kind: "veth", MTU: n.overlayMTU(o), MAC: macOf(a.Addr4), Index: taskIndex + 1 + i,
		Peer: "t" + t.Name(), PeerIn: OverlayName(o.Num), PeerMAC: portMAC(a.Addr4), PeerIndex: portIndex(a.Addr4),
	})
	metric := 0
	for _, addr := range []netip.Addr{a.Addr4, a.Addr6} {
		own, ok := o.subnet(addr)
		if !ok {
			continue
		}
		// The route is planned, not left to the kernel, so that it is put back when it is lost.
		s.Addrs = append(s.Addrs, Addr{Link: name, Prefix: netip.PrefixFrom(addr, own.Bits()), NoRoute: true})
		for _, p := range o.Subnets {
			if isSix(p) == addr.Is6() {
				s.Routes = append(s.Routes, Route{Dst: p.Masked(), Link: name, Src: addr, Metric: metric})
			}
		}
		metric = 1024 // the kernel's own for IPv6
	}
}

// vipChain is the name of the chain that balances a virtual address: nft takes no colons there.
func vipChain(a netip.Addr) string {
	b := []byte("vip-" + a.String())
	for i, c := range b {
		if c == ':' {
			b[i] = '-'
		}
	}
	return string(b)
}

// Chain is the name of the chain that balances the address.
func (v VIP) Chain() string { return vipChain(v.Addr) }

// VIPChain plans the chain that balances one virtual address for tasks of one Turn. All protocols are translated alike.
func VIPChain(v VIP, turn int) Chain {
	c := Chain{Name: v.Chain()}
	to := slices.Clone(v.Backends)
	slices.SortFunc(to, netip.Addr.Compare)
	to = slices.Compact(to)
	family := uint8(4)
	if v.Addr.Is6() {
		family = 6
	}
	if len(to) == 0 {
		// Refused where it comes out of the loopback interface: a program is not told of a refusal on the way out.
		c.Rules = []Match{{Verb: Mark}, {Family: family, Verb: Translate, To: []netip.AddrPort{netip.AddrPortFrom(loopback(family), 0)}}}
		return c
	}
	m := Match{Family: family, Verb: Translate}
	first := turn * len(to) / Turns
	for i := range to {
		m.To = append(m.To, netip.AddrPortFrom(to[(first+i)%len(to)], 0))
	}
	if len(to) > 1 {
		m.Verb = Balance
	}
	c.Rules = []Match{m}
	return c
}

func loopback(family uint8) netip.Addr {
	if family == 6 {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// refuse is where connections end that go to a virtual address without a backend.
var refuse = Chain{Name: "in", Type: "filter", Hook: "input", Priority: PrioFilter, Rules: []Match{
	{Marked: true, Proto: TCP, Verb: Reset},
	{Marked: true, Verb: Refuse},
}}

// TaskTable plans the rules in a task's namespace: where its resolver is, and the virtual addresses of its networks. It
// is nil for a task that has neither.
func TaskTable(n Node, nets Overlays, t Task) *Table {
	if len(t.Nets) == 0 && t.DNS == (DNSPorts{}) {
		return nil
	}
	return &Table{Name: n.HostLink(), Virtual: true, Chains: []Chain{refuse, OutChain(t.DNS)}, VIPs: nets.vips(t), Turn: t.Turn()}
}

// OutChain plans what happens to connections that a task begins.
func OutChain(dns DNSPorts) Chain {
	c := Chain{Name: "out", Type: "nat", Hook: "output", Priority: PrioDstNAT}
	at := netip.PrefixFrom(DNSAddr, 32)
	for _, v := range []struct {
		proto Proto
		port  uint16
	}{{UDP, dns.UDP}, {TCP, dns.TCP}} {
		if v.port != 0 {
			c.Rules = append(c.Rules, Match{
				Family: 4, Dst: at, Proto: v.proto, Port: 53, Verb: Translate, To: []netip.AddrPort{netip.AddrPortFrom(DNSAddr, v.port)},
			})
		}
	}
	c.Rules = append(c.Rules, Match{Family: 4, Verb: Virtual}, Match{Family: 6, Verb: Virtual})
	return c
}
