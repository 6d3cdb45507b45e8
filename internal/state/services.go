package state

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// maxRevisions bounds a service's history.
const maxRevisions = 16

func (w *writer) newRevision(c *model.NewRevision) error {
	if c.Spec.Typed == nil || c.Spec.Typed.Name == "" || c.Service == 0 {
		return model.Invalidf("a service needs a spec with a name")
	}
	old := w.s.Service(c.Service)
	if old != nil && old.Name() != c.Spec.Typed.Name {
		return model.Errorf(model.Unimplemented, "renaming services is not supported")
	}
	if old == nil {
		if err := w.mayCreate(c); err != nil {
			return err
		}
	}
	if err := w.checkPorts(c.Service, c.Ports); err != nil {
		return err
	}
	if err := w.s.checkRefs(c.Spec.Typed); err != nil {
		return err
	}
	tid, err := w.takeTemplate(c)
	if err != nil {
		return err
	}
	n := &model.Service{ID: c.Service, CreatedAt: w.now}
	num := uint64(1)
	if old != nil {
		*n = *old
		num = old.Current().Num + 1
		w.releasePorts(old)
	}
	rev := &model.Revision{Num: num, Spec: c.Spec, Template: tid, At: w.now, Actor: w.batch.Actor, Reason: cmp.Or(c.Reason, w.batch.Reason), RegistryAuth: c.RegistryAuth}
	if old == nil || rev.Template != old.Template || !bytes.Equal(rev.Spec.Raw, old.Current().Spec.Raw) {
		// A spec that changes nothing must not push others out of the history.
		n.Revisions = append(slices.Clone(n.Revisions), rev)
	} else if !bytes.Equal(rev.RegistryAuth, old.Current().RegistryAuth) {
		// New credentials are no new spec: the revision in force gets them.
		renewed := *old.Current()
		renewed.RegistryAuth = rev.RegistryAuth
		n.Revisions = slices.Clone(n.Revisions)
		n.Revisions[len(n.Revisions)-1] = &renewed
	}
	if over := len(n.Revisions) - maxRevisions; over > 0 {
		n.Revisions = slices.Clone(n.Revisions[over:])
	}
	n.UpdatedAt = w.now
	n.SpecVersion, n.PortVersion = w.stamp(max(n.SpecVersion, 1)), w.stamp(max(n.PortVersion, 1))
	if old == nil || tid != old.Template {
		n.InForceAt = w.now
	}
	n.Template, n.Ports, n.PortError, n.NetError = tid, c.Ports, "", ""
	w.attachService(old, n)
	vips := w.keptVIPs(n)
	w.replaceVIPs(n.VIPs, vips)
	n.VIPs = vips
	if c.Update != nil {
		n.Update = c.Update
		n.UpdateVersion = w.stamp(n.UpdateVersion)
	}
	if c.JobIteration != 0 {
		n.JobIteration = c.JobIteration
		n.JobVersion = n.SpecVersion
	}
	w.s.services.Set(n.ID, n)
	w.s.names.Set(n.Name(), n.ID)
	w.s.lastService = max(w.s.lastService, n.ID)
	w.claimPorts(n)
	w.pruneTemplates(n.ID)
	w.touch(model.ServiceKey(n.ID))
	return nil
}

func (w *writer) mayCreate(c *model.NewRevision) error {
	if c.Service <= w.s.lastService {
		return model.Conflictf("service number %d was given before", c.Service)
	}
	if name := c.Spec.Typed.Name; w.s.ServiceByName(name) != nil {
		return model.Conflictf("name conflicts with an existing object: service %s already exists", name)
	}
	return nil
}

func (w *writer) takeTemplate(c *model.NewRevision) (model.TemplateID, error) {
	if c.Template == nil {
		if t := w.s.Template(c.TemplateID); t == nil || t.Service != c.Service {
			return 0, model.Stalef("template %d is gone", c.TemplateID)
		}
		return c.TemplateID, nil
	}
	t := c.Template
	if t.ID <= w.s.lastTemplate {
		return 0, model.Conflictf("template number %d was given before", t.ID)
	}
	if t.Service != c.Service {
		return 0, model.Invalidf("template %d is of another service", t.ID)
	}
	w.s.setTemplate(t)
	w.s.lastTemplate = t.ID
	return t.ID, nil
}

