package allocate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// pool gives out the addresses of one overlay network.
type pool struct {
	net   *model.Network
	six   *model.IPAMConfig
	parts []netip.Prefix // of IPv4
	given map[uint32]struct{}
	next  netip.Addr // where to look first
	dry   bool       // only addresses that rest are left
	rest  state.NetRest
	err   error // why there are no more
}

// pool reads what the state knows of a network's addresses. The search goes on behind the one that was given last.
func (a *allocator) pool(id model.NetworkID) *pool {
	if p, ok := a.nets[id]; ok {
		return p
	}
	p := &pool{given: map[uint32]struct{}{}}
	if n := a.snap.Network(id); n != nil && !n.Deleted {
		p.net, p.six = n, n.Subnet6()
		for i := range n.IPAM {
			if n.IPAM[i].Subnet.Addr().Is4() {
				p.parts = append(p.parts, n.IPAM[i].Pool())
			}
		}
		_, p.next = a.snap.NetAddrs(id)
	} else {
		p.err = gone(a.snap, id)
	}
	if a.nets == nil {
		a.nets = map[model.NetworkID]*pool{}
	}
	a.nets[id] = p
	return p
}

func gone(snap *state.Snapshot, id model.NetworkID) error {
	name := fmt.Sprint(id)
	if c := snap.Cluster(); c != nil {
		name = c.Namer().NetworkID(id)
	}
	return model.NotFoundf("network %s not found: it was removed; take it out of the service (docker service update --network-rm)", name)
}

// takeNets gives a task an address in each of its networks.
func (a *allocator) takeNets(list []model.NetAttach) ([]model.TaskNet, error) {
	out := make([]model.TaskNet, 0, len(list))
	for i := range list {
		p := a.pool(list[i].Network)
		addr, err := a.takeFrom(p)
		if err != nil {
			return nil, err
		}
		out = append(out, model.TaskNet{Network: list[i].Network, Addr4: addr, Addr6: p.net.Addr6(addr)})
	}
	return out, nil
}

// CheckNets says why a task of the template cannot have an address in each of its networks now; nil when one can.
func CheckNets(snap *state.Snapshot, tpl *model.Template) error {
	if len(tpl.Nets) == 0 {
		return nil
	}
	_, err := (&allocator{snap: snap}).takeNets(tpl.Nets)
	return err
}

// takeFrom is a network's next free address; one that rests when no other is left, the oldest first.
func (a *allocator) takeFrom(p *pool) (netip.Addr, error) {
	if p.err != nil {
		return netip.Addr{}, p.err
	}
	addr, ok := netip.Addr{}, false
	if !p.dry {
		addr, ok = a.free(p)
		p.dry = !ok
	}
	if !ok {
		addr, ok = a.resting(p)
	}
	if !ok {
		used, _ := a.snap.NetAddrs(p.net.ID)
		p.err = model.Errorf(model.Exhausted, "network %s: no free address in %s (%d in use)", p.net.Name, joined(p.parts), used+len(p.given))
		return netip.Addr{}, p.err
	}
	p.given[number(addr)] = struct{}{}
	p.next = addr.Next()
	return addr, nil
}

// free goes once round the network's pools, from next on.
func (a *allocator) free(p *pool) (netip.Addr, bool) {
	start := max(slices.IndexFunc(p.parts, func(b netip.Prefix) bool { return b.Contains(p.next) }), 0)
	for k := 0; k <= len(p.parts) && len(p.parts) > 0; k++ {
		b := p.parts[(start+k)%len(p.parts)]
		from, last := b.Addr(), model.LastAddr(b)
		if k == 0 && b.Contains(p.next) {
			from = p.next
		}
		for ok := true; ok && b.Contains(from); from = from.Next() {
			if from, ok = a.snap.FreeNetAddr(p.net.ID, from, last); ok && p.may(from) {
				return from, true
			}
		}
	}
	return netip.Addr{}, false
}

// resting is the address that has rested longest.
func (a *allocator) resting(p *pool) (netip.Addr, bool) {
	for {
		r, ok := a.snap.NextNetRest(p.net.ID, p.rest)
		if !ok {
			return netip.Addr{}, false
		}
		if p.rest = r; p.may(r.Addr) {
			return r.Addr, true
		}
	}
}

// may reports whether a task may have an address: this pass has not given it, and nobody reserved it.
func (p *pool) may(addr netip.Addr) bool {
	if _, ok := p.given[number(addr)]; ok {
		return false
	}
	c, _ := p.net.Subnet4(addr)
	return c != nil && !c.Reserved(addr) && (p.six == nil || !p.six.Reserved(p.net.Addr6(addr)))
}

func joined(list []netip.Prefix) string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

// VIPs plans a service's virtual addresses: one in each overlay network of its template, none with endpoint mode dnsrr.
// Those that it has already stay. When one cannot be given the service gets the reason instead, and its tasks
// wait. The transaction has no changes when nothing is to do.
func VIPs(snap *state.Snapshot, id model.ServiceID) model.Txn {
	svc := snap.Service(id)
	if svc == nil {
		return model.Txn{}
	}
	var nets []model.NetAttach
	if t := snap.Template(svc.Template); t != nil && model.WantsVIP(svc.Spec()) {
		nets = t.Nets
	}
	if len(nets) == 0 && len(svc.VIPs) == 0 && svc.NetError == "" {
		return model.Txn{}
	}
	set := &model.VIPsSet{Service: id}
	a := &allocator{snap: snap}
	for _, n := range nets {
		if i := slices.IndexFunc(svc.VIPs, func(v model.VIP) bool { return v.Network == n.Network }); i >= 0 {
			set.VIPs = append(set.VIPs, svc.VIPs[i])
			continue
		}
		got, err := a.takeNets([]model.NetAttach{n})
		if err != nil {
			set.Err = err.Error()
			continue
		}
		set.VIPs = append(set.VIPs, model.VIP(got[0]))
	}
	if set.Err == svc.NetError && slices.Equal(set.VIPs, svc.VIPs) {
		return model.Txn{}
	}
	key := model.ServiceKey(id)
	return model.Txn{
		Guards: []model.Guard{
			{Key: key, Group: model.GroupSpec, Version: svc.SpecVersion},
			{Key: key, Group: model.GroupPorts, Version: svc.PortVersion},
		},
		Changes: []model.Change{{SetVIPs: set}},
	}
}
