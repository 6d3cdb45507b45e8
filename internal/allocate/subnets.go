package allocate

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

const (
	// firstVNI is the first VXLAN identifier of a network, as in Docker; lower ones are the users'.
	firstVNI = 4097
	maxVNI   = 1<<24 - 1
	// VXLANOption lists the VXLAN identifiers that a user wants for a network's subnets.
	VXLANOption = "com.docker.network.driver.overlay.vxlanid_list"
	// pool6Bits is the size of the IPv6 subnet that a network gets.
	pool6Bits = 64
	// ula6 keeps the networks' IPv6 subnets apart from the nodes' (low numbers) in the cluster's /48.
	ula6 = 0x8000
)

// errOverlap is Docker's word for a subnet that cannot be had.
const errOverlap = "invalid pool request: Pool overlaps with other one on this address space"

// Network completes a network that is about to be made: its number, its number on the wire, the subnets that were left
// open, gateways. What the user gave has been checked for itself already; overlaps are the networks with which the
// given subnets overlap, which works as long as no task is in both. The error is Forbidden for a subnet that cannot
// work, Exhausted when none is left.
func Network(snap *state.Snapshot, n *model.Network) (overlaps []*model.Network, err error) {
	n.ID = snap.LastNetwork() + 1
	if n.VNI, err = vni(snap, n); err != nil {
		return nil, err
	}
	four, six := false, false
	for i := range n.IPAM {
		p := n.IPAM[i].Subnet
		four, six = four || p.Addr().Is4(), six || p.Addr().Is6()
		if pool := snap.Cluster().GatewayPool; pool.IsValid() && p.Overlaps(pool) {
			return nil, model.Errorf(model.Forbidden, "%s: %s is part of %s, the pool of the gateway network", errOverlap, p, pool)
		}
		if pool := snap.Cluster().GatewayULA; pool.IsValid() && p.Overlaps(pool) {
			return nil, model.Errorf(model.Forbidden, "%s: %s is part of %s, the swarm's own", errOverlap, p, pool)
		}
		for o := range snap.AllNetworks() {
			if !slices.Contains(overlaps, o) && !o.Ingress && overlap(o, p) {
				overlaps = append(overlaps, o)
			}
		}
	}
	if !four {
		p, err := subnet4(snap)
		if err != nil {
			return nil, err
		}
		n.IPAM = slices.Insert(n.IPAM, 0, model.IPAMConfig{Subnet: p})
	}
	if n.EnableIPv6 && !six {
		p, err := subnet6(snap, n.ID)
		if err != nil {
			return nil, err
		}
		n.IPAM = append(n.IPAM, model.IPAMConfig{Subnet: p})
	}
	for i := range n.IPAM {
		giveGateway(&n.IPAM[i])
	}
	return overlaps, nil
}

func overlap(o *model.Network, p netip.Prefix) bool {
	return slices.ContainsFunc(o.IPAM, func(c model.IPAMConfig) bool { return c.Subnet.Overlaps(p) })
}

// giveGateway reserves the first address that tasks could have, as Docker does, where the user named none.
func giveGateway(c *model.IPAMConfig) {
	if c.Gateway.IsValid() {
		return
	}
	p := c.Pool()
	for a := p.Addr(); p.Contains(a); a = a.Next() {
		if !c.Reserved(a) {
			c.Gateway = a
			return
		}
	}
}

// vni is the network's number on the wire: the one that the user wants, else one of its own that follows from its number,
// so that it is not given again soon after the network is gone.
func vni(snap *state.Snapshot, n *model.Network) (uint32, error) {
	used := map[uint32]string{}
	for o := range snap.AllNetworks() {
		used[o.VNI] = o.Name
	}
	if list := n.Options[VXLANOption]; list != "" {
		first, _, _ := strings.Cut(list, ",")
		v, err := strconv.ParseUint(strings.TrimSpace(first), 10, 32)
		if err != nil || v == 0 || v > maxVNI {
			return 0, model.Invalidf("invalid vxlan id value passed: %s: it must be a number from 1 to %d", list, maxVNI)
		}
		if o, ok := used[uint32(v)]; ok {
			return 0, model.Errorf(model.Forbidden, "vxlan id %d is in use by network %s", v, o)
		}
		return uint32(v), nil
	}
	const span = maxVNI - firstVNI + 1
	for k := range uint64(span) {
		v := uint32(firstVNI + (uint64(n.ID)-1+k)%span)
		if _, ok := used[v]; !ok {
			return v, nil
		}
	}
	return 0, model.Errorf(model.Exhausted, "no free vxlan id")
}

// subnet4 is the first subnet of the swarm's default pools that no network has and no node reaches by another way.
func subnet4(snap *state.Snapshot) (netip.Prefix, error) {
	c := snap.Cluster()
	pools, size := c.DefaultAddrPool, int(c.SubnetSize)
	if len(pools) == 0 {
		pools = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10}), 8)}
	}
	if size == 0 {
		size = 24
	}
	for _, p := range pools {
		p = p.Masked()
		rest := takenSubnets(snap, p)
		b, ok := netip.PrefixFrom(p.Addr(), max(size, p.Bits())), p.Addr().Is4()
		for ok && p.Overlaps(b) {
			at, hit := firstOverlap(rest, b)
			if !hit {
				return b, nil
			}
			rest = rest[at:]
			behind := last(b)
			if l := last(rest[0]); l.Compare(behind) > 0 {
				behind = l
			}
			b, ok = blockAfter(behind, b.Bits())
		}
	}
	return netip.Prefix{}, model.Errorf(model.Exhausted, "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network: "+
		"all /%d of %s are in use or reached by other ways; give the network a --subnet, or the swarm another --default-addr-pool", size, joined(pools))
}

// takenSubnets are the IPv4 prefixes that no network gets by itself from a pool, in order.
func takenSubnets(snap *state.Snapshot, pool netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	if p := snap.Cluster().GatewayPool; p.IsValid() {
		out = append(out, p.Masked())
	}
	for n := range snap.AllNetworks() {
		for i := range n.IPAM {
			if p := n.IPAM[i].Subnet; p.IsValid() && p.Addr().Is4() {
				out = append(out, p.Masked())
			}
		}
	}
	for n := range snap.Nodes() {
		for _, r := range n.Routes {
			// A route to all of the pool and more, like a default route, says nothing about its parts.
			if r.Addr().Is4() && r.Bits() > pool.Bits() {
				out = append(out, r.Masked())
			}
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out
}

// subnet6 is a /64 of the cluster's own /48 for a network; the lower half of its numbers are the nodes'.
func subnet6(snap *state.Snapshot, id model.NetworkID) (netip.Prefix, error) {
	ula := snap.Cluster().GatewayULA
	if !ula.IsValid() || ula.Bits() > 48 {
		return netip.Prefix{}, model.Errorf(model.FailedPrecondition, "the swarm has no IPv6 prefix of its own: give the network an IPv6 --subnet")
	}
	b := ula.Masked().Addr().As16()
	for k := range uint64(ula6) {
		n := ula6 + (uint64(id)+k)%ula6
		b[6], b[7] = byte(n>>8), byte(n)
		p := netip.PrefixFrom(netip.AddrFrom16(b), pool6Bits)
		free := true
		for o := range snap.AllNetworks() {
			free = free && (o.Ingress || !overlap(o, p))
		}
		if free {
			return p, nil
		}
	}
	return netip.Prefix{}, model.Errorf(model.Exhausted, "the swarm's IPv6 prefix %s has no free /%d: give the network an IPv6 --subnet", ula, pool6Bits)
}
