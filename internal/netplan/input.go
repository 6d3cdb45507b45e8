package netplan

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Limits of one node's gateway network.
const (
	// MaxTasks is bounded by the number of ports of a Linux bridge (1,024).
	MaxTasks = 1000
	// MaxPorts bounds the published ports of one node.
	MaxPorts = 10000
	// MaxBackends bounds the backends of one port and one address family.
	MaxBackends = 1000
)

// A Node is what the gateway network needs to know of the node it is on.
type Node struct {
	Instance string // 6 lowercase hex characters, unique on this host

	// Link4 and Link6 join the host with the sandbox: the first usable address
	// of the prefix is the host's, the second the sandbox's. Link4 is a /30,
	// Link6 a /126. Link6 is the zero Prefix on a host without IPv6.
	Link4, Link6 netip.Prefix

	Pool4, Pool6 netip.Prefix   // all nodes' task addresses
	Blocks4      []netip.Prefix // this node's parts of Pool4; the first address of each is the gateway
	Block6       netip.Prefix   // this node's part of Pool6

	MTU int // of the tasks' interfaces, in bytes; 0 means 1500

	// VTEP is this node's address in the underlay, which it sends overlay traffic from. The zero Addr is for a node
	// that has no others.
	VTEP      netip.Addr
	VXLANPort uint16 // UDP; 0 means 4789
}

func (n Node) vxlanPort() uint16 {
	if n.VXLANPort == 0 {
		return DefaultVXLANPort
	}
	return n.VXLANPort
}

// IPv6 tells whether the node plans IPv6 at all.
func (n Node) IPv6() bool { return n.Block6.IsValid() }

// A Task is one task on this node that wants a gateway interface.
type Task struct {
	ID    string     // the container ID: at least 12 hex characters, the first 12 unique on the node
	Addr4 netip.Addr // in one of the node's Blocks4
	Addr6 netip.Addr // in the node's Block6; the zero Addr without IPv6
	PID   int        // a process in the task's namespace, or 0 when there is none or it is unknown

	Nets []Attachment // to overlay networks, in the order of its interfaces
	DNS  DNSPorts
}

// Name is the short name of the task's namespace file and, with a letter
// before it, of its bridge port.
func (t Task) Name() string { return t.ID[:min(12, len(t.ID))] }

// Turns is how many places in a list of backends there are at which tasks may begin.
const Turns = 8

// Turn is the place at which the task begins with the backends of virtual addresses, of Turns. Each task goes through
// them in turn for itself: if all began at the same one, it would get the only connection of all those that keep one.
func (t Task) Turn() int {
	b := t.Addr4.AsSlice()
	if len(b) == 0 {
		return 0
	}
	return int(b[len(b)-1]) % Turns
}

// A Proto is a transport protocol of a published port.
type Proto uint8

// The protocols that can be published, by their IP protocol numbers.
const (
	TCP Proto = 6
	UDP Proto = 17
)

func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// A Mode says over which tasks a published port is balanced.
type Mode uint8

const (
	Ingress Mode = iota // all running tasks of the service, on whichever node
	Host                // the tasks of this node only
)

func (m Mode) String() string {
	if m == Host {
		return "host"
	}
	return "ingress"
}

// A PortKey names a published port of a node.
type PortKey struct {
	Proto  Proto
	Number uint16
}

func (k PortKey) String() string { return fmt.Sprintf("%s/%d", k.Proto, k.Number) }

// chain is the name of the nftables chain that balances the port.
func (k PortKey) chain() string { return fmt.Sprintf("%s-%d", k.Proto, k.Number) }

func (k PortKey) compare(o PortKey) int {
	return cmp.Or(cmp.Compare(k.Proto, o.Proto), cmp.Compare(k.Number, o.Number))
}

// A Port is one published port and the running tasks behind it. The order of
// backends does not matter and repeated ones count once.
type Port struct {
	PortKey
	Mode      Mode
	Backends4 []netip.AddrPort
	Backends6 []netip.AddrPort
}

