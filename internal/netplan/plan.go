package netplan

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// Names inside namespaces that belong to one instance alone.
const (
	Bridge      = "br-gw"   // the bridge in the sandbox
	Uplink      = "host"    // the sandbox's end of the host link
	TaskLink    = "gw"      // the gateway interface in a task's namespace
	GatewayName = "gateway" // the sandbox, and its namespace file
	HostName    = "host"    // the host's namespace in a Plan

	// GatewayTable holds the default routes for what a task sends from its gateway
	// address; the rule that selects it keeps replies on the gateway interface
	// even when a client's address lies in one of the task's own networks.
	GatewayTable = 200
	taskRulePref = 1000
	taskIndex    = 2 // of the gw interface: lo is 1, and nothing else is there yet
)

// A MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// TaskMAC is the Ethernet address of a task's interface by its IPv4 address in the network.
func TaskMAC(addr4 netip.Addr) MAC { return macOf(addr4) }

// macOf derives a locally administered address from an IPv4 address. An
// address given to another task keeps its Ethernet address, so no neighbour
// entry anywhere ever goes stale.
func macOf(a netip.Addr) MAC {
	b := a.As4()
	return MAC{0x02, 0x73, b[0], b[1], b[2], b[3]}
}

// A Link is an interface. A veth pair is described once, by the end in the
// namespace it is listed in.
type Link struct {
	Name   string
	Kind   string // "lo", "veth", "bridge", "vxlan" or "peer" (the other end of a veth listed elsewhere)
	MTU    int
	MAC    MAC
	Index  int // wished for; 0 is any
	Master string

	// Of a veth: the name, namespace, Ethernet address and index of its other end.
	Peer      string
	PeerIn    string
	PeerMAC   MAC
	PeerIndex int

	// Port says that this is a bridge port that learns no addresses and gets no
	// unknown unicast. Unless it is Shared it cannot talk to other ports.
	Port, Shared bool

	// Of a VXLAN device, which is made so that its socket lies in the host's namespace.
	VNI       uint32
	VTEP      netip.Addr // of this node
	VXLANPort uint16
}

// An Addr is an address of an interface.
type Addr struct {
	Link    string
	Prefix  netip.Prefix // address with its prefix length
	NoRoute bool         // the kernel adds no route to the prefix
}

// A Route leads to a prefix; an unspecified /0 is the default route.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr // the zero Addr: on the link
	Link   string
	Src    netip.Addr
	Table  int // 0 is the main table
	Metric int
}

// A Rule of the routing policy.
type Rule struct {
	From  netip.Prefix
	Table int
	Pref  int
}

// A Neighbour is a permanent neighbour entry, or, without an address, a static
// forwarding entry of the bridge port Link, or, with a VTEP, an entry of the
// VXLAN device Link that says which node has the MAC.
type Neighbour struct {
	Link string
	Addr netip.Addr
	MAC  MAC
	VTEP netip.Addr
}

// A Sysctl is a file below /proc/sys and the value it must hold. Optional
// ones may be missing in the kernel.
type Sysctl struct {
	Path     string
	Value    string
	Optional bool
}

// A Plan is what the kernel of one node must hold.
type Plan struct {
	Host     Space
	Gateway  Space
	Overlays []Space // by number of the network
	Tasks    []Space // by name
}

// HostLink is the name of the host's end of the host link; the nftables tables
// of the instance have the same name.
func (n Node) HostLink() string { return "skep-" + n.Instance }

// LinkAddrs are the addresses of the host link: the host's end and the
// sandbox's end, of IPv4 or IPv6.
func (n Node) LinkAddrs(v6 bool) (host, sandbox netip.Addr) {
	p := n.Link4
	if v6 {
		p = n.Link6
	}
	host = first(p)
	return host, host.Next()
}

func (n Node) mtu() int {
	if n.MTU == 0 {
		return 1500
	}
	return n.MTU
}

