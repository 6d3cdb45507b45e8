package dockerapi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/state"
)

func viewNetwork(namer model.Namer, n *model.Network) network.Network {
	out := network.Network{
		Name: n.Name, ID: namer.NetworkID(n.ID), Created: wallTime(n.CreatedAt), Scope: scopeSwarm, Driver: n.Driver, EnableIPv4: true,
		EnableIPv6: n.EnableIPv6, Internal: n.Internal, Attachable: n.Attachable, Ingress: n.Ingress,
		IPAM:    network.IPAM{Driver: "default", Options: n.IPAMOptions, Config: []network.IPAMConfig{}},
		Options: networkOptions(n.Options, n.VNI), Labels: mergedLabels(n.Labels, nil),
	}
	for _, c := range n.IPAM {
		if !c.Subnet.IsValid() {
			continue
		}
		if c.Subnet.Addr().Is6() {
			out.EnableIPv6 = true
		}
		out.IPAM.Config = append(out.IPAM.Config, network.IPAMConfig{Subnet: c.Subnet, IPRange: c.Range, Gateway: c.Gateway, AuxAddress: c.Aux})
	}
	return out
}

// swarmNetwork is a network as tasks show it.
func swarmNetwork(namer model.Namer, n *model.Network) swarm.Network {
	out := swarm.Network{
		ID:   namer.NetworkID(n.ID),
		Meta: meta(n.Version, n.CreatedAt, n.CreatedAt),
		Spec: swarm.NetworkSpec{
			Annotations:         swarm.Annotations{Name: n.Name, Labels: mergedLabels(n.Labels, nil)},
			DriverConfiguration: &swarm.Driver{Name: n.Driver, Options: n.Options},
			Ingress:             n.Ingress, Attachable: n.Attachable, Internal: n.Internal, IPv6Enabled: n.EnableIPv6,
			Scope: scopeSwarm,
		},
		DriverState: swarm.Driver{Name: n.Driver},
	}
	if n.VNI == 0 {
		return out
	}
	out.DriverState.Options = networkOptions(n.Options, n.VNI)
	ipam := &swarm.IPAMOptions{Driver: swarm.Driver{Name: "default"}}
	for _, c := range n.IPAM {
		ipam.Configs = append(ipam.Configs, swarm.IPAMConfig{Subnet: c.Subnet, Range: c.Range, Gateway: c.Gateway})
	}
	out.IPAMOptions = ipam
	return out
}

// within is an address with the length of its subnet; false when the network has no such subnet any more.
func within(n *model.Network, a netip.Addr) (netip.Prefix, bool) {
	if n == nil || !a.IsValid() {
		return netip.Prefix{}, false
	}
	for _, c := range n.IPAM {
		if c.Subnet.Contains(a) {
			return netip.PrefixFrom(a, c.Subnet.Bits()), true
		}
	}
	return netip.Prefix{}, false
}

// prefixes are the addresses with the length of their subnets.
func prefixes(n *model.Network, addrs ...netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		if p, ok := within(n, a); ok {
			out = append(out, p)
		}
	}
	return out
}

// endpointID stands for a task's place in a network: Docker's clients show it.
func endpointID(network, task string) string {
	sum := sha256.Sum256([]byte("endpoint " + network + " " + task))
	return hex.EncodeToString(sum[:])
}

// networkView is a network as Docker lists it: with what is on it, even if nothing is.
type networkView struct {
	network.Network
	Containers map[string]network.EndpointResource
	Services   map[string]network.ServiceInfo `json:",omitempty"`
}

// inspected adds to an overlay network its peers, this node's containers, and, when verbose, its services.
func (s *Server) inspected(snap *state.Snapshot, n *model.Network, v *networkView, verbose bool) {
	namer, local := snap.Cluster().Namer(), s.backend.Local().Node
	var nodes []model.NodeID
	for t := range snap.NetworkTasks(n.ID) {
		if !slices.Contains(nodes, t.Node) {
			nodes = append(nodes, t.Node)
		}
		if t.Node == local && hasContainer(t) {
			v.Containers[containerID(namer.TaskID(t.ID))] = endpointResource(namer, n, taskName(namer, serviceNameOf(snap, t), t), t)
		}
	}
	slices.Sort(nodes)
	for _, id := range nodes {
		if node := snap.Node(id); node != nil {
			ip, _ := netip.ParseAddr(node.Addr)
			v.Peers = append(v.Peers, network.PeerInfo{Name: node.Hostname() + "-" + namer.NodeID(id)[:12], IP: ip})
		}
	}
	if !verbose {
		return
	}
	v.Services = map[string]network.ServiceInfo{}
	for svc := range snap.NetworkServices(n.ID) {
		v.Services[svc.Name()] = serviceInfo(snap, n, svc)
	}
}

func serviceNameOf(snap *state.Snapshot, t *model.Task) string {
	if tmpl := snap.Template(t.Template); tmpl != nil {
		return tmpl.ServiceName
	}
	return snap.Cluster().Namer().ServiceID(t.ID.Service)
}