// Input is everything one node must have.
type Input struct {
	Node     Node
	Tasks    []Task
	Ports    []Port
	Overlays []Overlay
}

// Validate reports everything that is wrong with the node's settings.
func (n Node) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !isHex(n.Instance) || len(n.Instance) != 6 {
		bad("instance %q: want 6 lowercase hex characters", n.Instance)
	}
	if !n.Link4.IsValid() || !n.Link4.Addr().Is4() || n.Link4.Bits() != 30 {
		bad("IPv4 host link %v: want a /30", n.Link4)
	}
	if !n.Pool4.IsValid() || !n.Pool4.Addr().Is4() || n.Pool4.Bits() < 8 {
		bad("IPv4 pool %v: want a prefix of 8 bits or longer", n.Pool4)
	} else if n.Link4.IsValid() && n.Pool4.Overlaps(n.Link4) {
		bad("IPv4 host link %v lies in the pool %v", n.Link4, n.Pool4)
	}
	if len(n.Blocks4) == 0 {
		bad("no IPv4 block")
	}
	for i, b := range n.Blocks4 {
		if !b.IsValid() || !b.Addr().Is4() || b.Bits() > 29 || !n.Pool4.Overlaps(b) || b.Bits() < n.Pool4.Bits() {
			bad("IPv4 block %v: want a part of the pool %v, /29 or larger", b, n.Pool4)
		}
		for _, c := range n.Blocks4[:i] {
			if c.Overlaps(b) {
				bad("IPv4 blocks %v and %v overlap", c, b)
			}
		}
	}
	if n.IPv6() {
		if !n.Block6.Addr().Is6() || n.Block6.Bits() > 96 || !n.Pool6.Overlaps(n.Block6) || n.Block6.Bits() < n.Pool6.Bits() {
			bad("IPv6 block %v: want a part of the pool %v, /96 or larger", n.Block6, n.Pool6)
		}
		if !n.Link6.IsValid() || !n.Link6.Addr().Is6() || n.Link6.Bits() != 126 || n.Link6.Overlaps(n.Pool6) {
			bad("IPv6 host link %v: want a /126 outside the pool %v", n.Link6, n.Pool6)
		}
	}
	if n.MTU != 0 && (n.MTU < 1280 || n.MTU > 65535) {
		bad("MTU %d: want 1280 to 65535", n.MTU)
	}
	return errors.Join(errs...)
}

// CheckTask reports what is wrong with a task's addresses or ID.
func (n Node) CheckTask(t Task) error {
	if len(t.ID) < 12 || !isHex(t.ID[:12]) {
		return fmt.Errorf("task %q: the ID must begin with 12 hex characters", t.ID)
	}
	b, ok := n.block4(t.Addr4)
	if !ok {
		return fmt.Errorf("task %s: address %v is in none of the node's blocks %v", t.Name(), t.Addr4, n.Blocks4)
	}
	if t.Addr4 == b.Addr() || t.Addr4 == first(b) || t.Addr4 == last4(b) {
		return fmt.Errorf("task %s: address %v is reserved in %v", t.Name(), t.Addr4, b)
	}
	if t.Addr6.IsValid() != n.IPv6() {
		return fmt.Errorf("task %s: IPv6 address %v on a node with IPv6 block %v", t.Name(), t.Addr6, n.Block6)
	}
	if n.IPv6() && (!n.Block6.Contains(t.Addr6) || t.Addr6 == n.Block6.Masked().Addr() || t.Addr6 == first(n.Block6)) {
		return fmt.Errorf("task %s: address %v is not free in the node's block %v", t.Name(), t.Addr6, n.Block6)
	}
	return nil
}

