package sim

import (
	"fmt"
	"net/netip"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
)

// maxNetworks bounds what users make; small subnets, so that they fill.
const maxNetworks = 3

// networks lets a user make or remove an overlay network now and then.
func (u *users) networks(m *member) {
	w := u.w
	var ids []model.NetworkID
	for n := range m.snap.Networks() {
		ids = append(ids, n.ID)
	}
	if len(ids) < maxNetworks && w.chance(.5) {
		n := model.Network{Name: fmt.Sprintf("net%d", m.snap.LastNetwork()+1), Driver: model.DriverOverlay}
		if w.chance(.5) {
			n.IPAM = []model.IPAMConfig{{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, byte(w.rng.IntN(4)), 0}), 28)}}
		}
		if _, err := allocate.Network(m.snap, &n); err != nil {
			return // no subnet is left
		}
		u.write(m, "create network", []model.Guard{{Key: model.NetworkKey(n.ID), Group: model.GroupSpec}}, model.Change{PutNetwork: &n})
		return
	}
	if len(ids) > 0 {
		u.write(m, "remove network", nil, model.Change{DeleteNetwork: ids[w.rng.IntN(len(ids))]})
	}
}

// attach puts a service into one or two networks, or into none.
func (u *users) attach(m *member, s *swarm.ServiceSpec) {
	s.TaskTemplate.Networks = nil
	for n := range m.snap.Networks() {
		if len(s.TaskTemplate.Networks) < 2 && u.w.chance(.4) {
			s.TaskTemplate.Networks = append(s.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: m.snap.Cluster().Namer().NetworkID(n.ID)})
		}
	}
	if s.EndpointSpec == nil && u.w.chance(.2) {
		s.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionModeDNSRR}
	}
}

// netAddr is an address of an overlay network.
type netAddr struct {
	network model.NetworkID
	addr    netip.Addr
}

// nets judges, from all tasks and services anew, that no address of a network is given twice, none that nobody may have,
// and that what has addresses is where its template says.
func (j *judge) nets(s *step) {
	owner := map[netAddr]string{}
	claim := func(who string, id model.NetworkID, a4, a6 netip.Addr) {
		n := s.after.Network(id)
		if n == nil {
			j.w.fail("law: a network outlives what is in it: %s is in network %d", who, id)
			return
		}
		if c, _ := n.Subnet4(a4); c == nil || c.Reserved(a4) || n.Addr6(a4) != a6 {
			j.w.fail("law: an address comes from its network: %s has %s and %s of network %d", who, a4, a6, id)
		}
		k := netAddr{id, a4}
		if o, ok := owner[k]; ok {
			j.w.fail("law: no overlay address is given twice: %s of network %d is of %s and of %s", a4, id, o, who)
		}
		owner[k] = who
	}
	for v := range s.after.Services() {
		for _, vip := range v.VIPs {
			claim("service "+v.Name(), vip.Network, vip.Addr4, vip.Addr6)
		}
	}
	for t := range s.after.AllTasks() {
		if !booked(t) {
			continue
		}
		for _, a := range t.Nets {
			claim("task "+short(t.ID), a.Network, a.Addr4, a.Addr6)
		}
		if tpl := s.after.Template(t.Template); tpl != nil && len(tpl.Nets) != len(t.Nets) {
			j.w.fail("law: a placed task has an address in each of its networks: %s has %d of %d", short(t.ID), len(t.Nets), len(tpl.Nets))
		}
	}
	used := map[model.NetworkID]int{}
	for k := range owner {
		used[k.network]++
	}
	for n := range s.after.AllNetworks() {
		if have, _ := s.after.NetAddrs(n.ID); have != used[n.ID] {
			j.w.fail("law: addresses that nobody has are free: network %d counts %d in use, and %d are", n.ID, have, used[n.ID])
		}
		if n.Deleted && used[n.ID] == 0 {
			j.w.fail("law: a removed network goes with its last task: %d is left", n.ID)
		}
	}
}
