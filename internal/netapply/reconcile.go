package netapply

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/skep-swarm/skep/internal/netplan"
)

// reconcile compares a namespace with its plan, writes the difference, and
// returns how many requests that took. On a namespace that is already right it
// writes nothing. prune says which interfaces that the plan does not name are
// ours to delete; nil is none. A VXLAN device that the kernel refuses is
// reported after all else is done.
func (s *space) reconcile(p netplan.Space, resolve resolver, prune func(name string) bool) (int, error) {
	n, refused, err := s.reconcileLinks(p, resolve, prune)
	if err != nil {
		return n, err
	}
	if refused != nil {
		p = p.Without(isVXLAN)
	}
	links, err := s.planned(p)
	if err != nil {
		return n, err
	}
	b := &batch{}
	if err := s.diffAddrs(b, p, links); err != nil {
		return n, err
	}
	if err := s.diffNeighbours(b, p, links); err != nil {
		return n, err
	}
	if err := s.diffRoutes(b, p, links); err != nil {
		return n, err
	}
	if err := s.diffRules(b, p); err != nil {
		return n, err
	}
	n += b.len()
	if err := s.rt.run(b); err != nil {
		return n, err
	}
	return n, refused
}

// planned reads the interfaces that a plan names: in the host's namespace,
// which is not ours, one by one.
func (s *space) planned(p netplan.Space) (map[string]kernelLink, error) {
	if p.Name != netplan.HostName {
		return s.links("")
	}
	out := map[string]kernelLink{}
	for _, l := range p.Links {
		one, err := s.links(l.Name)
		if err != nil {
			return nil, err
		}
		for name, l := range one {
			out[name] = l
		}
	}
	return out, nil
}

// reconcileLinks mends the interfaces. It goes on without a VXLAN device that the kernel refuses, and says why it does.
func (s *space) reconcileLinks(p netplan.Space, resolve resolver, prune func(string) bool) (n int, refused, err error) {
	have, err := s.planned(p)
	if err != nil {
		return 0, nil, err
	}
	b := &batch{}
	// Ports of tasks that were just removed may be here still, for the kernel takes them down in its
	// own time: helping it is no repair and is not counted.
	pruned := 0
	for name, l := range have {
		wanted := slices.ContainsFunc(p.Links, func(w netplan.Link) bool { return w.Name == name })
		if !wanted && prune != nil && prune(name) {
			b.delLink(l.index, name)
			pruned++
		}
	}
	made := false
	var vxlan *netplan.Link
	for _, l := range p.Links {
		k, ok := have[l.Name]
		if ok && (l.Kind == "veth" && !s.peerOK(l, resolve) || l.Kind == "vxlan" && !sameVXLAN(l, k)) {
			b.delLink(k.index, l.Name)
			ok = false
		}
		if ok {
			continue
		}
		made = true
		if l.Kind == "vxlan" {
			vxlan = &l // a namespace has one at most
			continue
		}
		if err = s.makeLink(b, l, resolve, have); err != nil {
			return 0, nil, err
		}
	}
	n = b.len() - pruned
	if err := s.rt.run(b); err != nil {
		return n, nil, err
	}
	if vxlan != nil {
		if refused = s.makeVXLAN(*vxlan, resolve); refused != nil {
			p = p.Without(isVXLAN)
		} else {
			n++
		}
	}
	if made {
		if have, err = s.planned(p); err != nil {
			return n, refused, err
		}
	}
	c, err := s.setLinks(p, have)
	return n + c, refused, err
}

// setLinks brings the interfaces, which exist now, to their settings.
func (s *space) setLinks(p netplan.Space, have map[string]kernelLink) (int, error) {
	b := &batch{}
	for _, l := range p.Links {
		k, ok := have[l.Name]
		if !ok {
			return 0, fmt.Errorf("link %s in namespace %s: %w", l.Name, p.Name, errPeerMissing)
		}
		master := have[l.Master].index
		if !k.up || l.MTU != 0 && (k.mtu != l.MTU || k.mac != l.MAC) || k.master != master && l.Master != "" {
			b.setLink(l, k.index, master)
		}
		if l.Port && (!k.port || k.isolated == l.Shared || k.master != master) {
			b.setPort(l, k.index)
		}
	}
	return b.len(), s.rt.run(b)
}

// makeLink adds a request for a link that is missing.
func (s *space) makeLink(b *batch, l netplan.Link, resolve resolver, have map[string]kernelLink) error {
	switch l.Kind {
	case "bridge":
		b.addLink(l, 0, -1)
	case "veth":
		peer, err := resolve(l.PeerIn)
		if err != nil {
			return fmt.Errorf("find namespace of %s: %w", l.Peer, err)
		}
		// A pair whose one end lies elsewhere is in the way.
		old, err := peer.links(l.Peer)
		if err != nil {
			return err
		}
		if k, ok := old[l.Peer]; ok {
			rm := &batch{}
			rm.delLink(k.index, l.Peer)
			if err := peer.rt.run(rm); err != nil {
				return err
			}
		}
		index := l.Index
		for _, k := range have {
			if k.index == index {
				index = 0
			}
		}
		b.addLink(l, index, peer.fd)
	default:
		return fmt.Errorf("link %s in namespace %s: %w", l.Name, s.name, errPeerMissing)
	}
	return nil
}

