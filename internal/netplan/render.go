package netplan

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// String renders the plan as a table that a person can read and a golden file
// can hold. Rules read as nft writes them.
func (p Plan) String() string {
	var b strings.Builder
	p.Host.render(&b)
	p.Gateway.render(&b)
	for _, o := range p.Overlays {
		o.render(&b)
	}
	for _, t := range p.Tasks {
		t.render(&b)
	}
	return b.String()
}

// String renders one namespace.
func (s Space) String() string {
	var b strings.Builder
	s.render(&b)
	return b.String()
}

func (s Space) render(b *strings.Builder) {
	fmt.Fprintf(b, "namespace %s\n", s.Name)
	for _, v := range s.Sysctls {
		fmt.Fprintf(b, "  sysctl %s = %s\n", v.Path, v.Value)
	}
	for _, l := range s.Links {
		fmt.Fprintf(b, "  link   %s\n", l)
	}
	for _, a := range s.Addrs {
		fmt.Fprintf(b, "  addr   %s dev %s", a.Prefix, a.Link)
		if a.NoRoute {
			b.WriteString(" noprefixroute")
		}
		b.WriteString("\n")
	}
	for _, r := range s.Routes {
		fmt.Fprintf(b, "  route  %s\n", r)
	}
	for _, r := range s.Rules {
		fmt.Fprintf(b, "  rule   %d: from %s lookup %d\n", r.Pref, r.From, r.Table)
	}
	for _, n := range s.Neighbours {
		fmt.Fprintf(b, "  neigh  %s\n", n)
	}
	if s.Table != nil {
		s.Table.render(b)
	}
}

func (l Link) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", l.Name, l.Kind)
	if l.Index != 0 {
		fmt.Fprintf(&b, " index %d", l.Index)
	}
	if l.VNI != 0 {
		fmt.Fprintf(&b, " id %d local %s dstport %d nolearning proxy", l.VNI, l.VTEP, l.VXLANPort)
	}
	if l.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d mac %s", l.MTU, l.MAC)
	}
	if l.Peer != "" {
		fmt.Fprintf(&b, " peer %s in %s mac %s", l.Peer, l.PeerIn, l.PeerMAC)
	}
	if l.PeerIndex != 0 {
		fmt.Fprintf(&b, " index %d", l.PeerIndex)
	}
	if l.Master != "" {
		fmt.Fprintf(&b, " master %s", l.Master)
	}
	if l.Port && !l.Shared {
		b.WriteString(" isolated")
	}
	if l.Port {
		b.WriteString(" learning off flood off")
	}
	return b.String()
}

func (r Route) String() string {
	var b strings.Builder
	b.WriteString(r.Dst.String())
	if r.Via.IsValid() {
		fmt.Fprintf(&b, " via %s", r.Via)
	}
	fmt.Fprintf(&b, " dev %s", r.Link)
	if r.Src.IsValid() {
		fmt.Fprintf(&b, " src %s", r.Src)
	}
	if r.Table != 0 {
		fmt.Fprintf(&b, " table %d", r.Table)
	}
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	return b.String()
}

func (n Neighbour) String() string {
	if n.VTEP.IsValid() {
		return fmt.Sprintf("fdb %s dev %s dst %s self permanent", n.MAC, n.Link, n.VTEP)
	}
	if !n.Addr.IsValid() {
		return fmt.Sprintf("fdb %s dev %s static", n.MAC, n.Link)
	}
	return fmt.Sprintf("%s lladdr %s dev %s permanent", n.Addr, n.MAC, n.Link)
}

func (t *Table) render(b *strings.Builder) {
	fmt.Fprintf(b, "  table inet %s\n", t.Name)
	if t.Mapped {
		for _, k := range t.Ports {
			fmt.Fprintf(b, "    %s . %d : jump %s in %s, in %s\n", k.Proto, k.Number, k.chain(), PortMap, PortSet)
		}
	}
	for _, v := range t.VIPs {
		fmt.Fprintf(b, "    %s : jump %s in %s\n", v.Addr, v.Chain(), vipMap(v.Addr.Is6()))
	}
	for _, c := range t.AllChains() {
		fmt.Fprintf(b, "    chain %s", c.Name)
		if c.Hook != "" {
			fmt.Fprintf(b, " type %s hook %s priority %d policy accept", c.Type, c.Hook, c.Priority)
		}
		if c.Admin {
			b.WriteString(" (the administrator's)")
		}
		b.WriteString("\n")
		for _, r := range c.Rules {
			fmt.Fprintf(b, "      %s\n", r)
		}
	}
}

