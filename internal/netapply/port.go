package netapply

import (
	"fmt"

	"github.com/skep-swarm/skep/internal/netplan"
)

// A place is the other end of one of a task's links: a port of the bridge in the gateway sandbox or a network's.
type place struct {
	s    *space
	plan netplan.Space
}

// places are the ports of a task.
func (n *Network) places(t netplan.Task) ([]place, error) {
	out := []place{{n.gw, netplan.TaskPort(n.node, t)}}
	for _, a := range t.Nets {
		ov, err := n.overlay(a.Network)
		if err != nil {
			return nil, err
		}
		s, err := n.resolve(netplan.OverlayName(a.Network))
		if err != nil {
			return nil, err
		}
		out = append(out, place{s, netplan.OverlayPort(n.node, ov.bare(), t, a)})
	}
	return out, nil
}

// bridge is the bridge that a place's ports are in.
func (p place) bridge() string { return p.plan.Links[0].Master }

// attach puts a port that was just made into its bridge.
func (p place) attach() error {
	links, err := p.s.links(p.bridge())
	if err != nil {
		return err
	}
	bridge := links[p.bridge()].index
	if bridge == 0 {
		return fmt.Errorf("the bridge %s in namespace %s is missing", p.bridge(), p.plan.Name)
	}
	b := &batch{buf: make([]byte, 0, 512)}
	index := map[string]int{p.bridge(): bridge}
	for _, l := range p.plan.Links {
		index[l.Name] = l.Index
		b.setLink(netplan.Link{Name: l.Name, Master: l.Master}, l.Index, bridge)
		b.setPort(l, l.Index)
	}
	for _, v := range p.plan.Neighbours {
		b.neighbour(v, index[v.Link], false)
	}
	for _, l := range p.plan.Links {
		b.awaitLink(l.Index, l.Name)
	}
	b.awaitLink(bridge, p.bridge())
	return p.s.rt.run(b)
}

// drop removes a port that is in the way of a new one.
func (p place) drop() error {
	b := &batch{}
	for _, l := range p.plan.Links {
		b.delLink(l.Index, l.Name)
		if have, e := p.s.links(l.Name); e == nil && have[l.Name].index != 0 && have[l.Name].index != l.Index {
			b.delLink(have[l.Name].index, l.Name)
		}
	}
	return p.s.rt.run(b)
}

// mend puts a port that was made anew into its bridge, whatever index it got.
func (p place) mend() error {
	links, err := p.s.links("")
	if err != nil {
		return err
	}
	b := &batch{}
	bridge := links[p.bridge()].index
	for _, l := range p.plan.Links {
		k, ok := links[l.Name]
		if !ok || bridge == 0 {
			return fmt.Errorf("link %s: %w", l.Name, errPeerMissing)
		}
		if k.master != bridge || !k.up {
			b.setLink(netplan.Link{Name: l.Name, Master: l.Master}, k.index, bridge)
		}
		if !k.port || k.isolated == l.Shared || k.master != bridge {
			b.setPort(l, k.index)
		}
	}
	for _, v := range p.plan.Neighbours {
		b.neighbour(v, links[v.Link].index, false)
	}
	for _, l := range p.plan.Links {
		b.awaitLink(links[l.Name].index, l.Name)
	}
	b.awaitLink(bridge, p.bridge())
	return p.s.rt.run(b)
}
