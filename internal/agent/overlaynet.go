package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/fxamacker/cbor/v2"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// mtuOption is Docker's option of a network that sets the MTU of its interfaces.
const mtuOption = "com.docker.network.driver.mtu"

// dnsPrefix is the key in the store of where a task's resolver listens: a daemon that starts again must not lead away from it
// before it has asked the keeper.
const dnsPrefix = "dns/"

// follow has the network lay what the managers say of overlay networks.
func (n *network) follow(o *overlays) { n.nets, n.watch = o, o.watch() }

// six reports whether the node's kernel has IPv6.
func (n *network) six() bool { return n.cfg.Node.Link6.IsValid() }

// attachments are a task's places in overlay networks.
func attachments(m *pb.Task) ([]netplan.Attachment, error) {
	var out []netplan.Attachment
	for _, v := range m.Nets {
		a4, err4 := wire.Addr(v.Addr4)
		a6, err6 := wire.Addr(v.Addr6)
		if err := errors.Join(err4, err6); err != nil {
			return nil, fmt.Errorf("in network %d: %w", v.Network, err)
		}
		out = append(out, netplan.Attachment{Network: v.Network, Addr4: a4, Addr6: a6})
	}
	return out, nil
}

// plain leaves out of a task what this node does not have.
func (n *network) plain(t netplan.Task) netplan.Task {
	if !n.six() {
		t.Nets = slices.Clone(t.Nets)
		for i := range t.Nets {
			t.Nets[i].Addr6 = netip.Addr{}
		}
	}
	return t
}

// planOf is a network for netplan, with the services that have virtual addresses. Rows that cannot be are left out: one
// must not take the others down.
func (n *network) planOf(o *overlay) (netplan.Overlay, laid) {
	p := n.frameOf(o)
	have := laid{}
	for id, vips := range n.vipsOf(p, o, nil) {
		for _, v := range vips {
			p.VIPs = append(p.VIPs, v)
			have[id] = append(have[id], v.Addr)
		}
	}
	return p, have
}

func (n *network) frameOf(o *overlay) netplan.Overlay {
	p := netplan.Overlay{Num: uint64(o.num), VNI: o.info.vni, Internal: o.info.internal}
	for _, s := range o.info.subnets {
		if s.Addr().Is4() || n.six() {
			p.Subnets = append(p.Subnets, s)
		}
	}
	if mtu, err := strconv.Atoi(o.info.options[mtuOption]); err == nil {
		p.MTU = mtu
	}
	return p
}

// vipsOf are the virtual addresses of some services, or of all, with their serving tasks.
func (n *network) vipsOf(p netplan.Overlay, o *overlay, only map[model.ServiceID]bool) map[model.ServiceID][]netplan.VIP {
	type both struct{ four, six []netip.Addr }
	tasks := map[model.ServiceID]*both{}
	for id, t := range o.tasks {
		if !t.serving || only != nil && !only[id.Service] {
			continue
		}
		b := tasks[id.Service]
		if b == nil {
			b = &both{}
			tasks[id.Service] = b
		}
		b.four, b.six = append(b.four, t.addr4), append(b.six, t.addr6)
	}
	out := map[model.ServiceID][]netplan.VIP{}
	for id, e := range o.endpoints {
		if !e.vip || only != nil && !only[id] {
			continue
		}
		b := tasks[id]
		if b == nil {
			b = &both{}
		}
		for _, v := range []netplan.VIP{{Addr: e.vip4, Backends: b.four}, {Addr: e.vip6, Backends: b.six}} {
			v.Backends = slices.DeleteFunc(v.Backends, func(a netip.Addr) bool {
				return !a.IsValid() || p.CheckVIP(netplan.VIP{Addr: v.Addr, Backends: []netip.Addr{a}}) != nil
			})
			slices.SortFunc(v.Backends, netip.Addr.Compare)
			v.Backends = v.Backends[:min(len(v.Backends), netplan.MaxBackends)]
			if v.Addr.IsValid() && p.CheckVIP(v) == nil {
				out[id] = append(out[id], v)
			}
		}
	}
	return out
}

// setOverlays tells the kernel what changed of overlay networks since the last time. What the kernel refuses of one keeps it
// from none of the others; with again the networks are tried once more that it refused before.
func (n *network) setOverlays(ctx context.Context, again bool) error {
	due := n.watch.take()
	for _, id := range n.brokenLayers() {
		if _, ok := due[id]; !ok && !again {
			continue
		}
		if due == nil {
			due = map[model.NetworkID]*overlayChange{}
		}
		due[id] = &overlayChange{whole: true}
	}
	var errs []error
	for id, c := range due {
		err := n.setOverlay(ctx, id, c)
		parts, rest := netplan.Parts(err)
		for _, p := range parts {
			errs = append(errs, p)
		}
		if rest != nil {
			errs = append(errs, &netplan.PartError{Network: uint64(id), Err: rest})
		}
	}
	return errors.Join(append(errs, n.removeOverlays(ctx))...)
}

