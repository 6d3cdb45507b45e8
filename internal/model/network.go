package model

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/moby/moby/api/types/swarm"
)

// DriverOverlay is the driver of the swarm's own networks.
const DriverOverlay = "overlay"

// Numbers of networks that are no objects of the state: what stands for the gateway network in a swarm without an
// ingress network, and the networks of each host itself, which a service may name as well.
const (
	NetworkIngress NetworkID = 1<<40 + iota
	NetworkHost
	NetworkBridge
	NetworkNone
)

// NetMode is where tasks live that are in no network of the swarm.
type NetMode string

const (
	NetHost NetMode = "host" // in the host's network namespace
	NetNone NetMode = "none" // in a namespace of their own with nothing but lo
)

// Network is an overlay network, or the ingress network.
type Network struct {
	ID        NetworkID `cbor:"1,keyasint"`
	Name      string    `cbor:"2,keyasint"`
	Driver    string    `cbor:"3,keyasint"`
	Ingress   bool      `cbor:"4,keyasint,omitempty"`
	CreatedAt Time      `cbor:"5,keyasint"`
	Version   uint64    `cbor:"6,keyasint"`

	Labels     map[string]string `cbor:"8,keyasint,omitempty"`
	Options    map[string]string `cbor:"9,keyasint,omitempty"` // of the driver
	Attachable bool              `cbor:"10,keyasint,omitempty"`
	Internal   bool              `cbor:"11,keyasint,omitempty"`
	EnableIPv6 bool              `cbor:"12,keyasint,omitempty"`

	IPAMDriver  string            `cbor:"13,keyasint,omitempty"`
	IPAMOptions map[string]string `cbor:"14,keyasint,omitempty"`
	// IPAM are the subnets, complete as they were allocated: IPv4 first, at most one of IPv6.
	IPAM []IPAMConfig `cbor:"15,keyasint,omitempty"`
	// VNI tells the network's packets apart on the wire. No two networks have the same.
	VNI uint32 `cbor:"16,keyasint,omitempty"`
	// Deleted is true once users deleted it; it is there only for the tasks that still have addresses in it.
	Deleted bool `cbor:"17,keyasint,omitempty"`
}

// IPAMConfig is one subnet of a network.
type IPAMConfig struct {
	Subnet netip.Prefix `cbor:"1,keyasint"`
	// Range is the part of the subnet that addresses are given from; the zero Prefix means all of it.
	Range netip.Prefix `cbor:"2,keyasint,omitempty"`
	// Gateway and Aux are addresses that no task gets.
	Gateway netip.Addr            `cbor:"3,keyasint,omitempty"`
	Aux     map[string]netip.Addr `cbor:"4,keyasint,omitempty"`
}

// Pool is the part of the subnet that addresses are given from.
func (c *IPAMConfig) Pool() netip.Prefix {
	if c.Range.IsValid() {
		return c.Range.Masked()
	}
	return c.Subnet.Masked()
}

// Reserved reports whether no task may have an address of the subnet: its own, the broadcast address, the gateway's or
// an auxiliary one.
func (c *IPAMConfig) Reserved(a netip.Addr) bool {
	if a == c.Gateway || a == c.Subnet.Masked().Addr() || a.Is4() && a == LastAddr(c.Subnet) {
		return true
	}
	for _, x := range c.Aux {
		if a == x {
			return true
		}
	}
	return false
}

// Subnet4 is the IPv4 subnet that an address is in, and how many addresses the subnets before it have; nil for an
// address of none.
func (n *Network) Subnet4(a netip.Addr) (c *IPAMConfig, before uint64) {
	for i := range n.IPAM {
		s := n.IPAM[i].Subnet
		if !s.Addr().Is4() {
			continue
		}
		if s.Contains(a) {
			return &n.IPAM[i], before
		}
		before += 1 << (32 - s.Bits())
	}
	return nil, 0
}

// Subnet6 is the IPv6 subnet, nil without one.
func (n *Network) Subnet6() *IPAMConfig {
	for i := range n.IPAM {
		if n.IPAM[i].Subnet.Addr().Is6() {
			return &n.IPAM[i]
		}
	}
	return nil
}

// Addr6 is the IPv6 address that goes with an IPv4 address of the network: the same place in the IPv6 subnet, so that
// one allocation serves both. It is invalid without IPv6.
func (n *Network) Addr6(a netip.Addr) netip.Addr {
	six := n.Subnet6()
	c, before := n.Subnet4(a)
	if six == nil || c == nil {
		return netip.Addr{}
	}
	b := six.Subnet.Masked().Addr().As16()
	low := binary.BigEndian.Uint64(b[8:]) + before + uint64(Addr4Num(a)-Addr4Num(c.Subnet.Masked().Addr()))
	binary.BigEndian.PutUint64(b[8:], low)
	return netip.AddrFrom16(b)
}

// Addr4Num is an IPv4 address as a number.
func Addr4Num(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// Addr4 is the IPv4 address of a number.
func Addr4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// LastAddr is the highest address of a prefix.
func LastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// TaskNet is a task's place in an overlay network.
type TaskNet struct {
	Network NetworkID  `cbor:"1,keyasint"`
	Addr4   netip.Addr `cbor:"2,keyasint,omitempty"`
	Addr6   netip.Addr `cbor:"3,keyasint,omitempty"`
}

// VIP is a service's virtual address in an overlay network.
type VIP TaskNet

// NetAttach is how a template's tasks are attached to an overlay network.
type NetAttach struct {
	Network NetworkID         `cbor:"1,keyasint"`
	Aliases []string          `cbor:"2,keyasint,omitempty"`
	Options map[string]string `cbor:"3,keyasint,omitempty"`
}

// SetNetworks reads the networks of the task spec, which name them by their identifiers, into Nets and NetMode. The
// host's own networks need no attachment: bridge means the gateway network, which every other task has anyway.
func (t *Template) SetNetworks(namer Namer) error {
	t.Nets, t.NetMode = nil, ""
	if t.Task.Typed == nil {
		return nil
	}
	for _, a := range t.Task.Typed.Networks {
		k, ok := namer.Parse(a.Target)
		if !ok || k.Kind != KindNetwork {
			return fmt.Errorf("template of service %s: network %q is no identifier", t.ServiceName, a.Target)
		}
		switch id := NetworkID(k.A); id {
		case NetworkHost:
			t.NetMode = NetHost
		case NetworkNone:
			t.NetMode = NetNone
		case NetworkBridge, NetworkIngress:
		default:
			t.Nets = append(t.Nets, NetAttach{Network: id, Aliases: a.Aliases, Options: a.DriverOpts})
		}
	}
	return nil
}

// WantsVIP reports whether a service's endpoint mode gives it virtual addresses.
func WantsVIP(spec *swarm.ServiceSpec) bool {
	return spec.EndpointSpec == nil || spec.EndpointSpec.Mode != swarm.ResolutionModeDNSRR
}

// NetsEqual compares two lists of addresses; nil and empty are the same.
func NetsEqual[T TaskNet | VIP](a, b []T) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
