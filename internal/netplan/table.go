package netplan

import (
	"net/netip"
	"slices"
)

// Priorities of base chains, as nftables names them.
const (
	PrioRaw    = -300
	PrioDstNAT = -100
	PrioFilter = 0
	PrioSrcNAT = 100
)

// Names in the host's table.
const (
	AdminChain = "skep-user" // its rules are the administrator's and are never touched
	PortSet    = "ports"     // every published port
	PortMap    = "pub"       // published port → the chain that balances it
)

// Names in a task's table: virtual address → the chain that balances it.
const (
	VIPMap4 = "vip4"
	VIPMap6 = "vip6"
)

// A Table is an nftables table of family inet.
type Table struct {
	Name   string
	Chains []Chain // base chains and admin chain, then those of ports, by key
	Ports  []PortKey
	Mapped bool // has PortSet and PortMap with Ports as elements

	Virtual bool  // has VIPMap4 and VIPMap6, with a chain of its own for each of
	VIPs    []VIP // these, by address
	Turn    int   // see Task.Turn
}

// A Chain is a chain of rules. A base chain has a Hook.
type Chain struct {
	Name     string
	Type     string // "filter" or "nat"
	Hook     string // "prerouting", "input", "forward", "output", "postrouting" or "" for a plain chain
	Priority int
	Admin    bool // made once and then left alone
	Rules    []Match
}

// ConnMark is the mark of connections to a virtual address without a backend.
const ConnMark = 0x736b6570

// A Verb is what a rule does with a packet that it matches.
type Verb uint8

// The verbs.
const (
	Accept     Verb = iota
	Drop            // silently
	Return          // to the calling chain, or to the chain's policy
	Jump            // to chain Target
	Masquerade      // take the address of the outgoing interface as source
	Dispatch        // jump to the chain of the published port it is sent to, if any
	Balance         // send to each of To in turn
	Reset           // answer with a TCP reset
	Refuse          // answer with ICMP port unreachable
	Prohibit        // answer with ICMP administratively prohibited
	Translate       // send to the only one of To; port 0 leaves the port
	Mark            // mark its connection, and go on with the next rule
	Virtual         // jump to the chain of the virtual address it is sent to, if any
)

// A Match is one rule of a chain: all conditions that are set must hold, then
// the verb is done.
type Match struct {
	Family        uint8 // 4, 6 or 0 for both
	In, NotIn     string
	Out, NotOut   string
	Src, NotSrc   netip.Prefix
	Dst           netip.Prefix
	DstLocal      bool         // to an address of this host
	New           bool         // begins a connection
	NotTranslated bool         // its connection's destination has not been translated
	Proto         Proto        // 0 is any
	Published     bool         // to a published port
	Marked        bool         // its connection has been marked, and it is no answer
	Port          uint16       // sent to this port
	SrcAny        []netip.Addr // from one of these
	Rate          int          // at most so many packets a second; 0 is any number

	Verb   Verb
	Target string
	To     []netip.AddrPort // all of one family
}

// refusals bounds the answers for published ports without a backend, a second
// and a protocol; more than that are dropped.
const refusals = 2000