// Make plans a node. It fails only when the input is not valid.
func Make(in Input) (Plan, error) {
	if err := in.Validate(); err != nil {
		return Plan{}, err
	}
	nets := OverlaysOf(in.Overlays)
	tasks := slices.SortedFunc(slices.Values(in.Tasks), compareTasks)
	p := Plan{Host: HostSpace(in.Node, in.Ports), Gateway: GatewaySpace(in.Node, nets.SealedAddrs(tasks))}
	at := map[uint64]int{}
	for i, o := range slices.SortedFunc(slices.Values(in.Overlays), func(a, b Overlay) int { return cmp.Compare(a.Num, b.Num) }) {
		p.Overlays = append(p.Overlays, OverlaySpace(in.Node, o))
		at[o.Num] = i
	}
	for _, t := range tasks {
		p.Gateway.Add(TaskPort(in.Node, t))
		for _, a := range t.Nets {
			p.Overlays[at[a.Network]].Add(OverlayPort(in.Node, nets[a.Network], t, a))
		}
		p.Tasks = append(p.Tasks, TaskSpace(in.Node, nets, t))
	}
	return p, nil
}

func compareTasks(a, b Task) int { return cmp.Compare(a.Name(), b.Name()) }

// SealedAddrs are the gateway addresses of the tasks that must not reach anything beyond their networks.
func (nets Overlays) SealedAddrs(tasks []Task) []netip.Addr {
	var out []netip.Addr
	for _, t := range tasks {
		if nets.Sealed(t) {
			out = append(out, t.Addr4)
			if t.Addr6.IsValid() {
				out = append(out, t.Addr6)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// HostSpace plans the host's namespace.
func HostSpace(n Node, ports []Port) Space {
	link := n.HostLink()
	host, sandbox := n.LinkAddrs(false)
	s := Space{
		Name: HostName,
		Links: []Link{{
			Name: link, Kind: "veth", MTU: n.mtu(), MAC: macOf(host),
			Peer: Uplink, PeerIn: GatewayName, PeerMAC: macOf(sandbox),
		}},
		Addrs:      []Addr{{Link: link, Prefix: netip.PrefixFrom(host, n.Link4.Bits())}},
		Neighbours: []Neighbour{{Link: link, Addr: sandbox, MAC: macOf(sandbox)}},
		Sysctls: []Sysctl{
			{Path: "net/ipv4/ip_forward", Value: "1"},
			{Path: "net/ipv4/conf/" + link + "/route_localnet", Value: "1"},
		},
		Table: hostTable(n, ports),
	}
	// Two instances of one cluster may share a host: each routes its own blocks,
	// and the metric, which differs, lets both hold a route to the whole pool.
	metric := poolMetric(n.Instance)
	for _, b := range n.Blocks4 {
		s.Routes = append(s.Routes, Route{Dst: b.Masked(), Via: sandbox, Link: link, Src: host})
	}
	s.Routes = append(s.Routes, Route{Dst: n.Pool4.Masked(), Via: sandbox, Link: link, Src: host, Metric: metric})
	if !n.IPv6() {
		return s
	}
	host6, sandbox6 := n.LinkAddrs(true)
	s.Addrs = append(s.Addrs, Addr{Link: link, Prefix: netip.PrefixFrom(host6, n.Link6.Bits())})
	s.Neighbours = append(s.Neighbours, Neighbour{Link: link, Addr: sandbox6, MAC: macOf(sandbox)})
	s.Routes = append(s.Routes,
		Route{Dst: n.Block6.Masked(), Via: sandbox6, Link: link, Src: host6, Metric: 1024},
		Route{Dst: n.Pool6.Masked(), Via: sandbox6, Link: link, Src: host6, Metric: metric})
	s.Sysctls = append(s.Sysctls,
		Sysctl{Path: "net/ipv6/conf/" + link + "/disable_ipv6", Value: "0"},
		Sysctl{Path: "net/ipv6/conf/" + link + "/accept_ra", Value: "0"},
		Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: "1"})
	return s
}

// poolMetric lies between 2,048 and 2^24+2,048 and is the instance's own.
func poolMetric(instance string) int {
	m := 2048
	for _, c := range []byte(instance) {
		d := int(c - '0')
		if c >= 'a' {
			d = int(c-'a') + 10
		}
		m = (m-2048)*16 + d + 2048
	}
	return m
}

// GatewaySpace plans the sandbox without its tasks. Tasks with one of the
// addresses in sealed are answered but can begin nothing.
func GatewaySpace(n Node, sealed []netip.Addr) Space {
	host, sandbox := n.LinkAddrs(false)
	mac := macOf(first(n.Blocks4[0]))
	s := Space{
		Name: GatewayName,
		Links: []Link{
			{Name: "lo", Kind: "lo"},
			{Name: Uplink, Kind: "peer", MTU: n.mtu(), MAC: macOf(sandbox)},
			{Name: Bridge, Kind: "bridge", MTU: n.mtu(), MAC: mac},
		},
		Addrs:      []Addr{{Link: Uplink, Prefix: netip.PrefixFrom(sandbox, n.Link4.Bits())}},
		Routes:     []Route{{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: host, Link: Uplink}},
		Neighbours: []Neighbour{{Link: Uplink, Addr: host, MAC: macOf(host)}},
		Sysctls: append([]Sysctl{
			{Path: "net/ipv4/ip_forward", Value: "1"},
			{Path: "net/ipv4/conf/all/rp_filter", Value: "0"},
			{Path: "net/ipv4/conf/default/rp_filter", Value: "0"},
			{Path: "net/ipv4/conf/all/send_redirects", Value: "0"},
			{Path: "net/ipv4/conf/default/send_redirects", Value: "0"},
		}, bridged...),
		Table: gatewayTable(n, sealed),
	}
	for _, b := range n.Blocks4 {
		s.Addrs = append(s.Addrs, Addr{Link: Bridge, Prefix: netip.PrefixFrom(first(b), b.Bits())})
	}
	s.Sysctls = append(s.Sysctls, quiet6...)
	if !n.IPv6() {
		return s
	}
	s.Sysctls = append(s.Sysctls, enable6)
	host6, sandbox6 := n.LinkAddrs(true)
	s.Addrs = append(s.Addrs, Addr{Link: Uplink, Prefix: netip.PrefixFrom(sandbox6, n.Link6.Bits())},
		Addr{Link: Bridge, Prefix: netip.PrefixFrom(first(n.Block6), n.Block6.Bits())})
	s.Routes = append(s.Routes, Route{Dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Via: host6, Link: Uplink, Metric: 1024})
	s.Neighbours = append(s.Neighbours, Neighbour{Link: Uplink, Addr: host6, MAC: macOf(host)})
	s.Sysctls = append(s.Sysctls, Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: "1"})
	return s
}

// bridged keeps what a bridge carries away from netfilter, which every new
// namespace has it pass through where the kernel has that built in.
var bridged = []Sysctl{
	{Path: "net/bridge/bridge-nf-call-iptables", Value: "0", Optional: true},
	{Path: "net/bridge/bridge-nf-call-ip6tables", Value: "0", Optional: true},
	{Path: "net/bridge/bridge-nf-call-arptables", Value: "0", Optional: true},
}

// quiet6 keeps IPv6 interfaces made afterwards from announcing themselves,
// checking for duplicates (which delays an address by a second) and believing
// router advertisements.
var quiet6 = []Sysctl{
	{Path: "net/ipv6/conf/default/accept_dad", Value: "0", Optional: true},
	{Path: "net/ipv6/conf/default/accept_ra", Value: "0", Optional: true},
	{Path: "net/ipv6/conf/default/addr_gen_mode", Value: "1", Optional: true},
}

// enable6 counts on hosts that hand their own settings to new namespaces.
var enable6 = Sysctl{Path: "net/ipv6/conf/default/disable_ipv6", Value: "0"}

// TaskPort plans what one task adds to the sandbox.
func TaskPort(n Node, t Task) Space {
	port, mac := "t"+t.Name(), macOf(t.Addr4)
	s := Space{
		Name: GatewayName,
		Links: []Link{{
			Name: port, Kind: "peer", MTU: n.mtu(), MAC: portMAC(t.Addr4), Master: Bridge, Port: true,
			Index: portIndex(t.Addr4),
		}},
		Neighbours: []Neighbour{{Link: port, MAC: mac}, {Link: Bridge, Addr: t.Addr4, MAC: mac}},
	}
	if n.IPv6() {
		s.Neighbours = append(s.Neighbours, Neighbour{Link: Bridge, Addr: t.Addr6, MAC: mac})
	}
	return s
}

// portIndex is the interface index of a task's bridge port. Because it is
// known beforehand a task's whole port is configured without asking the kernel.
func portIndex(a netip.Addr) int {
	b := a.As4()
	return 1<<24 | int(binary.BigEndian.Uint32(b[:])&0xffffff)
}

// portMAC is that of the bridge's end of a task's veth pair.
func portMAC(a netip.Addr) MAC {
	m := macOf(a)
	m[1] = 0x74
	return m
}

// TaskGateway is the gateway interface in a task's namespace, by which that
// namespace is known again.
func TaskGateway(n Node, t Task) Link {
	return Link{
		Name: TaskLink, Kind: "veth", MTU: n.mtu(), MAC: macOf(t.Addr4), Index: taskIndex,
		Peer: "t" + t.Name(), PeerIn: GatewayName, PeerMAC: portMAC(t.Addr4), PeerIndex: portIndex(t.Addr4),
	}
}

// TaskSpace plans a task's own namespace.
func TaskSpace(n Node, nets Overlays, t Task) Space {
	block, _ := n.block4(t.Addr4)
	gw, mac := first(block), macOf(first(n.Blocks4[0]))
	s := Space{
		Name:       t.Name(),
		Links:      []Link{{Name: "lo", Kind: "lo"}, TaskGateway(n, t)},
		Addrs:      []Addr{{Link: TaskLink, Prefix: netip.PrefixFrom(t.Addr4, block.Bits())}},
		Rules:      []Rule{{netip.PrefixFrom(t.Addr4, 32), GatewayTable, taskRulePref}},
		Neighbours: []Neighbour{{Link: TaskLink, Addr: gw, MAC: mac}},
		Sysctls:    slices.Clone(quiet6),
		Table:      TaskTable(n, nets, t),
	}
	any4 := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	s.Routes = append(s.Routes, Route{Dst: any4, Via: gw, Link: TaskLink, Src: t.Addr4},
		Route{Dst: any4, Via: gw, Link: TaskLink, Table: GatewayTable})
	six := n.IPv6()
	if six {
		gw6, any6 := first(n.Block6), netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		s.Addrs = append(s.Addrs, Addr{Link: TaskLink, Prefix: netip.PrefixFrom(t.Addr6, n.Block6.Bits())})
		s.Rules = append(s.Rules, Rule{netip.PrefixFrom(t.Addr6, 128), GatewayTable, taskRulePref})
		s.Neighbours = append(s.Neighbours, Neighbour{Link: TaskLink, Addr: gw6, MAC: mac})
		s.Routes = append(s.Routes, Route{Dst: any6, Via: gw6, Link: TaskLink, Src: t.Addr6, Metric: 1024},
			Route{Dst: any6, Via: gw6, Link: TaskLink, Table: GatewayTable, Metric: 1024})
	}
	for i, a := range t.Nets {
		six = six || a.Addr6.IsValid()
		s.attach(n, nets[a.Network], t, i)
	}
	if six {
		s.Sysctls = append(s.Sysctls, enable6)
	}
	return s
}
