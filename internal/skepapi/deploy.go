package skepapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// action is one thing that a deploy does.
type action struct {
	verb, kind, name string
	// do does it; nil for what is as it shall be.
	do func(context.Context) ([]string, error)
	// before and after are the specs, for a diff; nil when there is none.
	before, after json.RawMessage
}

// stackPlan is all that a deploy does, in order.
type stackPlan struct {
	definition []byte
	actions    []action
}

// Planned is an action as a client sees it.
type Planned struct {
	Action, Kind, Name string
	Before, After      json.RawMessage `json:",omitempty"`
}

func (p *stackPlan) view() []Planned {
	out := make([]Planned, 0, len(p.actions))
	for _, a := range p.actions {
		out = append(out, Planned{a.verb, a.kind, a.name, a.before, a.after})
	}
	return out
}

// apply plans a deploy, keeps it as a revision, and carries it out. What can be wrong is found before anything is written, but
// for what others change meanwhile; a deploy that stopped half way is completed by deploying again.
func (s *server) apply(ctx context.Context, d *Deploy, say func(Step)) (uint64, error) {
	p, err := s.plan(ctx, d)
	if err != nil {
		return 0, err
	}
	put := &model.StackRevisionPut{Stack: d.Stack.Name, Revision: model.StackRevision{Actor: actor, Reason: d.Reason, Definition: p.definition}}
	snap, err := s.b.State(ctx)
	if err != nil {
		return 0, err
	}
	if old := snap.Stack(d.Stack.Name); old == nil || !bytes.Equal(old.Current().Definition, p.definition) {
		if err := s.propose(ctx, d.Reason+" of stack "+d.Stack.Name, model.Time(time.Now().UnixNano()), model.Txn{Changes: []model.Change{{PutStack: put}}}); err != nil {
			return 0, err
		}
	}
	for _, a := range p.actions {
		st := Step{Action: a.verb, Kind: a.kind, Name: a.name}
		if a.do != nil {
			if st.Warnings, err = a.do(ctx); err != nil {
				return 0, fmt.Errorf("%s %s: %w", a.kind, a.name, err)
			}
		}
		say(st)
	}
	if snap, err = s.b.State(ctx); err != nil {
		return 0, err
	}
	if st := snap.Stack(d.Stack.Name); st != nil {
		return st.Current().Num, nil
	}
	return 0, model.Errorf(model.Stale, "stack %s was removed while it was deployed", d.Stack.Name)
}

// planner makes a plan from one snapshot.
type planner struct {
	*server
	ctx  context.Context
	snap *state.Snapshot
	d    *Deploy
	stackPlan
}

func (s *server) plan(ctx context.Context, d *Deploy) (*stackPlan, error) {
	snap, err := s.b.State(ctx)
	if err != nil {
		return nil, err
	}
	if snap.Cluster() == nil {
		return nil, model.Errorf(model.Unavailable, `This node is not a swarm manager. Use "docker swarm init" or "skep up" to make it one and try again.`)
	}
	p := &planner{server: s, ctx: ctx, snap: snap, d: d}
	keep := *d.Stack.WithoutData()
	keep.Warnings = nil
	keep.Services = slices.Clone(keep.Services)
	keep.Configs = slices.Clone(keep.Configs)
	for i, c := range keep.Configs {
		if c.Spec != nil {
			spec := *c.Spec
			spec.Data = nil
			keep.Configs[i].Spec = &spec
		}
	}
	for _, step := range []func() error{p.networks, p.payloads, func() error { return p.services(keep.Services) }} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if d.Prune {
		p.prune()
	}
	if p.definition, err = json.Marshal(&keep); err != nil {
		return nil, fmt.Errorf("encode the stack: %w", err)
	}
	if len(p.definition) > model.MaxStackBytes {
		return nil, model.Invalidf("the stack's definition has %d bytes, more than %d: split it into several stacks", len(p.definition), model.MaxStackBytes)
	}
	return &p.stackPlan, nil
}

