package netplan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// Limits of overlay networks on one node.
const (
	// MaxOverlays bounds the overlay networks of one node.
	MaxOverlays = 1000
	// MaxAttachments bounds the overlay networks of one task.
	MaxAttachments = 64
	// MaxVIPs bounds the virtual addresses of one network.
	MaxVIPs = 10000
	// MaxRemotes bounds the tasks of one network on other nodes.
	MaxRemotes = 100000
	// MaxVNI is the largest VXLAN network identifier.
	MaxVNI = 1<<24 - 1

	// DefaultVXLANPort is the UDP port that nodes send each other overlay traffic on.
	DefaultVXLANPort = 4789

	vxlanOverhead4, vxlanOverhead6 = 50, 70 // bytes of outer headers
	minMTU4, minMTU6               = 576, 1280
)

// Names inside the namespaces of overlay networks.
const (
	OverlayBridge = "br"
	overlayPrefix = "net-" // of a sandbox's name and namespace file
)

// DNSAddr is where a task's resolver is: its sockets listen on other ports of this address, because a server in the
// task that binds port 53 of all addresses must not fail.
var DNSAddr = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// An Attachment is a task's place in one overlay network. The n-th attachment of a task is its interface eth<n>.
type Attachment struct {
	Network uint64 // Overlay.Num
	Addr4   netip.Addr
	Addr6   netip.Addr // the zero Addr in a network without IPv6
}

// DNSPorts are the ports of DNSAddr in a task's namespace on which its resolver listens; 0 is none.
type DNSPorts struct{ UDP, TCP uint16 }

// A Remote is a task of a network that runs on another node.
type Remote struct {
	Addr4, Addr6 netip.Addr // Addr6 may be the zero Addr
	VTEP         netip.Addr // that node's address in the underlay
}

// A VIP is a virtual address and the tasks that new connections to it are spread over, all of one address family. The
// order of backends does not matter and repeated ones count once. Without a backend it refuses.
type VIP struct {
	Addr     netip.Addr
	Backends []netip.Addr
}

// An Overlay is one overlay network as a node needs it that has tasks there.
type Overlay struct {
	Num uint64
	VNI uint32
	// Subnets are what is reached on the link: at least one of IPv4, and with IPv6 at least one of it.
	Subnets []netip.Prefix
	// Internal says that the network leads nowhere else. A task all of whose networks are internal is sealed.
	Internal bool
	MTU      int // of its interfaces, in bytes; 0 is the underlay's less VXLAN's headers
	Remotes  []Remote
	VIPs     []VIP
}

// OverlayName is the name of a network's sandbox and of its namespace file.
func OverlayName(num uint64) string { return overlayPrefix + strconv.FormatUint(num, 10) }

// IPv6 tells whether the network has IPv6.
func (o Overlay) IPv6() bool { return slices.ContainsFunc(o.Subnets, isSix) }

func isSix(p netip.Prefix) bool { return p.Addr().Is6() }

// subnet is the one that an address lies in.
func (o Overlay) subnet(a netip.Addr) (netip.Prefix, bool) {
	for _, p := range o.Subnets {
		if p.Contains(a) {
			return p.Masked(), true
		}
	}
	return netip.Prefix{}, false
}

// mtu is that of a network's interfaces.
func (n Node) overlayMTU(o Overlay) int {
	if o.MTU != 0 {
		return o.MTU
	}
	m := n.mtu() - vxlanOverhead4
	if n.VTEP.Is6() {
		m = n.mtu() - vxlanOverhead6
	}
	if o.IPv6() {
		m = max(m, minMTU6)
	}
	return m
}

// CheckOverlay reports what is wrong with a network.
func (n Node) CheckOverlay(o Overlay) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("network %d: %s", o.Num, fmt.Sprintf(format, args...))
	}
	if o.VNI > MaxVNI || o.VNI == 0 {
		return bad("VNI %d: want 1 to %d", o.VNI, MaxVNI)
	}
	four := false
	for i, p := range o.Subnets {
		if !p.IsValid() || p.Addr().Is4In6() || p.Bits() < 8 {
			return bad("subnet %v: want a prefix of 8 bits or longer", p)
		}
		four = four || p.Addr().Is4()
		for _, q := range o.Subnets[:i] {
			if q.Overlaps(p) {
				return bad("subnets %v and %v overlap", q, p)
			}
		}
	}
	if !four {
		return bad("no IPv4 subnet")
	}
	if least := map[bool]int{false: minMTU4, true: minMTU6}[o.IPv6()]; o.MTU != 0 && (o.MTU < least || o.MTU > 65535) {
		return bad("MTU %d: want %d to 65535", o.MTU, least)
	}
	if len(o.VIPs) > MaxVIPs {
		return bad("%d virtual addresses: at most %d", len(o.VIPs), MaxVIPs)
	}
	if len(o.Remotes) > MaxRemotes {
		return bad("%d remote tasks: at most %d", len(o.Remotes), MaxRemotes)
	}
	seen := map[netip.Addr]bool{}
	for _, v := range o.VIPs {
		if err := o.CheckVIP(v); err != nil {
			return err
		}
		if seen[v.Addr] {
			return bad("virtual address %v is given twice", v.Addr)
		}
		seen[v.Addr] = true
	}
	for _, r := range o.Remotes {
		if err := n.CheckRemote(o, r); err != nil {
			return err
		}
		if seen[r.Addr4] {
			return bad("address %v is given twice", r.Addr4)
		}
		seen[r.Addr4] = true
	}
	return nil
}

