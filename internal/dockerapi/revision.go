package dockerapi

import (
	"slices"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/state"
)

// planCreate makes a service with a spec that was admitted.
func planCreate(spec model.ServiceSpec, from imageFrom) plan {
	return func(snap *state.Snapshot) (model.Txn, error) {
		name := spec.Typed.Name
		if snap.ServiceByName(name) != nil {
			return model.Txn{}, rpcErrorf(model.Conflict, "name conflicts with an existing object: service %s already exists", name)
		}
		if err := portsFree(snap, 0, spec.Typed); err != nil {
			return model.Txn{}, err
		}
		spec, guards, err := resolveNetworks(snap, spec)
		if err != nil {
			return model.Txn{}, err
		}
		id := snap.LastService() + 1
		change, err := newRevision(snap, nil, id, spec, from)
		if err != nil {
			return model.Txn{}, err
		}
		return model.Txn{
			Guards:  append(guards, model.Guard{Key: model.ServiceKey(id), Group: model.GroupSpec}),
			Changes: []model.Change{{NewRevision: change}},
		}, nil
	}
}

// planUpdate gives a service the spec, if it is still at the version. rollback says that the
// user asked for the previous spec; now is the clock, from which a rollout's windows count.
func planUpdate(id model.ServiceID, version uint64, spec model.ServiceSpec, from imageFrom, rollback bool, now model.Time) plan {
	return func(snap *state.Snapshot) (model.Txn, error) {
		startedAt := max(now, snap.Time())
		svc := snap.Service(id)
		if svc == nil {
			return model.Txn{}, model.NotFoundf("service %s not found", snap.Cluster().Namer().ServiceID(id))
		}
		if svc.SpecVersion != version {
			return model.Txn{}, errOutOfSequence
		}
		if err := mayChange(svc.Spec(), spec.Typed); err != nil {
			return model.Txn{}, err
		}
		if err := portsFree(snap, id, spec.Typed); err != nil {
			return model.Txn{}, err
		}
		spec, guards, err := resolveNetworks(snap, spec)
		if err != nil {
			return model.Txn{}, err
		}
		change, err := newRevision(snap, svc, id, spec, from)
		if err != nil {
			return model.Txn{}, err
		}
		txn := model.Txn{
			Guards:  append(guards, model.Guard{Key: model.ServiceKey(id), Group: model.GroupSpec, Version: version}),
			Changes: []model.Change{{NewRevision: change}},
		}
		switch {
		case rollback:
			change.Update = orchestrate.Begin(svc, change, swarm.UpdateStateRollbackStarted, orchestrate.ManualRollback, startedAt)
		case needsRollout(snap, svc, change) || orchestrate.GoesOn(svc, change):
			change.Update = orchestrate.Update(svc, change, startedAt)
		case svc.Update != nil:
			// The status is of a rollout before this spec: clients that wait would take it for theirs.
			txn.Changes = append(txn.Changes, model.Change{SetUpdate: &model.UpdateSet{Service: id}})
		}
		return txn, nil
	}
}

// newRevision is the change that gives a service (nil: a new one) the spec.
func newRevision(snap *state.Snapshot, svc *model.Service, id model.ServiceID, spec model.ServiceSpec, from imageFrom) (*model.NewRevision, error) {
	tmpl, err := model.NewTemplate(id, spec, imageDigest(snap, svc, spec.Typed, from.digest))
	if err != nil {
		return nil, err
	}
	if err := tmpl.SetNetworks(snap.Cluster().Namer()); err != nil {
		return nil, err
	}
	change := &model.NewRevision{Service: id, Spec: spec, Ports: keepPorts(svc, spec.Typed), RegistryAuth: from.credentials(svc)}
	if known := snap.TemplateByHash(id, tmpl.Hash); known != nil {
		change.TemplateID = known.ID
	} else {
		tmpl.ID = snap.LastTemplate() + 1
		change.Template = tmpl
	}
	if modeOf(spec.Typed) == modeReplicatedJob || modeOf(spec.Typed) == modeGlobalJob {
		change.JobIteration = 1
		if svc != nil {
			change.JobIteration = svc.JobIteration + 1
		}
	}
	return change, nil
}

// needsRollout reports whether tasks that should run are made from another template than the
// revision's: those of the last spec, or of one before it that is still being replaced.
func needsRollout(snap *state.Snapshot, svc *model.Service, c *model.NewRevision) bool {
	target := c.TemplateID
	if c.Template != nil {
		target = c.Template.ID
	}
	for t := range snap.Tasks(svc.ID) {
		if t.Desired <= model.StateRunning && t.Template != target {
			return true
		}
	}
	return false
}

// imageDigest is what a spec's image name means. An update that keeps the image keeps its
// meaning too, so that scaling never restarts tasks because a tag moved; a forced
// update looks again. found is what someone was asked for just now, or "".
func imageDigest(snap *state.Snapshot, svc *model.Service, spec *swarm.ServiceSpec, found string) string {
	image := containerOf(spec).Image
	if keepsImage(svc, spec) {
		if t := snap.Template(svc.Template); t != nil {
			return t.ImageDigest
		}
	}
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return ""
	}
	if d, ok := named.(reference.Digested); ok {
		return d.Digest().String()
	}
	if found != "" {
		return found
	}
	if known := snap.Image(reference.TagNameOnly(named).String()); known != nil {
		return known.Digest
	}
	return ""
}

// keepsImage reports whether a spec's image name means what it meant to the service (nil: a new one) before.
func keepsImage(svc *model.Service, spec *swarm.ServiceSpec) bool {
	return svc != nil && containerOf(svc.Spec()).Image == containerOf(spec).Image && svc.Spec().TaskTemplate.ForceUpdate == spec.TaskTemplate.ForceUpdate
}

// mayChange checks what an update may not change, and words it as Docker does.
func mayChange(old, spec *swarm.ServiceSpec) error {
	switch {
	case old.Name != spec.Name:
		return rpcErrorf(unimplemented, "renaming services is not supported")
	case modeOf(old) != modeOf(spec):
		return rpcErrorf(unimplemented, "service mode change is not allowed")
	case (old.TaskTemplate.Runtime == swarm.RuntimePlugin) != (spec.TaskTemplate.Runtime == swarm.RuntimePlugin):
		return rpcErrorf(unimplemented, "service runtime change is not allowed")
	}
	return nil
}

// keepPorts is a spec's ports, with the numbers that dynamic ones have already.
func keepPorts(svc *model.Service, spec *swarm.ServiceSpec) []swarm.PortConfig {
	if spec.EndpointSpec == nil {
		return nil
	}
	ports := slices.Clone(spec.EndpointSpec.Ports)
	if svc == nil {
		return ports
	}
	given := slices.Clone(svc.Ports)
	for i, p := range ports {
		if p.PublishedPort != 0 {
			continue
		}
		at := slices.IndexFunc(given, func(g swarm.PortConfig) bool {
			return g.Name == p.Name && g.Protocol == p.Protocol && g.TargetPort == p.TargetPort && g.PublishMode == p.PublishMode
		})
		if at >= 0 {
			ports[i].PublishedPort = given[at].PublishedPort
			given = slices.Delete(given, at, at+1)
		}
	}
	return ports
}

// portsFree refuses published ports that another service has.
func portsFree(snap *state.Snapshot, self model.ServiceID, spec *swarm.ServiceSpec) error {
	if spec.EndpointSpec == nil || len(spec.EndpointSpec.Ports) == 0 {
		return nil
	}
	return rpcError(allocate.CheckPorts(snap, self, spec.EndpointSpec.Ports))
}