// peerOK tells whether the other end of a veth is where it should be.
func (s *space) peerOK(l netplan.Link, resolve resolver) bool {
	peer, err := resolve(l.PeerIn)
	if err != nil {
		return false
	}
	links, err := peer.links(l.Peer)
	return err == nil && links[l.Peer].kind == "veth"
}

func (s *space) diffAddrs(b *batch, p netplan.Space, links map[string]kernelLink) error {
	for _, l := range p.Links {
		if l.Kind == "lo" {
			continue
		}
		index := links[l.Name].index
		have, err := s.addrs(index)
		if err != nil {
			return err
		}
		for _, a := range have {
			if !slices.ContainsFunc(p.Addrs, func(w netplan.Addr) bool { return w.Link == l.Name && w.Prefix == a.prefix }) {
				b.addr(netplan.Addr{Link: l.Name, Prefix: a.prefix}, index, true)
			}
		}
		for _, a := range p.Addrs {
			if a.Link == l.Name && !slices.Contains(have, kernelAddr{index, a.Prefix}) {
				b.addr(a, index, false)
			}
		}
	}
	return nil
}

func (s *space) diffRoutes(b *batch, p netplan.Space, links map[string]kernelLink) error {
	for _, l := range p.Links {
		if l.Kind == "lo" || l.Port {
			continue
		}
		index := links[l.Name].index
		var have []kernelRoute
		for _, v6 := range []bool{false, true} {
			r, err := s.routes(index, v6)
			if err != nil {
				return err
			}
			have = append(have, r...)
		}
		same := func(k kernelRoute, r netplan.Route) bool {
			return k.prefix == r.Dst && k.via == r.Via && k.src == r.Src && k.table == r.Table && k.metric == r.Metric
		}
		for _, k := range have {
			wanted := slices.ContainsFunc(p.Routes, func(r netplan.Route) bool { return r.Link == l.Name && same(k, r) })
			if k.proto == protoSkep && !wanted {
				b.route(netplan.Route{Dst: k.prefix, Via: k.via, Link: l.Name, Src: k.src, Table: k.table, Metric: k.metric}, index, true)
			}
		}
		for _, r := range p.Routes {
			if r.Link == l.Name && !slices.ContainsFunc(have, func(k kernelRoute) bool { return same(k, r) }) {
				b.route(r, index, false)
			}
		}
	}
	return nil
}

func (s *space) diffRules(b *batch, p netplan.Space) error {
	if p.Name == netplan.HostName || p.Name == netplan.GatewayName {
		return nil // none are planned there, and the host's are not ours
	}
	have, err := s.rules()
	if err != nil {
		return err
	}
	for _, r := range p.Rules {
		if !slices.Contains(have, r) {
			b.rule(r, false)
		}
	}
	return nil
}

func (s *space) diffNeighbours(b *batch, p netplan.Space, links map[string]kernelLink) error {
	have := map[netplan.Neighbour]bool{}
	for _, l := range p.Links {
		if l.Kind == "lo" || l.Port && l.Kind != "vxlan" {
			continue
		}
		index := links[l.Name].index
		list, err := s.neighbours(index)
		if err != nil {
			return err
		}
		if l.Kind == "bridge" {
			fdb, err := s.forwarding(index)
			if err != nil {
				return err
			}
			list = append(list, fdb...)
		}
		if l.Kind == "vxlan" {
			nodes, err := s.nodes(index)
			if err != nil {
				return err
			}
			list = append(list, nodes...)
		}
		for _, k := range list {
			switch {
			case k.self:
				have[netplan.Neighbour{Link: l.Name, MAC: k.mac, VTEP: k.addr}] = true
			case k.addr.IsValid():
				have[netplan.Neighbour{Link: l.Name, Addr: k.addr, MAC: k.mac}] = true
			default:
				have[netplan.Neighbour{Link: nameOf(links, k.index), MAC: k.mac}] = true
			}
		}
	}
	want := map[netplan.Neighbour]bool{}
	kept := map[netip.Addr]bool{}
	for _, n := range p.Neighbours {
		want[n], kept[n.Addr] = true, true
	}
	for n := range have {
		if want[n] {
			continue
		}
		// An address with another MAC is replaced below. Forwarding entries
		// vanish with their port, but for those of a VXLAN device.
		old := n.Addr.IsValid() && !kept[n.Addr] && !n.Addr.IsMulticast()
		if old || !n.Addr.IsValid() && links[n.Link].kind == "vxlan" && n.MAC != links[n.Link].mac {
			b.neighbour(n, links[n.Link].index, true)
		}
	}
	for _, n := range p.Neighbours {
		if !have[n] {
			b.neighbour(n, links[n.Link].index, false)
		}
	}
	return nil
}

func nameOf(links map[string]kernelLink, index int) string {
	for name, l := range links {
		if l.index == index {
			return name
		}
	}
	return ""
}

// reset removes what an instance has in the host's namespace beyond its
// tables: the link, with which addresses, routes and the other end go.
func (s *space) reset(link string) error {
	have, err := s.links(link)
	if err != nil {
		return err
	}
	b := &batch{}
	for name, l := range have {
		b.delLink(l.index, name)
	}
	return s.rt.run(b)
}

// sysctls brings a namespace's sysctls to their values.
func (s *space) sysctls(list []netplan.Sysctl) (n int, err error) {
	if len(list) == 0 {
		return 0, nil
	}
	err = inNS(s.fd, func() error {
		n, err = writeSysctls(list)
		return err
	})
	return n, err
}
