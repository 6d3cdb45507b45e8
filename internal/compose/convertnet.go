package compose

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

const defaultNetwork = "default"

// hostNetwork says whether a service is on a network of the node instead of the stack's.
func hostNetwork(m dict) string {
	if mode := str(m, "network_mode"); mode == "host" || mode == "none" {
		return mode
	}
	return ""
}

func (c *converter) attachments(name string, m dict) []swarm.NetworkAttachmentConfig {
	if mode := hostNetwork(m); mode != "" {
		return []swarm.NetworkAttachmentConfig{{Target: mode}}
	}
	nets := sub(m, "networks")
	if len(nets) == 0 {
		nets = dict{defaultNetwork: nil}
	}
	var out []swarm.NetworkAttachmentConfig
	for _, n := range sorted(nets) {
		own := sub(nets, n)
		a := swarm.NetworkAttachmentConfig{Target: c.named("networks", n), Aliases: texts(own, "aliases"), DriverOpts: textMap(own, "driver_opts")}
		if userDefined(a.Target) {
			a.Aliases = append(a.Aliases, name)
		}
		out = append(out, a)
	}
	slices.SortStableFunc(out, func(a, b swarm.NetworkAttachmentConfig) int { return strings.Compare(a.Target, b.Target) })
	return out
}

// userDefined: the others are on every node, and know no aliases.
func userDefined(network string) bool {
	return !slices.Contains([]string{"bridge", "default", "host", "none", "nat"}, network) && !strings.HasPrefix(network, "container:")
}

// networks are those that services are on.
func (c *converter) networks(services dict) []Network {
	used := map[string]bool{}
	for _, s := range services {
		m, _ := s.(dict)
		if mode := hostNetwork(m); mode != "" {
			continue
		}
		if len(sub(m, "networks")) == 0 {
			used[defaultNetwork] = true
		}
		for n := range sub(m, "networks") {
			used[n] = true
		}
	}
	var out []Network
	for _, key := range sorted(used) {
		m := sub(sub(c.m.value, "networks"), key)
		n := Network{Name: c.named("networks", key), External: flag(m, "external")}
		if !n.External {
			n.Create = c.network(key, n.Name, m)
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (c *converter) network(key, name string, m dict) *network.CreateRequest {
	out := &network.CreateRequest{
		Name: name, Driver: str(m, "driver"), Internal: flag(m, "internal"), Attachable: flag(m, "attachable"),
		Options: textMap(m, "driver_opts"), Labels: c.scope.labels(textMap(m, "labels")), IPAM: c.ipam(key, sub(m, "ipam")),
	}
	if out.Driver == "" {
		out.Driver = "overlay"
	}
	for k, p := range map[string]**bool{"enable_ipv4": &out.EnableIPv4, "enable_ipv6": &out.EnableIPv6} {
		if b, ok := m[k].(bool); ok {
			*p = &b
		}
	}
	return out
}

func (c *converter) ipam(key string, m dict) *network.IPAM {
	if str(m, "driver") == "" && len(list(m, "config")) == 0 && len(sub(m, "options")) == 0 {
		return nil
	}
	fail := func(field, value, want string) {
		c.l.problems.add(c.m.at("networks", key, "ipam", "config"), "network %s: ipam %s %q is not %s", key, field, value, want)
	}
	addr := func(field, s string) netip.Addr {
		a, err := netip.ParseAddr(s)
		if s != "" && err != nil {
			fail(field, s, "an address like 10.1.0.1")
		}
		return a
	}
	prefix := func(field, s string) netip.Prefix {
		p, err := netip.ParsePrefix(s)
		if s != "" && err != nil {
			fail(field, s, "a subnet like 10.1.0.0/16")
		}
		return p
	}
	out := &network.IPAM{Driver: str(m, "driver"), Options: textMap(m, "options")}
	for _, v := range list(m, "config") {
		p, _ := v.(dict)
		one := network.IPAMConfig{Subnet: prefix("subnet", str(p, "subnet")), IPRange: prefix("ip_range", str(p, "ip_range")), Gateway: addr("gateway", str(p, "gateway"))}
		for host, a := range textMap(p, "aux_addresses") {
			if one.AuxAddress == nil {
				one.AuxAddress = map[string]netip.Addr{}
			}
			one.AuxAddress[host] = addr("aux_addresses", a)
		}
		out.Config = append(out.Config, one)
	}
	return out
}
