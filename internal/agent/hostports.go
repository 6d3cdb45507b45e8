package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	apinet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/keeper/ports"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
)

const dynamicTries = 64

// claim is one task's ports in host mode.
type claim struct {
	ports []claimed
	live  bool // the task runs
}

type claimed struct {
	key                netplan.PortKey
	backend4, backend6 netip.AddrPort
}

func (c claimed) published(ip6 bool) netplan.Port {
	p := netplan.Port{PortKey: c.key, Mode: netplan.Host}
	if c.backend4.IsValid() {
		p.Backends4 = []netip.AddrPort{c.backend4}
	}
	if ip6 && c.backend6.IsValid() {
		p.Backends6 = []netip.AddrPort{c.backend6}
	}
	return p
}

// newClaim is the claim on ports as they were bound; what is no port is left out.
func newClaim(t netplan.Task, bound []swarm.PortConfig) *claim {
	c := &claim{}
	for _, p := range bound {
		proto, err := protoOf(p)
		if err != nil || p.PublishedPort == 0 || p.PublishedPort > 65535 || p.TargetPort == 0 || p.TargetPort > 65535 {
			continue
		}
		cl := claimed{key: netplan.PortKey{Proto: proto, Number: uint16(p.PublishedPort)}}
		if t.Addr4.IsValid() {
			cl.backend4 = netip.AddrPortFrom(t.Addr4, uint16(p.TargetPort))
		}
		if t.Addr6.IsValid() {
			cl.backend6 = netip.AddrPortFrom(t.Addr6, uint16(p.TargetPort))
		}
		c.ports = append(c.ports, cl)
	}
	return c
}

func protoOf(p swarm.PortConfig) (netplan.Proto, error) {
	switch cmp.Or(p.Protocol, apinet.TCP) {
	case apinet.TCP:
		return netplan.TCP, nil
	case apinet.UDP:
		return netplan.UDP, nil
	}
	return 0, fmt.Errorf("%s ports cannot be published, use tcp or udp", p.Protocol)
}

func keeperPort(k netplan.PortKey) ports.Port {
	return ports.Port{Proto: k.Proto.String(), Port: k.Number}
}

// claim binds a task's ports in host mode on the host and returns them as they were bound. had are the ports that the task had
// before, which it gets again. Claiming twice returns the same ports.
func (n *network) claim(ctx context.Context, id model.TaskID, t netplan.Task, wanted, had []swarm.PortConfig) ([]swarm.PortConfig, error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	n.holding.Lock()
	defer n.holding.Unlock()
	bound := make([]swarm.PortConfig, 0, len(wanted))
	var fresh []netplan.PortKey
	for i, p := range wanted {
		if p.PublishedPort == 0 && i < len(had) && had[i].TargetPort == p.TargetPort && had[i].Protocol == p.Protocol {
			p.PublishedPort = had[i].PublishedPort
		}
		key, isNew, err := n.bind(ctx, id, p)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("host-mode port already in use on 1 node: %w", err), n.unbind(ctx, fresh))
		}
		if isNew {
			fresh = append(fresh, key)
		}
		p.PublishedPort = uint32(key.Number)
		bound = append(bound, p)
	}
	c := newClaim(t, bound)
	n.change(func() {
		if old := n.claims[id]; old != nil {
			c.live = old.live
		}
		n.claims[id] = c
	})
	return bound, nil
}

// bind holds one port; isNew is false when the task had it already. n.holding is held.
func (n *network) bind(ctx context.Context, id model.TaskID, p swarm.PortConfig) (key netplan.PortKey, isNew bool, err error) {
	proto, err := protoOf(p)
	if err != nil {
		return key, false, err
	}
	if p.PublishedPort != 0 {
		key = netplan.PortKey{Proto: proto, Number: uint16(p.PublishedPort)}
		isNew, err = n.bindKey(ctx, id, key)
		return key, isNew, err
	}
	lo, hi := n.cfg.PortRange[0], n.cfg.PortRange[1]
	for range dynamicTries {
		key = netplan.PortKey{Proto: proto, Number: lo + uint16(rand.N(uint32(hi-lo)+1))}
		if isNew, err = n.bindKey(ctx, id, key); err == nil {
			return key, isNew, nil
		}
		if ctx.Err() != nil {
			return key, false, ctx.Err()
		}
	}
	return key, false, fmt.Errorf("no free port between %d and %d was found: %w", lo, hi, err)
}