func hostTable(n Node, ports []Port) *Table {
	link := n.HostLink()
	loop4, loop6 := netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")
	local6 := netip.MustParsePrefix("fe80::/10")
	t := &Table{Name: link, Mapped: true}
	dispatch := []Match{
		// [::1] cannot be routed to a sandbox: the keeper listens there. A
		// link-local client cannot be routed back to.
		{Family: 6, Dst: loop6, Verb: Return},
		{Family: 6, Dst: local6, Verb: Return},
		{DstLocal: true, Verb: Dispatch},
	}
	t.Chains = []Chain{
		{Name: AdminChain, Admin: true},
		// route_localnet would otherwise let a task reach the host's loopback.
		{Name: "raw", Type: "filter", Hook: "prerouting", Priority: PrioRaw, Rules: []Match{
			{Family: 4, In: link, Dst: loop4, Verb: Drop},
		}},
		{Name: "pre", Type: "nat", Hook: "prerouting", Priority: PrioDstNAT, Rules: dispatch},
		{Name: "out", Type: "nat", Hook: "output", Priority: PrioDstNAT, Rules: dispatch},
		{Name: "input", Type: "filter", Hook: "input", Priority: PrioFilter, Rules: []Match{
			{Family: 6, Dst: loop6, Verb: Return},
			// Whatever is still addressed to a published port here has no backend.
			{New: true, Published: true, Proto: TCP, Rate: refusals, Verb: Reset},
			{New: true, Published: true, Proto: UDP, Rate: refusals, Verb: Refuse},
			{New: true, Published: true, Verb: Drop},
		}},
		{Name: "forward", Type: "filter", Hook: "forward", Priority: PrioFilter, Rules: []Match{
			{Verb: Jump, Target: AdminChain},
			// Only published ports are reachable from other machines.
			{NotIn: link, Out: link, New: true, NotTranslated: true, Verb: Drop},
		}},
	}
	post := Chain{Name: "post", Type: "nat", Hook: "postrouting", Priority: PrioSrcNAT, Rules: []Match{
		{Family: 4, Out: link, Src: loop4, Verb: Masquerade},
		// A task that calls its own node: its reply must come back this way.
		{In: link, Out: link, Verb: Masquerade},
	}}
	for _, b := range n.Blocks4 {
		post.Rules = append(post.Rules, Match{Family: 4, NotOut: link, Src: b.Masked(), Verb: Masquerade})
	}
	if n.IPv6() {
		post.Rules = append(post.Rules, Match{Family: 6, NotOut: link, Src: n.Block6.Masked(), Verb: Masquerade})
	}
	t.Chains = append(t.Chains, post)
	ports = slices.SortedFunc(slices.Values(ports), func(a, b Port) int { return a.compare(b.PortKey) })
	for _, p := range ports {
		t.Ports = append(t.Ports, p.PortKey)
		t.Chains = append(t.Chains, PortChain(p))
	}
	return t
}

// PortChain plans the chain that balances one published port.
func PortChain(p Port) Chain {
	c := Chain{Name: p.chain()}
	for _, f := range []struct {
		family uint8
		to     []netip.AddrPort
	}{{4, p.Backends4}, {6, p.Backends6}} {
		if len(f.to) > 0 {
			c.Rules = append(c.Rules, Match{Family: f.family, Proto: p.Proto, Verb: Balance, To: uniq(f.to)})
		}
	}
	return c
}

// Chain is the name of the chain that balances the port.
func (k PortKey) Chain() string { return k.chain() }

func uniq(in []netip.AddrPort) []netip.AddrPort {
	out := slices.Clone(in)
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// gatewayTable keeps tasks from reaching each other over the gateway network
// and from sending with an address that is not the network's, and lets sealed
// tasks begin nothing: their own namespace, where they may have the right to
// change routes, is not the place to forbid it.
func gatewayTable(n Node, sealed []netip.Addr) *Table {
	forward := Chain{Name: "forward", Type: "filter", Hook: "forward", Priority: PrioFilter}
	pools := []Match{{Family: 4, Src: n.Pool4.Masked()}}
	if n.IPv6() {
		pools = append(pools, Match{Family: 6, Src: n.Pool6.Masked()})
	}
	for _, p := range pools {
		forward.Rules = append(forward.Rules,
			Match{Family: p.Family, In: Bridge, NotSrc: p.Src, Verb: Drop},
			Match{Family: p.Family, In: Bridge, Dst: p.Src, Verb: Drop},
			Match{Family: p.Family, Out: Bridge, Src: p.Src, Verb: Drop})
	}
	for _, family := range []uint8{4, 6} {
		var from []netip.Addr
		for _, a := range sealed {
			if a.Is4() == (family == 4) {
				from = append(from, a)
			}
		}
		if len(from) > 0 {
			// A reset is never lost on its way, as an ICMP answer can be that meets its socket at work.
			forward.Rules = append(forward.Rules,
				Match{Family: family, In: Bridge, New: true, SrcAny: from, Proto: TCP, Verb: Reset},
				Match{Family: family, In: Bridge, New: true, SrcAny: from, Verb: Prohibit})
		}
	}
	return &Table{Name: n.HostLink(), Chains: []Chain{forward}}
}
