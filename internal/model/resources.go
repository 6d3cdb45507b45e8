package model

import (
	"cmp"

	"github.com/moby/moby/api/types/swarm"
)

// Generic is a generic resource in one shape: so many of a kind, or one that has a name.
type Generic struct {
	Kind string
	Name string // empty when the kind is only counted
	N    int64  // 1 for a named one
}

// GenericOf reads Docker's two shapes.
func GenericOf(r swarm.GenericResource) Generic {
	switch {
	case r.NamedResourceSpec != nil:
		return Generic{Kind: r.NamedResourceSpec.Kind, Name: r.NamedResourceSpec.Value, N: 1}
	case r.DiscreteResourceSpec != nil:
		return Generic{Kind: r.DiscreteResourceSpec.Kind, N: r.DiscreteResourceSpec.Value}
	}
	return Generic{}
}

// API is Docker's shape of the resource.
func (g Generic) API() swarm.GenericResource {
	if g.Name != "" {
		return swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: g.Kind, Value: g.Name}}
	}
	return swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: g.Kind, Value: g.N}}
}

// FreeGeneric is what of one kind is left on a node after what is taken: names, in the node's order, when
// the node names them, else only how many. Both are empty for a kind that the node does not have.
func FreeGeneric(has, taken []swarm.GenericResource, kind string) (names []string, n int64) {
	named, used := map[string]bool{}, int64(0)
	for _, r := range taken {
		if g := GenericOf(r); g.Kind == kind {
			named[g.Name] = true
			used += g.N
		}
	}
	for _, r := range has {
		switch g := GenericOf(r); {
		case g.Kind != kind:
		case g.Name == "":
			n += g.N
		case !named[g.Name]:
			names = append(names, g.Name)
		}
	}
	if len(names) > 0 {
		return names, int64(len(names))
	}
	return nil, max(n-used, 0)
}

// HostPort is a port that a task holds on its node: one task a node can have it.
type HostPort struct {
	Protocol string // tcp, udp or sctp
	Port     uint32
}

// FixedHostPorts are the ports that a task of the template holds on its node; dynamic ones are picked by
// the agent and clash with nothing.
func (t *Template) FixedHostPorts() []HostPort {
	var out []HostPort
	for _, p := range t.HostPorts {
		if p.PublishedPort != 0 {
			out = append(out, HostPort{cmp.Or(string(p.Protocol), "tcp"), p.PublishedPort})
		}
	}
	return out
}

// Reservations are what a task of the template reserves; nil for nothing.
func (t *Template) Reservations() *swarm.Resources {
	if t.Task.Typed == nil || t.Task.Typed.Resources == nil {
		return nil
	}
	return t.Task.Typed.Resources.Reservations
}
