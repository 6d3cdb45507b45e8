package skepapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/compose"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// found is a stack as other clients have made it: a revision with what carries its label now, so that its first deploy from here can be
// taken back. It is nil when no service is there, or when it is too large to be kept. It has no files.
func found(snap *state.Snapshot, name string) (*model.StackRevision, error) {
	def := compose.Stack{Name: name}
	var newest *model.Revision
	for svc := range snap.Services() {
		if !labelled(svc.Spec(), name) {
			continue
		}
		if rev := svc.Current(); newest == nil || newest.At < rev.At {
			newest = rev
		}
		spec, err := named(snap, svc.Spec())
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", svc.Name(), err)
		}
		def.Services = append(def.Services, *spec)
	}
	if newest == nil {
		return nil, nil
	}
	slices.SortFunc(def.Services, func(a, b swarm.ServiceSpec) int { return strings.Compare(a.Name, b.Name) })
	for n := range snap.Networks() {
		if n.Labels[stackLabel] == name && !n.Deleted {
			def.Networks = append(def.Networks, compose.Network{Name: n.Name, Create: networkRequest(n)})
		}
	}
	for x := range snap.Payloads(model.KindSecret) {
		if spec := x.Spec.Typed; spec.Labels[stackLabel] == name {
			def.Secrets = append(def.Secrets, compose.Secret{Name: spec.Name, Spec: &swarm.SecretSpec{Annotations: spec.Annotations, Driver: spec.Driver, Templating: spec.Templating}})
		}
	}
	for x := range snap.Payloads(model.KindConfig) {
		if spec := x.Spec.Typed; spec.Labels[stackLabel] == name {
			def.Configs = append(def.Configs, compose.Config{Name: spec.Name, Spec: &swarm.ConfigSpec{Annotations: spec.Annotations, Templating: spec.Templating}})
		}
	}
	raw, err := json.Marshal(&def)
	if err != nil {
		return nil, fmt.Errorf("encode stack %s: %w", name, err)
	}
	if len(raw) > model.MaxStackBytes {
		return nil, nil
	}
	return &model.StackRevision{Actor: newest.Actor, Reason: "as another client had deployed it", Definition: raw}, nil
}

// named is a copy of a spec that calls networks by their names: one that is made again has another identifier.
func named(snap *state.Snapshot, spec *swarm.ServiceSpec) (*swarm.ServiceSpec, error) {
	out, err := copySpec(spec)
	if err != nil {
		return nil, err
	}
	for i, n := range out.TaskTemplate.Networks {
		if have, err := snap.FindNetwork(n.Target); err == nil {
			out.TaskTemplate.Networks[i].Target = have.Name
		}
	}
	return out, nil
}

// networkRequest is the request that makes a network as it is.
func networkRequest(n *model.Network) *network.CreateRequest {
	v6 := n.EnableIPv6
	out := &network.CreateRequest{Name: n.Name, Driver: n.Driver, Attachable: n.Attachable, Internal: n.Internal, EnableIPv6: &v6, Options: n.Options, Labels: n.Labels}
	if len(n.IPAM) > 0 {
		out.IPAM = &network.IPAM{Driver: n.IPAMDriver, Options: n.IPAMOptions}
		for _, c := range n.IPAM {
			out.IPAM.Config = append(out.IPAM.Config, network.IPAMConfig{Subnet: c.Subnet, IPRange: c.Range, Gateway: c.Gateway, AuxAddress: c.Aux})
		}
	}
	return out
}