func (n *network) bindKey(ctx context.Context, id model.TaskID, key netplan.PortKey) (bool, error) {
	n.mu.Lock()
	owner, taken := n.owners[key]
	mine := taken && owner == id && n.held[key]
	n.mu.Unlock()
	switch {
	case mine:
		return false, nil
	case taken && owner == (model.TaskID{}):
		return false, fmt.Errorf("port %s is published in ingress mode", portText(key))
	case taken && owner != id:
		return false, fmt.Errorf("port %s is already in use on this host by another task", portText(key))
	}
	errs, err := n.cfg.Keeper.Hold(ctx, []ports.Port{keeperPort(key)})
	if err == nil && len(errs) > 0 {
		err = errs[0]
	}
	if err != nil {
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.owners[key], n.held[key] = id, true
	return true, nil
}

func portText(k netplan.PortKey) string { return fmt.Sprintf("%d/%s", k.Number, k.Proto) }

// unbind gives ports back that a failed claim had bound. n.holding is held.
func (n *network) unbind(ctx context.Context, keys []netplan.PortKey) error {
	if len(keys) == 0 {
		return nil
	}
	list := make([]ports.Port, 0, len(keys))
	n.mu.Lock()
	for _, k := range keys {
		delete(n.owners, k)
		delete(n.held, k)
		list = append(list, keeperPort(k))
	}
	n.mu.Unlock()
	return n.cfg.Keeper.Release(ctx, list)
}

// hold asks the keeper for every port that is wanted and not held: the tables' and, after a restart, the tasks'.
func (n *network) hold(ctx context.Context) error {
	n.holding.Lock()
	defer n.holding.Unlock()
	n.mu.Lock()
	var keys []netplan.PortKey
	for k := range n.rows {
		if owner, ok := n.owners[k]; ok && owner != (model.TaskID{}) {
			n.clashes[k] = clash(k, fmt.Errorf("port %s is in use on this host by a task in host mode", portText(k)))
			continue
		}
		n.owners[k] = model.TaskID{}
		if n.held[k] {
			delete(n.clashes, k) // a task in host mode had it, and handed it over
		} else {
			keys = append(keys, k)
		}
	}
	for k, owner := range n.owners {
		if owner != (model.TaskID{}) && !n.held[k] {
			keys = append(keys, k)
		}
	}
	for k := range n.clashes {
		if _, ok := n.rows[k]; !ok {
			delete(n.clashes, k)
		}
	}
	n.mu.Unlock()
	if len(keys) == 0 {
		return nil
	}
	list := make([]ports.Port, len(keys))
	for i, k := range keys {
		list[i] = keeperPort(k)
	}
	errs, err := n.cfg.Keeper.Hold(ctx, list)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, k := range keys {
		if i < len(errs) && errs[i] != nil {
			n.clashes[k] = clash(k, errs[i])
			continue
		}
		n.held[k] = true
		delete(n.clashes, k)
	}
	return nil
}

func clash(k netplan.PortKey, err error) model.PortClash {
	return model.PortClash{Protocol: k.Proto.String(), Port: k.Number, Message: err.Error()}
}

// letGo releases ports that nobody owns and nobody answers any more.
func (n *network) letGo(ctx context.Context) error {
	n.holding.Lock()
	defer n.holding.Unlock()
	n.mu.Lock()
	var keys []netplan.PortKey
	var list []ports.Port
	for k, owner := range n.owners {
		if _, row := n.rows[k]; owner == (model.TaskID{}) && !row {
			delete(n.owners, k)
		}
	}
	for k := range n.held {
		_, owned := n.owners[k]
		if _, answered := n.applied[k]; !owned && !answered {
			keys, list = append(keys, k), append(list, keeperPort(k))
		}
	}
	n.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	if err := n.cfg.Keeper.Release(ctx, list); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range keys {
		delete(n.held, k)
	}
	return nil
}

// clashList is the ports that this node cannot serve, in order.
func (n *network) clashList() []model.PortClash {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]model.PortClash, 0, len(n.clashes))
	for _, c := range n.clashes {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b model.PortClash) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out
}

// probe answers which of some ports this node could not serve. Those that it serves are fine.
func (n *network) probe(ctx context.Context, keys []netplan.PortKey) ([]model.PortClash, error) {
	n.holding.Lock()
	defer n.holding.Unlock()
	var ask []netplan.PortKey
	n.mu.Lock()
	for _, k := range keys {
		if !n.held[k] {
			ask = append(ask, k)
		}
	}
	n.mu.Unlock()
	list := make([]ports.Port, len(ask))
	for i, k := range ask {
		list[i] = keeperPort(k)
	}
	errs, err := n.cfg.Keeper.Probe(ctx, list)
	if err != nil {
		return nil, err
	}
	var out []model.PortClash
	for i, e := range errs {
		if e != nil {
			out = append(out, clash(ask[i], e))
		}
	}
	return out, nil
}