func (p *planner) networks() error {
	for _, n := range p.d.Stack.Networks {
		have := p.snap.NetworkByName(n.Name)
		switch {
		case n.External && have == nil && !nodeNetwork(n.Name):
			return model.Invalidf("network %q is declared as external, but could not be found. You need to create a swarm-scoped network before the stack is deployed", n.Name)
		case n.External:
		case have != nil:
			p.actions = append(p.actions, action{verb: "unchanged", kind: "network", name: n.Name})
		case n.Create == nil:
			return model.Invalidf("network %s is neither external nor described", n.Name)
		default:
			create := *n.Create
			create.Name = n.Name
			p.actions = append(p.actions, action{verb: "created", kind: "network", name: n.Name, do: func(ctx context.Context) ([]string, error) {
				return nil, p.docker(ctx, http.MethodPost, "/networks/create", nil, create, nil)
			}})
		}
	}
	return nil
}

// nodeNetwork reports whether a network is one that every node has.
func nodeNetwork(name string) bool { return name == "host" || name == "none" || name == "bridge" }

// payloads plans secrets and configs.
func (p *planner) payloads() error {
	for _, x := range p.d.Stack.Secrets {
		var labels map[string]string
		var value []byte
		if x.Spec != nil {
			labels, value = x.Spec.Labels, x.Spec.Data
		}
		if err := p.payload(model.KindSecret, x.Name, x.External, x.Spec, labels, value); err != nil {
			return err
		}
	}
	for _, x := range p.d.Stack.Configs {
		var labels map[string]string
		var value []byte
		if x.Spec != nil {
			labels, value = x.Spec.Labels, x.Spec.Data
		}
		if err := p.payload(model.KindConfig, x.Name, x.External, x.Spec, labels, value); err != nil {
			return err
		}
	}
	return nil
}

func (p *planner) payload(kind model.Kind, name string, external bool, spec any, labels map[string]string, value []byte) error {
	have := p.snap.PayloadByName(kind, name)
	switch {
	case external && have == nil:
		return model.Invalidf("%s not found: %s: it is declared as external, so create it before the stack is deployed", kind, name)
	case external:
		return nil
	case have == nil && len(value) == 0:
		// Of an earlier revision, whose values are not kept.
		return model.Errorf(model.FailedPrecondition, "%s %s is gone, and its value is not kept with the stack: deploy from the files", kind, name)
	case have == nil:
		p.actions = append(p.actions, action{verb: "created", kind: kind.String(), name: name, do: func(ctx context.Context) ([]string, error) {
			return nil, p.docker(ctx, http.MethodPost, "/"+kind.String()+"s/create", nil, spec, nil)
		}})
		return nil
	case value != nil && !bytes.Equal(value, have.Value):
		return model.Invalidf("%s %s exists with another value, and values do not change: give the new one another name, for example by 'name: %s_2' in the file", kind, name, name)
	}
	if sameLabels(labels, have.Spec.Typed.Labels) {
		p.actions = append(p.actions, action{verb: "unchanged", kind: kind.String(), name: name})
		return nil
	}
	path := fmt.Sprintf("/%ss/%s/update?version=%d", kind, p.snap.Cluster().Namer().ID(have.Key()), have.Version)
	next := *have.Spec.Typed
	next.Labels = labels
	p.actions = append(p.actions, action{verb: "updated", kind: kind.String(), name: name, do: func(ctx context.Context) ([]string, error) {
		return nil, p.docker(ctx, http.MethodPost, path, nil, next, nil)
	}})
	return nil
}