func (n *network) setOverlay(ctx context.Context, id model.NetworkID, c *overlayChange) error {
	n.mu.Lock()
	var old laid
	if l := n.layers[id]; l != nil {
		old = l.has
	}
	n.mu.Unlock()
	var plan netplan.Overlay
	var next layer
	var set []netplan.VIP
	gone := false
	whole := c.whole || old == nil
	n.nets.read(id, func(o *overlay) {
		switch {
		case o == nil:
			gone = true
			return
		case whole:
			plan, next.has = n.planOf(o)
		default:
			set, next.has = n.changed(o, c, old)
		}
		next.at = o.at
	})
	var err error
	switch {
	case gone:
		n.mu.Lock()
		delete(n.layers, id)
		n.dying[id] = true
		n.mu.Unlock()
		return nil
	case whole:
		if n.refuse(id, plan) {
			return nil
		}
		err = n.cfg.Network.SetOverlay(ctx, plan)
	default:
		err = n.cfg.Network.SetVIPs(ctx, uint64(id), set, withdrawnVIPs(old, next.has))
	}
	n.laidOut(id, next, err)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.dying, id)
	return err
}

// changed are the virtual addresses of the services that a change touches, and what all services have then.
func (n *network) changed(o *overlay, c *overlayChange, old laid) ([]netplan.VIP, laid) {
	touched := map[model.ServiceID]bool{}
	for id := range c.endpoints {
		touched[id] = true
	}
	for id := range c.tasks {
		touched[id.Service] = true
	}
	now := maps.Clone(old)
	for id := range touched {
		delete(now, id)
	}
	var set []netplan.VIP
	for id, vips := range n.vipsOf(n.frameOf(o), o, touched) {
		set = append(set, vips...)
		for _, v := range vips {
			now[id] = append(now[id], v.Addr)
		}
	}
	return set, now
}

// withdrawnVIPs are the virtual addresses that no service has any more.
func withdrawnVIPs(old, now laid) []netip.Addr {
	kept := map[netip.Addr]bool{}
	for _, list := range now {
		for _, a := range list {
			kept[a] = true
		}
	}
	var out []netip.Addr
	for _, list := range old {
		for _, a := range list {
			if !kept[a] {
				out = append(out, a)
			}
		}
	}
	return out
}

// overlayInput is every network for a full pass, and the layers that are to come of it. n.mu is held.
func (n *network) overlayInput() ([]netplan.Overlay, map[model.NetworkID]layer) {
	var out []netplan.Overlay
	maps.DeleteFunc(n.layers, func(_ model.NetworkID, l *layer) bool { return l.final })
	next := map[model.NetworkID]layer{}
	for _, id := range n.nets.list() {
		n.nets.read(id, func(o *overlay) {
			if o == nil {
				return
			}
			p, has := n.planOf(o)
			if err := n.node.CheckOverlay(p); err != nil {
				n.layer(id).fail(err, true)
				return
			}
			out, next[id] = append(out, p), layer{has: has, at: o.at}
		})
	}
	return out, next
}

// setDNS leads a task's questions to its resolver. The daemon that comes next knows it as well.
func (a *Agent) setDNS(ctx context.Context, id model.TaskID, container string, ports netplan.DNSPorts) error {
	n := a.net
	n.gate.RLock()
	defer n.gate.RUnlock()
	n.mu.Lock()
	t, ok := n.added[id]
	if ok {
		t.DNS = ports
		n.added[id] = t
	}
	n.mu.Unlock()
	if !ok {
		return fmt.Errorf("task %s has no network", container[:12])
	}
	a.saved(a.store.write(op{dnsPrefix + idText(id), encode(ports)}))
	return n.cfg.Network.SetDNS(ctx, container, ports)
}

// storedDNS is where a task's resolver listened when the daemon ran before.
func (a *Agent) storedDNS(id model.TaskID) netplan.DNSPorts {
	var p netplan.DNSPorts
	if b := a.store.get(dnsPrefix + idText(id)); b != nil {
		if err := cbor.Unmarshal(b, &p); err != nil {
			return netplan.DNSPorts{} // it is told again before the task's names are needed
		}
	}
	return p
}