func vipMap(six bool) string {
	if six {
		return VIPMap6
	}
	return VIPMap4
}

// AllChains are the table's chains with those of its virtual addresses.
func (t *Table) AllChains() []Chain {
	out := t.Chains[:len(t.Chains):len(t.Chains)]
	for _, v := range t.VIPs {
		out = append(out, VIPChain(v, t.Turn))
	}
	return out
}

var verbs = map[Verb]string{
	Accept: "accept", Drop: "drop", Return: "return", Masquerade: "masquerade",
	Reset: "reject with tcp reset", Refuse: "reject with icmpx port-unreachable",
	Prohibit: "reject with icmpx admin-prohibited",
	Mark:     fmt.Sprintf("ct mark set %#x", ConnMark),
	Dispatch: "meta l4proto . th dport vmap @" + PortMap,
}

// String renders a rule as nft writes it.
func (m Match) String() string {
	var w []string
	say := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	ip := "ip"
	if m.Family == 6 {
		ip = "ip6"
	}
	prefix := func(word string, p netip.Prefix) {
		if p.IsValid() {
			say("%s %s %s", ip, word, p)
		}
	}
	named := m.Src.IsValid() || m.NotSrc.IsValid() || m.Dst.IsValid() || len(m.SrcAny) > 0
	if m.Family != 0 && !named && m.Verb != Virtual && m.Verb != Translate {
		say("meta nfproto ipv%d", m.Family)
	}
	for _, v := range []struct{ word, name string }{
		{"iifname", m.In}, {"iifname !=", m.NotIn}, {"oifname", m.Out}, {"oifname !=", m.NotOut},
	} {
		if v.name != "" {
			say("%s %q", v.word, v.name)
		}
	}
	prefix("saddr", m.Src)
	prefix("saddr !=", m.NotSrc)
	prefix("daddr", m.Dst)
	if len(m.SrcAny) > 0 {
		w = append(w, oneOf(ip, m.SrcAny))
	}
	if m.DstLocal {
		say("fib daddr type local")
	}
	if m.New {
		say("ct state new")
	}
	if m.NotTranslated {
		say("ct status ! dnat")
	}
	if m.Marked {
		say("ct direction original ct mark %#x", ConnMark)
	}
	if m.Proto != 0 {
		say("meta l4proto %s", m.Proto)
	}
	if m.Port != 0 {
		say("th dport %d", m.Port)
	}
	if m.Published {
		say("meta l4proto . th dport @%s", PortSet)
	}
	if m.Rate != 0 {
		say("limit rate %d/second burst %d packets", m.Rate, m.Rate)
	}
	switch m.Verb {
	case Jump:
		say("jump %s", m.Target)
	case Balance:
		w = append(w, balance(ip, m.To))
	case Translate:
		say("dnat %s to %s", ip, target(m.To[0]))
	case Virtual:
		say("%s daddr vmap @%s", ip, vipMap(m.Family == 6))
	default:
		say("%s", verbs[m.Verb])
	}
	return strings.Join(w, " ")
}

// balance is written without fmt: rules are compared by their text, and one
// may name a thousand backends.
func balance(ip string, to []netip.AddrPort) string {
	b := fmt.Appendf(make([]byte, 0, 64+32*len(to)), "dnat %s to numgen inc mod %d map {", ip, len(to))
	for i, a := range to {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, ' '), int64(i), 10)
		b = a.Addr().AppendTo(append(b, " : "...))
		if a.Port() != 0 {
			b = strconv.AppendUint(append(b, " . "...), uint64(a.Port()), 10)
		}
	}
	return string(append(b, " }"...))
}

func target(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

func oneOf(ip string, list []netip.Addr) string {
	b := append(make([]byte, 0, 32+18*len(list)), ip+" saddr {"...)
	for i, a := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = a.AppendTo(append(b, ' '))
	}
	return string(append(b, " }"...))
}
