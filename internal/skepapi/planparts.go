package skepapi

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/skep-swarm/skep/internal/model"
)

// networks plans the networks that services are in.
func (p *planner) networks() error {
	for _, n := range p.d.Stack.Networks {
		have := p.snap.NetworkByName(n.Name)
		switch {
		case n.External && have == nil && !nodeNetwork(n.Name):
			return &actionError{"network", n.Name, model.Invalidf("network %q is declared as external, but could not be found. You need to create a swarm-scoped network before the stack is deployed", n.Name)}
		case n.External:
		case n.Create == nil:
			return model.Invalidf("network %s is neither external nor described", n.Name)
		case have != nil:
			if err := p.partOf(have.Labels); err != nil {
				return &actionError{"network", n.Name, err}
			}
			a := &action{verb: "unchanged", kind: "network", name: n.Name}
			if what := networkDiffers(have, n.Create); what != "" {
				a.warnings = []string{fmt.Sprintf("the network exists with another %s, and networks do not change: give it another name, or remove it first", what)}
			}
			p.actions = append(p.actions, a)
		default:
			create := *n.Create
			create.Name = n.Name
			p.actions = append(p.actions, &action{verb: "created", kind: "network", name: n.Name, do: func(ctx context.Context, s *server) error {
				return s.docker(ctx, http.MethodPost, "/networks/create", nil, create, nil)
			}})
		}
	}
	return nil
}

// networkDiffers names the settings that a network should have and has not. What is not asked for may be anything.
func networkDiffers(have *model.Network, want *network.CreateRequest) string {
	var what []string
	differs := func(name string, is bool) {
		if is {
			what = append(what, name)
		}
	}
	differs("driver", want.Driver != "" && want.Driver != have.Driver)
	differs("attachable", want.Attachable != have.Attachable)
	differs("internal", want.Internal != have.Internal)
	differs("enable_ipv6", want.EnableIPv6 != nil && *want.EnableIPv6 != have.EnableIPv6)
	for k, v := range want.Options {
		if have.Options[k] != v {
			differs("driver_opts", true)
			break
		}
	}
	if want.IPAM != nil {
		for _, c := range want.IPAM.Config {
			if c.Subnet.IsValid() && !slices.ContainsFunc(have.IPAM, func(h model.IPAMConfig) bool { return h.Subnet.Masked() == c.Subnet.Masked() }) {
				differs("subnet", true)
				break
			}
		}
	}
	return strings.Join(what, ", ")
}

// nodeNetwork reports whether a network is one that every node has.
func nodeNetwork(name string) bool { return name == "host" || name == "none" || name == "bridge" }

// part is a secret or a config of a stack.
type part struct {
	kind     model.Kind
	name     string
	external bool
	spec     any // what makes it, as Docker's API has it
	labels   map[string]string
	value    []byte
}

func (p *planner) parts() []part {
	var out []part
	for _, x := range p.d.Stack.Secrets {
		v := part{kind: model.KindSecret, name: x.Name, external: x.External, spec: x.Spec}
		if x.Spec != nil {
			v.labels, v.value = x.Spec.Labels, x.Spec.Data
		}
		out = append(out, v)
	}
	for _, x := range p.d.Stack.Configs {
		v := part{kind: model.KindConfig, name: x.Name, external: x.External, spec: x.Spec}
		if x.Spec != nil {
			v.labels, v.value = x.Spec.Labels, x.Spec.Data
		}
		out = append(out, v)
	}
	return out
}

// payloads plans secrets and configs.
func (p *planner) payloads() error {
	for _, x := range p.parts() {
		if err := p.payload(x); err != nil {
			return &actionError{x.kind.String(), x.name, err}
		}
	}
	return nil
}

func (p *planner) payload(x part) error {
	have := p.snap.PayloadByName(x.kind, x.name)
	switch {
	case x.external && have == nil:
		return model.Invalidf("%s not found: %s: it is declared as external, so create it before the stack is deployed", x.kind, x.name)
	case x.external:
		return nil
	case have == nil && len(x.value) == 0 && p.d.earlier:
		return model.Errorf(model.FailedPrecondition, "it is gone, and its value is not kept with the stack: deploy from the files")
	case have == nil:
		p.actions = append(p.actions, &action{verb: "created", kind: x.kind.String(), name: x.name, do: func(ctx context.Context, s *server) error {
			return s.docker(ctx, http.MethodPost, "/"+x.kind.String()+"s/create", nil, x.spec, nil)
		}})
		return nil
	}
	if err := p.partOf(have.Spec.Typed.Labels); err != nil {
		return err
	}
	if x.value != nil && !bytes.Equal(x.value, have.Value) {
		return model.Invalidf("it exists with another value, and values do not change: give the new one another name, for example by 'name: %s_2' in the file", x.name)
	}
	if maps.Equal(x.labels, have.Spec.Typed.Labels) {
		p.actions = append(p.actions, &action{verb: "unchanged", kind: x.kind.String(), name: x.name})
		return nil
	}
	path := fmt.Sprintf("/%ss/%s/update?version=%d", x.kind, p.snap.Cluster().Namer().ID(have.Key()), have.Version)
	next := *have.Spec.Typed
	next.Labels = x.labels
	p.actions = append(p.actions, &action{verb: "updated", kind: x.kind.String(), name: x.name, do: func(ctx context.Context, s *server) error {
		return s.docker(ctx, http.MethodPost, path, nil, next, nil)
	}})
	return nil
}