// pruneTemplates forgets templates that no revision and no task of the service refers to.
func (w *writer) pruneTemplates(svc model.ServiceID) {
	used := map[model.TemplateID]bool{}
	if v := w.s.Service(svc); v != nil {
		for _, r := range v.Revisions {
			used[r.Template] = true
		}
	}
	for t := range w.s.Tasks(svc) {
		used[t.Template] = true
	}
	for _, t := range slices.Collect(w.s.TemplatesOf(svc)) {
		if !used[t.ID] {
			w.s.dropTemplate(t)
		}
	}
}

func (w *writer) deleteService(id model.ServiceID) error {
	v := w.s.Service(id)
	if v == nil {
		return model.NotFoundf("service %s not found", w.s.name(model.ServiceKey(id)))
	}
	w.releasePorts(v)
	w.attachService(v, nil)
	w.replaceVIPs(v.VIPs, nil)
	w.s.services.Delete(id)
	w.s.names.Delete(v.Name())
	w.pruneTemplates(id)
	w.touch(model.ServiceKey(id))
	w.leaveStack(v.Spec().Labels)
	return nil
}

func (w *writer) editService(id model.ServiceID, f func(*model.Service)) error {
	old := w.s.Service(id)
	if old == nil {
		return model.NotFoundf("service %s not found", w.s.name(model.ServiceKey(id)))
	}
	n := *old
	f(&n)
	w.s.services.Set(id, &n)
	w.touch(model.ServiceKey(id))
	return nil
}

func (w *writer) setUpdate(c *model.UpdateSet) error {
	return w.editService(c.Service, func(v *model.Service) {
		v.Update = c.Update
		v.UpdateVersion = w.stamp(v.UpdateVersion)
	})
}

func (w *writer) setPorts(c *model.PortsSet) error {
	if err := w.checkPorts(c.Service, c.Ports); err != nil {
		return err
	}
	if v := w.s.Service(c.Service); v != nil {
		w.releasePorts(v)
	}
	err := w.editService(c.Service, func(v *model.Service) {
		v.Ports, v.PortError = c.Ports, c.Err
		v.PortVersion = w.stamp(v.PortVersion)
	})
	if err == nil {
		w.claimPorts(w.s.Service(c.Service))
	}
	return err
}

// checkPorts refuses ingress ports that another service has, in Docker's words.
func (w *writer) checkPorts(id model.ServiceID, ports []swarm.PortConfig) error {
	for k := range ingressPorts(ports) {
		owner, ok := w.s.PortOwner(k.proto, k.port)
		if !ok || owner == id {
			continue
		}
		name := ""
		if v := w.s.Service(owner); v != nil {
			name = v.Name()
		}
		return model.Invalidf("port '%d' is already in use by service '%s' (%s) as an ingress port", k.port, name, w.s.name(model.ServiceKey(owner)))
	}
	return nil
}

func (w *writer) claimPorts(v *model.Service) {
	for k := range ingressPorts(v.Ports) {
		w.s.ports.Set(portOwner{k, v.ID})
	}
}

func (w *writer) releasePorts(v *model.Service) {
	for k := range ingressPorts(v.Ports) {
		w.s.ports.Delete(portOwner{portKey: k})
	}
}

// ingressPorts goes over the published ports that the whole swarm shares.
func ingressPorts(ports []swarm.PortConfig) func(func(portKey) bool) {
	return func(yield func(portKey) bool) {
		for _, p := range ports {
			if p.PublishMode == swarm.PortConfigPublishModeHost || p.PublishedPort == 0 {
				continue
			}
			proto := string(p.Protocol)
			if proto == "" {
				proto = "tcp"
			}
			if !yield(portKey{proto, p.PublishedPort}) {
				return
			}
		}
	}
}