func sameLabels(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// services plans each service; the specs in keep get the digests that image names mean.
func (p *planner) services(keep []swarm.ServiceSpec) error {
	for i := range keep {
		have := p.snap.ServiceByName(keep[i].Name)
		if have != nil && !labelled(have.Spec(), p.d.Stack.Name) {
			return model.Conflictf("service %s exists already and is not of stack %s", keep[i].Name, p.d.Stack.Name)
		}
		if err := p.service(&keep[i], have); err != nil {
			return fmt.Errorf("service %s: %w", keep[i].Name, err)
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
	own.Image = p.image(keep, have, auth)
	want, err := p.resolve(keep)
	if err != nil {
		return err
	}
	header := http.Header{}
	if auth != "" {
		header.Set(registry.AuthHeader, auth)
	}
	if have != nil {
		want.TaskTemplate.ForceUpdate = have.Spec().TaskTemplate.ForceUpdate
	}
	spec, err := model.MakeSpec(want)
	if err != nil {
		return err
	}
	if have == nil {
		p.actions = append(p.actions, action{verb: "created", kind: "service", name: keep.Name, after: spec.Raw, do: func(ctx context.Context) ([]string, error) {
			late, err := p.late(ctx, spec.Raw)
			if err != nil {
				return nil, err
			}
			var res swarm.ServiceCreateResponse
			err = p.docker(ctx, http.MethodPost, "/services/create", header, late, &res)
			return res.Warnings, err
		}})
		return nil
	}
	old := have.Current().Spec
	if bytes.Equal(old.Raw, spec.Raw) {
		p.actions = append(p.actions, action{verb: "unchanged", kind: "service", name: keep.Name})
		return nil
	}
	path := fmt.Sprintf("/services/%s/update?version=%d", p.snap.Cluster().Namer().ServiceID(have.ID), have.SpecVersion)
	if auth == "" {
		path += "&registryAuthFrom=spec"
	}
	p.actions = append(p.actions, action{verb: "updated", kind: "service", name: keep.Name, before: old.Raw, after: spec.Raw, do: func(ctx context.Context) ([]string, error) {
		late, err := p.late(ctx, spec.Raw)
		if err != nil {
			return nil, err
		}
		var res swarm.ServiceUpdateResponse
		err = p.docker(ctx, http.MethodPost, path, header, late, &res)
		return res.Warnings, err
	}})
	return nil
}

// late resolves a planned spec again: the networks, secrets and configs that it needs may have been made after the plan.
func (p *planner) late(ctx context.Context, raw json.RawMessage) (*swarm.ServiceSpec, error) {
	var spec swarm.ServiceSpec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, fmt.Errorf("read the planned spec: %w", err)
	}
	snap, err := p.b.State(ctx)
	if err != nil {
		return nil, err
	}
	return (&planner{server: p.server, ctx: ctx, snap: snap, d: p.d}).resolve(&spec)
}

// resolve fills in the identifiers of what a spec names. What the plan will make first has none yet.
func (p *planner) resolve(spec *swarm.ServiceSpec) (*swarm.ServiceSpec, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("copy the spec: %w", err)
	}
	out := new(swarm.ServiceSpec)
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("copy the spec: %w", err)
	}
	fillIn(out)
	namer := p.snap.Cluster().Namer()
	for i, n := range out.TaskTemplate.Networks {
		if have := p.snap.NetworkByName(n.Target); have != nil {
			out.TaskTemplate.Networks[i].Target = namer.ID(model.NetworkKey(have.ID))
		}
	}
	for _, ref := range out.TaskTemplate.ContainerSpec.Secrets {
		if have := p.snap.PayloadByName(model.KindSecret, ref.SecretName); have != nil {
			ref.SecretID = namer.ID(have.Key())
		}
	}
	for _, ref := range out.TaskTemplate.ContainerSpec.Configs {
		if have := p.snap.PayloadByName(model.KindConfig, ref.ConfigName); have != nil {
			ref.ConfigID = namer.ID(have.Key())
		}
	}
	return out, nil
}