func endpointResource(namer model.Namer, n *model.Network, name string, t *model.Task) network.EndpointResource {
	out := network.EndpointResource{Name: name, EndpointID: endpointID(namer.NetworkID(n.ID), namer.TaskID(t.ID))}
	for _, a := range t.Nets {
		if a.Network == n.ID {
			out.IPv4Address, _ = within(n, a.Addr4)
			out.IPv6Address, _ = within(n, a.Addr6)
			if a.Addr4.IsValid() {
				mac := netplan.TaskMAC(a.Addr4)
				out.MacAddress = mac[:]
			}
		}
	}
	return out
}

func serviceInfo(snap *state.Snapshot, n *model.Network, svc *model.Service) network.ServiceInfo {
	namer := snap.Cluster().Namer()
	out := network.ServiceInfo{Ports: []string{}, Tasks: []network.Task{}}
	for _, v := range svc.VIPs {
		if v.Network == n.ID {
			out.VIP = v.Addr4
		}
	}
	for _, p := range svc.Ports {
		out.Ports = append(out.Ports, fmt.Sprintf("Target: %d, Publish: %d", p.TargetPort, p.PublishedPort))
	}
	for t := range snap.Tasks(svc.ID) {
		for _, a := range t.Nets {
			if a.Network != n.ID || t.State != model.StateRunning {
				continue
			}
			host := ""
			if node := snap.Node(t.Node); node != nil {
				host = node.Addr
			}
			out.Tasks = append(out.Tasks, network.Task{Name: taskName(namer, svc.Name(), t), EndpointIP: a.Addr4,
				EndpointID: endpointID(namer.NetworkID(n.ID), namer.TaskID(t.ID)), Info: map[string]string{"Host IP": host}})
		}
	}
	return out
}

// gatewayNetwork is what Docker calls a task's way out of its node: the ingress network when its service publishes ports there, else
// the host's bridge, and that only of a task in no other network; "" when it is not to be shown. Clients that route to tasks or read their metrics
// take every network that they are shown for one that the task is meant to be reached by.
func gatewayNetwork(snap *state.Snapshot, t *model.Task) string {
	switch {
	case !t.Gateway4.IsValid() && !t.Gateway6.IsValid():
		return ""
	case publishesIngress(snap.Service(t.ID.Service)):
		return ingressName
	case len(t.Nets) == 0:
		return "bridge"
	}
	return ""
}

// ingressName is what the network of published ports is called.
const ingressName = "ingress"

// publishesIngress reports whether a service has ports on every node; nil has none.
func publishesIngress(svc *model.Service) bool {
	return svc != nil && slices.ContainsFunc(svc.Ports, func(p swarm.PortConfig) bool { return p.PublishMode != swarm.PortConfigPublishModeHost })
}

// gatewayAddresses are a task's addresses in its node's gateway network.
func gatewayAddresses(t *model.Task) (a4, a6 netip.Prefix) {
	if t.Gateway4.IsValid() {
		a4 = netip.PrefixFrom(t.Gateway4, 24)
	}
	if t.Gateway6.IsValid() {
		a6 = netip.PrefixFrom(t.Gateway6, 64)
	}
	return a4, a6
}

// NetworksOf are the networks that a task's container is in, as Docker would name them.
func NetworksOf(snap *state.Snapshot, t *model.Task, tpl *model.Template) []ContainerNetwork {
	if tpl.NetMode != "" {
		return []ContainerNetwork{{Name: string(tpl.NetMode)}}
	}
	var out []ContainerNetwork
	namer := snap.Cluster().Namer()
	task := namer.TaskID(t.ID)
	short := containerID(task)[:12]
	place := func(name string, id model.NetworkID) ContainerNetwork {
		return ContainerNetwork{Name: name, ID: namer.NetworkID(id), EndpointID: endpointID(namer.NetworkID(id), task),
			DNSNames: []string{taskName(namer, tpl.ServiceName, t)}}
	}
	if name := gatewayNetwork(snap, t); name != "" {
		id := hostNetworks[name]
		if name == ingressName {
			id = ingressNetwork(snap).ID
		}
		c := place(name, id)
		c.Addr4, c.Addr6 = gatewayAddresses(t)
		c.DNSNames = append(c.DNSNames, short)
		out = append(out, c)
	}
	for _, a := range t.Nets {
		n := snap.Network(a.Network)
		if n == nil {
			continue
		}
		c := place(n.Name, n.ID)
		c.Aliases = []string{short}
		c.Addr4, _ = within(n, a.Addr4)
		c.Addr6, _ = within(n, a.Addr6)
		for _, at := range tpl.Nets {
			if at.Network == n.ID {
				c.Aliases = append(slices.Clone(at.Aliases), c.Aliases...)
				c.DNSNames = append(c.DNSNames, at.Aliases...)
			}
		}
		c.DNSNames = append(c.DNSNames, short)
		out = append(out, c)
	}
	return out
}