// CheckPort reports what is wrong with a published port.
func (n Node) CheckPort(p Port) error {
	if p.Proto != TCP && p.Proto != UDP {
		return fmt.Errorf("port %v: only tcp and udp can be published", p.PortKey)
	}
	if p.Number == 0 {
		return fmt.Errorf("port %v: a published port is 1 to 65535", p.PortKey)
	}
	if len(p.Backends4) > MaxBackends || len(p.Backends6) > MaxBackends {
		return fmt.Errorf("port %v: more than %d backends", p.PortKey, MaxBackends)
	}
	for _, b := range slices.Concat(p.Backends4, p.Backends6) {
		if b.Port() == 0 {
			return fmt.Errorf("port %v: backend %v has no port", p.PortKey, b)
		}
		if _, local := n.block4(b.Addr()); p.Mode == Host && !local && !(n.IPv6() && n.Block6.Contains(b.Addr())) {
			return fmt.Errorf("port %v: host mode backend %v is not on this node", p.PortKey, b)
		}
	}
	for _, b := range p.Backends4 {
		if !b.Addr().Is4() {
			return fmt.Errorf("port %v: backend %v is not IPv4", p.PortKey, b)
		}
	}
	for _, b := range p.Backends6 {
		if !b.Addr().Is6() || b.Addr().Is4In6() {
			return fmt.Errorf("port %v: backend %v is not IPv6", p.PortKey, b)
		}
	}
	return nil
}

// Validate reports the first thing that makes the input impossible.
func (in Input) Validate() error {
	if err := in.Node.Validate(); err != nil {
		return err
	}
	if len(in.Tasks) > MaxTasks {
		return fmt.Errorf("%d tasks: at most %d fit on one node's gateway bridge", len(in.Tasks), MaxTasks)
	}
	nets, err := in.checkOverlays()
	if err != nil {
		return err
	}
	if len(in.Ports) > MaxPorts {
		return fmt.Errorf("%d published ports: at most %d fit on one node", len(in.Ports), MaxPorts)
	}
	names, addrs := map[string]bool{}, map[netip.Addr]bool{}
	for _, t := range in.Tasks {
		if err := in.Node.CheckTask(t); err != nil {
			return err
		}
		if err := nets.CheckNets(t); err != nil {
			return err
		}
		if names[t.Name()] || addrs[t.Addr4] || (t.Addr6.IsValid() && addrs[t.Addr6]) {
			return fmt.Errorf("task %s: its name or one of its addresses %v, %v is given twice", t.Name(), t.Addr4, t.Addr6)
		}
		names[t.Name()], addrs[t.Addr4], addrs[t.Addr6] = true, true, true
	}
	if err := nets.checkUnique(in.Tasks); err != nil {
		return err
	}
	keys := map[PortKey]bool{}
	for _, p := range in.Ports {
		if err := in.Node.CheckPort(p); err != nil {
			return err
		}
		if keys[p.PortKey] {
			return fmt.Errorf("port %v is published twice on this node", p.PortKey)
		}
		keys[p.PortKey] = true
	}
	return nil
}

func (in Input) checkOverlays() (Overlays, error) {
	if len(in.Overlays) > MaxOverlays {
		return nil, fmt.Errorf("%d overlay networks: at most %d fit on one node", len(in.Overlays), MaxOverlays)
	}
	nets := OverlaysOf(in.Overlays)
	if len(nets) != len(in.Overlays) {
		return nil, errors.New("a network is given twice")
	}
	vnis := map[uint32]uint64{}
	for _, o := range in.Overlays {
		if err := in.Node.CheckOverlay(o); err != nil {
			return nil, err
		}
		if other, ok := vnis[o.VNI]; ok {
			return nil, fmt.Errorf("networks %d and %d have the same VNI %d", other, o.Num, o.VNI)
		}
		vnis[o.VNI] = o.Num
	}
	return nets, nil
}

func (n Node) block4(a netip.Addr) (netip.Prefix, bool) {
	for _, b := range n.Blocks4 {
		if b.Contains(a) {
			return b.Masked(), true
		}
	}
	return netip.Prefix{}, false
}

// first is the first usable address of a prefix.
func first(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// last4 is the broadcast address of an IPv4 prefix.
func last4(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}