// fillIn writes down what Docker's API would: a spec that says the same must look the same, or a deploy that changes nothing would
// be an update.
func fillIn(spec *swarm.ServiceSpec) {
	m := &spec.Mode
	if m.Replicated == nil && m.Global == nil && m.ReplicatedJob == nil && m.GlobalJob == nil {
		m.Replicated = &swarm.ReplicatedService{}
	}
	if m.Replicated != nil && m.Replicated.Replicas == nil {
		one := uint64(1)
		m.Replicated.Replicas = &one
	}
	if spec.TaskTemplate.Runtime == "" {
		spec.TaskTemplate.Runtime = swarm.RuntimeContainer
	}
}

// auth is the value of X-Registry-Auth for an image's registry, "" for none.
func (p *planner) auth(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return ""
	}
	return p.d.Auth[reference.Domain(named)]
}

// image is a service's image with the digest that its name means, as far as someone knows it. An image that the file has not changed
// stays what it was unless registries are always to be asked.
func (p *planner) image(spec *swarm.ServiceSpec, have *model.Service, auth string) string {
	image := spec.TaskTemplate.ContainerSpec.Image
	var now string
	if have != nil && have.Spec().Labels[imageLabel] == spec.Labels[imageLabel] && have.Spec().TaskTemplate.ContainerSpec != nil {
		now = have.Spec().TaskTemplate.ContainerSpec.Image
	}
	if strings.Contains(image, "@") || p.d.Resolve == "never" {
		return image
	}
	if now != "" && p.d.Resolve == "changed" {
		return now
	}
	header := http.Header{}
	if auth != "" {
		header.Set(registry.AuthHeader, auth)
	}
	var res registry.DistributionInspect
	if err := p.docker(p.ctx, http.MethodGet, "/distribution/"+escapePath(image)+"/json", header, nil, &res); err != nil || res.Descriptor.Digest == "" {
		if now != "" {
			return now // nobody can say otherwise
		}
		return image
	}
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	pinned, err := reference.WithDigest(reference.TagNameOnly(named), res.Descriptor.Digest)
	if err != nil {
		return image
	}
	spec.TaskTemplate.Placement = withPlatforms(spec.TaskTemplate.Placement, &res)
	return reference.FamiliarString(pinned)
}

// withPlatforms tells the scheduler what an image can run on, as Docker's client does.
func withPlatforms(p *swarm.Placement, res *registry.DistributionInspect) *swarm.Placement {
	if len(res.Platforms) == 0 {
		return p
	}
	var out swarm.Placement
	if p != nil {
		out = *p
	}
	out.Platforms = nil
	for _, pl := range res.Platforms {
		// Docker's clients leave the variants of arm to the node.
		arch := pl.Architecture
		if strings.ToLower(arch) == "arm" {
			arch = ""
		}
		out.Platforms = append(out.Platforms, swarm.Platform{Architecture: arch, OS: pl.OS})
	}
	return &out
}

func escapePath(image string) string {
	parts := strings.Split(image, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// prune plans the end of services that the definition does not have any more.
func (p *planner) prune() {
	for svc := range p.snap.Services() {
		spec := svc.Spec()
		if !labelled(spec, p.d.Stack.Name) || slices.ContainsFunc(p.d.Stack.Services, func(s swarm.ServiceSpec) bool { return s.Name == spec.Name }) {
			continue
		}
		id := p.snap.Cluster().Namer().ServiceID(svc.ID)
		p.actions = append(p.actions, action{verb: "removed", kind: "service", name: spec.Name, before: svc.Current().Spec.Raw, do: func(ctx context.Context) ([]string, error) {
			return nil, p.docker(ctx, http.MethodDelete, "/services/"+id, nil, nil, nil)
		}})
	}
}

func revisionNumber(text string) (uint64, error) {
	num, err := strconv.ParseUint(text, 10, 64)
	if err != nil || num == 0 {
		return 0, model.Invalidf("%q is not the number of a revision", text)
	}
	return num, nil
}
