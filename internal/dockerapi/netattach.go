package dockerapi

import (
	"maps"
	"net/netip"
	"regexp"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Limits of a service's part in networks.
const (
	maxServiceNets = 32
	maxAliases     = 64
	maxAliasLength = 253
)

// alias is a name that DNS can be asked for: labels of letters, digits, dashes and underscores.
var alias = regexp.MustCompile(`^[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*$`)

func admitNetworks(s *swarm.ServiceSpec) error {
	nets := s.TaskTemplate.Networks
	if len(nets) > maxServiceNets {
		return invalid("a service can be in at most %d networks", maxServiceNets)
	}
	for _, n := range nets {
		if n.Target == "" {
			return invalid("a network attachment needs a target")
		}
		if len(n.Aliases) > maxAliases {
			return invalid("network %s: at most %d aliases are allowed", n.Target, maxAliases)
		}
		for _, a := range n.Aliases {
			if len(a) > maxAliasLength || !alias.MatchString(a) {
				return invalid("network %s: alias %q is not a valid DNS name", n.Target, a)
			}
		}
		if err := admitNetOptions(n.DriverOpts); err != nil {
			return err
		}
	}
	return nil
}

// hostNetworks are the numbers of the networks that every host has of its own.
var hostNetworks = map[string]model.NetworkID{"host": model.NetworkHost, "bridge": model.NetworkBridge, "none": model.NetworkNone}

// resolveNetworks puts the identifiers of networks in the place of names and prefixes, and checks that the service can
// be in all of them. The guards say that none of them is removed meanwhile.
func resolveNetworks(snap *state.Snapshot, spec model.ServiceSpec) (model.ServiceSpec, []model.Guard, error) {
	if len(spec.Typed.TaskTemplate.Networks) == 0 {
		return spec, nil, nil
	}
	namer := snap.Cluster().Namer()
	var nets []swarm.NetworkAttachmentConfig
	var overlays []*model.Network
	var own model.NetworkID // host or none
	for _, a := range spec.Typed.TaskTemplate.Networks {
		id, n, err := findTarget(snap, a.Target)
		if err != nil {
			return spec, nil, err
		}
		a.Target = namer.NetworkID(id)
		if i := slices.IndexFunc(nets, func(o swarm.NetworkAttachmentConfig) bool { return o.Target == a.Target }); i >= 0 {
			nets[i] = bothAttachments(nets[i], a)
			continue
		}
		nets = append(nets, a)
		if n != nil {
			overlays = append(overlays, n)
		} else if id != model.NetworkBridge {
			own = id
		}
	}
	if err := fitTogether(spec.Typed, nets, overlays, own); err != nil {
		return spec, nil, err
	}
	typed := *spec.Typed
	typed.TaskTemplate.Networks = nets
	out, err := mergeSpec(spec.Raw, &typed)
	if err != nil {
		return spec, nil, err
	}
	var guards []model.Guard
	for _, n := range overlays {
		guards = append(guards, model.Guard{Key: model.NetworkKey(n.ID), Group: model.GroupSpec, Version: n.Version})
	}
	return out, guards, nil
}

// findTarget looks up a network that a service names; n is nil for one of the host's own.
func findTarget(snap *state.Snapshot, ref string) (id model.NetworkID, n *model.Network, err error) {
	n, err = snap.FindNetwork(ref)
	switch {
	case err == nil && n.Ingress, ref == "ingress":
		return 0, nil, invalid("Service cannot be explicitly attached to the ingress network %q", "ingress")
	case err == nil:
		return n.ID, n, nil
	}
	if id, ok := hostNetworks[ref]; ok {
		return id, nil, nil
	}
	if k, ok := snap.Cluster().Namer().Parse(ref); ok && k.Kind == model.KindNetwork {
		if model.NetworkID(k.A) == model.NetworkIngress {
			return 0, nil, invalid("Service cannot be explicitly attached to the ingress network %q", "ingress")
		}
		for _, id := range hostNetworks {
			if model.NetworkID(k.A) == id {
				return id, nil, nil
			}
		}
	}
	return 0, nil, err
}

// bothAttachments is what naming a network twice means.
func bothAttachments(a, b swarm.NetworkAttachmentConfig) swarm.NetworkAttachmentConfig {
	a.Aliases = slices.Clone(a.Aliases)
	for _, name := range b.Aliases {
		if !slices.Contains(a.Aliases, name) {
			a.Aliases = append(a.Aliases, name)
		}
	}
	if len(b.DriverOpts) > 0 {
		opts := maps.Clone(b.DriverOpts)
		maps.Copy(opts, a.DriverOpts)
		a.DriverOpts = opts
	}
	return a
}

// fitTogether refuses what no task could live with.
func fitTogether(spec *swarm.ServiceSpec, nets []swarm.NetworkAttachmentConfig, overlays []*model.Network, own model.NetworkID) error {
	name := "host"
	if own == model.NetworkNone {
		name = "none"
	}
	switch {
	case own != 0 && len(nets) > 1:
		return invalid("the %s network cannot be combined with other networks", name)
	case own != 0 && spec.EndpointSpec != nil && len(spec.EndpointSpec.Ports) > 0:
		return invalid("ports cannot be published on the %s network: leave --publish out; programs on the host network listen on the host itself", name)
	}
	for i, a := range overlays {
		for _, b := range overlays[:i] {
			if p, q, over := overlapOf(a, b); over {
				return invalid("networks %s (%s) and %s (%s) overlap: no service can be in both", b.Name, q, a.Name, p)
			}
		}
	}
	return nil
}

func overlapOf(a, b *model.Network) (p, q netip.Prefix, over bool) {
	for _, x := range a.IPAM {
		for _, y := range b.IPAM {
			if x.Subnet.Overlaps(y.Subnet) {
				return x.Subnet, y.Subnet, true
			}
		}
	}
	return p, q, false
}
