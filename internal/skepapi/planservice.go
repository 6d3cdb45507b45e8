package skepapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// services plans each service; the specs in keep get the digests that image names mean.
func (p *planner) services(keep []swarm.ServiceSpec) error {
	for i := range keep {
		name := keep[i].Name
		have := p.snap.ServiceByName(name)
		if have != nil && !labelled(have.Spec(), p.d.Stack.Name) {
			return &actionError{"service", name, model.Conflictf("it exists already and is not of stack %s: remove it, or give this one another name", p.d.Stack.Name)}
		}
		if err := p.service(&keep[i], have); err != nil {
			return &actionError{"service", name, err}
		}
	}
	return nil
}

func (p *planner) service(keep *swarm.ServiceSpec, have *model.Service) error {
	container := keep.TaskTemplate.ContainerSpec
	if container == nil {
		return model.Invalidf("it has no container")
	}
	own := *container
	keep.TaskTemplate.ContainerSpec = &own
	auth := p.auth(own.Image)
	var warnings []string
	own.Image, warnings = p.image(keep, have, auth)
	want, err := resolve(p.snap, keep)
	if err != nil {
		return err
	}
	if have != nil {
		want.TaskTemplate.ForceUpdate = have.Spec().TaskTemplate.ForceUpdate
	}
	spec, err := model.MakeSpec(want)
	if err != nil {
		return err
	}
	a := &action{kind: "service", name: keep.Name, spec: spec.Raw, warnings: warnings}
	p.actions = append(p.actions, a)
	if have == nil {
		a.verb, a.do = "created", a.write("/services/create", auth)
		return nil
	}
	old := have.Current()
	a.before, a.credentials = old.Spec.Raw, !sameCredentials(auth, old.RegistryAuth)
	path := fmt.Sprintf("/services/%s/update?version=%d", p.snap.Cluster().Namer().ServiceID(have.ID), have.SpecVersion)
	if auth == "" {
		path += "&registryAuthFrom=spec"
	}
	a.verb, a.do = "updated", a.write(path, auth)
	return nil
}

// write makes the request that gives a service its planned spec. What the nodes warn of is kept with the action.
func (a *action) write(path, auth string) func(context.Context, *server) error {
	planned := len(a.warnings)
	header := http.Header{}
	if auth != "" {
		header.Set(registry.AuthHeader, auth)
	}
	return func(ctx context.Context, s *server) error {
		// The networks, secrets and configs that it needs may have been made after the plan.
		var spec swarm.ServiceSpec
		if err := json.Unmarshal(a.spec, &spec); err != nil {
			return fmt.Errorf("read the planned spec: %w", err)
		}
		snap, err := s.b.State(ctx)
		if err != nil {
			return err
		}
		late, err := resolve(snap, &spec)
		if err != nil {
			return err
		}
		var res struct{ Warnings []string }
		if err := s.docker(ctx, http.MethodPost, path, header, late, &res); err != nil {
			return err
		}
		a.warnings = append(a.warnings[:planned:planned], res.Warnings...)
		return nil
	}
}

// sameCredentials reports whether a service has the credentials that X-Registry-Auth holds, or none are given.
func sameCredentials(header string, have model.Credentials) bool {
	if header == "" {
		return true
	}
	given, err := authconfig.Decode(header)
	if err != nil {
		return false // the API has its say
	}
	var old registry.AuthConfig
	return json.Unmarshal(have, &old) == nil && old == *given
}

// copySpec is a spec that may be changed: nothing in it is shared.
func copySpec(spec *swarm.ServiceSpec) (*swarm.ServiceSpec, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("copy the spec: %w", err)
	}
	out := new(swarm.ServiceSpec)
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("copy the spec: %w", err)
	}
	return out, nil
}

// resolve fills in the identifiers of what a spec names. What the plan will make first has none yet.
func resolve(snap *state.Snapshot, spec *swarm.ServiceSpec) (*swarm.ServiceSpec, error) {
	out, err := copySpec(spec)
	if err != nil {
		return nil, err
	}
	namer := snap.Cluster().Namer()
	for i, n := range out.TaskTemplate.Networks {
		if have := snap.NetworkByName(n.Target); have != nil {
			out.TaskTemplate.Networks[i].Target = namer.ID(model.NetworkKey(have.ID))
		}
	}
	for _, ref := range out.TaskTemplate.ContainerSpec.Secrets {
		if have := snap.PayloadByName(model.KindSecret, ref.SecretName); have != nil {
			ref.SecretID = namer.ID(have.Key())
		}
	}
	for _, ref := range out.TaskTemplate.ContainerSpec.Configs {
		if have := snap.PayloadByName(model.KindConfig, ref.ConfigName); have != nil {
			ref.ConfigID = namer.ID(have.Key())
		}
	}
	return out, nil
}
