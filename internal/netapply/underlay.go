package netapply

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// The interfaces of a node to which no MTU is given have that of the way out of the host: what is larger would have to be cut
// up there, or refused. It is read with each full pass, and when Run hears that the way out has changed, as it does when
// the host gets its address after the daemon has started, or a cable with larger frames.

// Tasks' interfaces cannot have less, for IPv6, or more.
const minMTU, maxMTU = 1280, 65535

// underlay is the interface that the host's default route leaves by; ok tells whether there is one.
func (s *space) underlay() (out kernelLink, ok bool, err error) {
	links, err := s.links("")
	if err != nil {
		return out, false, fmt.Errorf("read the host's links: %w", err)
	}
	metric := 0
	for _, v6 := range []bool{true, false} {
		routes, err := s.routes(0, v6)
		if err != nil {
			return out, false, fmt.Errorf("read the host's routes: %w", err)
		}
		for _, r := range routes {
			if r.prefix.Bits() != 0 || r.table != 0 || ok && r.metric > metric {
				continue
			}
			for _, l := range links {
				if l.index == r.oif {
					out, ok, metric = l, true, r.metric
				}
			}
		}
	}
	return out, ok, nil
}

// followUnderlay gives a node to which no MTU was given the one of the way out. While the host has none, it keeps what it has.
// state is held for writing.
func (n *Network) followUnderlay() error {
	if n.givenMTU {
		return nil
	}
	l, ok, err := n.host.underlay()
	if err != nil {
		return err
	}
	if ok {
		n.wayOut.Store(&l)
		n.takeMTU()
	}
	return nil
}

// takeMTU is followUnderlay with what is known already.
func (n *Network) takeMTU() {
	if l := n.wayOut.Load(); l != nil && !n.givenMTU {
		n.node.MTU = min(max(l.mtu, minMTU), maxMTU)
	}
}

// mtu is that of the last full pass; 0 is the default.
func (n *Network) mtu() int {
	n.state.RLock()
	defer n.state.RUnlock()
	return n.laidMTU
}

// relevantUnderlay tells whether a change of the host's links or routes can have changed the way out, or its MTU.
func relevantUnderlay(e event, now *kernelLink) bool {
	switch e.typ {
	case unix.RTM_NEWLINK:
		l := parseLink(e.body)
		return now != nil && l.index == now.index && (l.mtu != now.mtu || !l.up) // its routes go without a word
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(e.body) < 12 {
			return false
		}
		r := parseRoute(e.body)
		return r.prefix.Bits() == 0 && r.table == 0
	}
	return e.lost
}