// CheckVIP reports what is wrong with a virtual address of the network.
func (o Overlay) CheckVIP(v VIP) error {
	if _, ok := o.subnet(v.Addr); !ok {
		return fmt.Errorf("network %d: virtual address %v is in none of %v", o.Num, v.Addr, o.Subnets)
	}
	if len(v.Backends) > MaxBackends {
		return fmt.Errorf("network %d: virtual address %v has more than %d backends", o.Num, v.Addr, MaxBackends)
	}
	for _, b := range v.Backends {
		if _, ok := o.subnet(b); !ok || b.Is4() != v.Addr.Is4() || b == v.Addr {
			return fmt.Errorf("network %d: backend %v of %v: want another address of %v of the same family", o.Num, b, v.Addr, o.Subnets)
		}
	}
	return nil
}

// CheckRemote reports what is wrong with a task on another node.
func (n Node) CheckRemote(o Overlay, r Remote) error {
	if !r.VTEP.IsValid() || r.VTEP.Is4() != n.VTEP.Is4() || r.VTEP == n.VTEP {
		return fmt.Errorf("network %d: task %v is on the node at %v: this node, at %v, cannot send there", o.Num, r.Addr4, r.VTEP, n.VTEP)
	}
	return o.checkAddrs(r.Addr4, r.Addr6)
}

func (o Overlay) checkAddrs(a4, a6 netip.Addr) error {
	if p, ok := o.subnet(a4); !ok || !a4.Is4() || a4 == p.Addr() || p.Bits() < 31 && a4 == last4(p) {
		return fmt.Errorf("network %d: %v is no address for a task in %v", o.Num, a4, o.Subnets)
	}
	if _, ok := o.subnet(a6); a6.IsValid() && (!ok || !a6.Is6()) {
		return fmt.Errorf("network %d: %v is no IPv6 address for a task in %v", o.Num, a6, o.Subnets)
	}
	return nil
}

// Overlays are networks by their number.
type Overlays map[uint64]Overlay

// OverlaysOf indexes a list.
func OverlaysOf(list []Overlay) Overlays {
	out := make(Overlays, len(list))
	for _, o := range list {
		out[o.Num] = o
	}
	return out
}

// CheckNets reports what is wrong with a task's attachments. Two networks with overlapping subnets cannot meet in one
// task: nothing could tell where an address leads.
func (nets Overlays) CheckNets(t Task) error {
	if len(t.Nets) > MaxAttachments {
		return fmt.Errorf("task %s: %d networks, at most %d", t.Name(), len(t.Nets), MaxAttachments)
	}
	for i, a := range t.Nets {
		o, ok := nets[a.Network]
		if !ok {
			return fmt.Errorf("task %s: network %d is not known on this node", t.Name(), a.Network)
		}
		if err := o.checkAddrs(a.Addr4, a.Addr6); err != nil {
			return fmt.Errorf("task %s: %w", t.Name(), err)
		}
		for _, b := range t.Nets[:i] {
			for _, p := range nets[b.Network].Subnets {
				if slices.ContainsFunc(o.Subnets, p.Overlaps) {
					return fmt.Errorf("task %s: its networks %d and %d both have %v", t.Name(), b.Network, a.Network, p)
				}
			}
		}
	}
	return nil
}

// checkUnique reports an address of a network that two tasks have.
func (nets Overlays) checkUnique(tasks []Task) error {
	type place struct {
		network uint64
		addr    netip.Addr
	}
	seen := map[place]bool{}
	take := func(network uint64, a netip.Addr) error {
		if k := (place{network, a}); a.IsValid() && seen[k] {
			return fmt.Errorf("network %d: two tasks have the address %v", network, a)
		} else {
			seen[k] = true
		}
		return nil
	}
	for _, o := range nets {
		for _, r := range o.Remotes {
			seen[place{o.Num, r.Addr4}], seen[place{o.Num, r.Addr6}] = true, true
		}
	}
	for _, t := range tasks {
		for _, a := range t.Nets {
			if err := errors.Join(take(a.Network, a.Addr4), take(a.Network, a.Addr6)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Sealed tells whether a task must not reach anything beyond its networks: it has some, and all are internal. Its
// published ports are reachable all the same.
func (nets Overlays) Sealed(t Task) bool {
	for _, a := range t.Nets {
		if !nets[a.Network].Internal {
			return false
		}
	}
	return len(t.Nets) > 0
}

// vips are the virtual addresses of a task's networks, in order.
func (nets Overlays) vips(t Task) []VIP {
	var out []VIP
	for _, a := range t.Nets {
		out = append(out, nets[a.Network].VIPs...)
	}
	slices.SortFunc(out, func(a, b VIP) int { return a.Addr.Compare(b.Addr) })
	return out
}
