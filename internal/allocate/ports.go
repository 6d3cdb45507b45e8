package allocate

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Dynamic ingress ports, as Docker gives them.
const (
	dynamicFirst = 30000
	dynamicLast  = 32767
)

// Ports plans a service's published ports: those of its spec, with a number for every ingress port
// that asked for none. Numbers that the service has already stay. When there are none left
// the service gets the reason instead, and its tasks wait. The transaction has no
// changes when nothing is to do.
func Ports(snap *state.Snapshot, id model.ServiceID) model.Txn {
	svc := snap.Service(id)
	if svc == nil {
		return model.Txn{}
	}
	set := &model.PortsSet{Service: id}
	ports, err := PortsFor(snap, id, svc.Spec().EndpointSpec)
	if set.Ports = ports; err != nil {
		set.Err = err.Error()
	}
	if set.Err == svc.PortError && slices.Equal(set.Ports, svc.Ports) {
		return model.Txn{}
	}
	key := model.ServiceKey(id)
	return model.Txn{
		Guards: []model.Guard{
			{Key: key, Group: model.GroupSpec, Version: svc.SpecVersion},
			{Key: key, Group: model.GroupPorts, Version: svc.PortVersion},
		},
		Changes: []model.Change{{SetPorts: set}},
	}
}

// PortsFor is what a spec's published ports become: every ingress port that asked for no number gets
// one, the service's old one where it has it. A revision that is written with them
// (NewRevision.Ports) keeps its numbers. id is that of a service that may not exist yet. The
// error is Invalid when another service has a fixed port, Exhausted when none is free.
func PortsFor(snap *state.Snapshot, id model.ServiceID, spec *swarm.EndpointSpec) ([]swarm.PortConfig, error) {
	if spec == nil || len(spec.Ports) == 0 {
		return nil, nil
	}
	var old []swarm.PortConfig
	if svc := snap.Service(id); svc != nil {
		old = slices.Clone(svc.Ports)
	}
	want := slices.Clone(spec.Ports)
	if err := assignPorts(snap, id, old, want); err != nil {
		return nil, err
	}
	return want, nil
}

// assignPorts fills in want's dynamic ports, and checks the fixed ones.
func assignPorts(snap *state.Snapshot, id model.ServiceID, old, want []swarm.PortConfig) error {
	type key struct {
		proto string
		port  uint32
	}
	mine := map[key]bool{} // numbers of this service that are spoken for
	for _, p := range want {
		if ingress(p) && p.PublishedPort != 0 {
			if owner, ok := snap.PortOwner(proto(p), p.PublishedPort); ok && owner != id {
				return inUse(snap, p.PublishedPort, owner, "an ingress")
			}
			mine[key{proto(p), p.PublishedPort}] = true
		}
	}
	free := func(k key) bool {
		owner, ok := snap.PortOwner(k.proto, k.port)
		return !mine[k] && (!ok || owner == id)
	}
	keep := func(p *swarm.PortConfig) {
		for _, o := range old {
			same, k := o, key{proto(o), o.PublishedPort}
			same.PublishedPort = 0
			if same == *p && k.port >= dynamicFirst && k.port <= dynamicLast && free(k) {
				mine[k] = true
				p.PublishedPort = k.port
				return
			}
		}
	}
	// Old numbers first, or a new port might take one that a later port has.
	for i := range want {
		if ingress(want[i]) && want[i].PublishedPort == 0 {
			keep(&want[i])
		}
	}
	for i := range want {
		p := &want[i]
		if !ingress(*p) || p.PublishedPort != 0 {
			continue
		}
		k := key{proto(*p), dynamicFirst}
		for !free(k) {
			if k.port++; k.port > dynamicLast {
				return model.Errorf(model.Exhausted, "no free %s port between %d and %d for target port %d", k.proto, dynamicFirst, dynamicLast, p.TargetPort)
			}
		}
		mine[k] = true
		p.PublishedPort = k.port
	}
	return nil
}

// CheckPorts refuses fixed ports that another service publishes: an ingress port belongs to one
// service, and no service may have it in host mode either. service is 0 for one that is
// about to be created. The error is Invalid, with Docker's text.
func CheckPorts(snap *state.Snapshot, service model.ServiceID, ports []swarm.PortConfig) error {
	for svc := range snap.Services() {
		if svc.ID == service {
			continue
		}
		have := svc.Ports
		if ep := svc.Spec().EndpointSpec; ep != nil {
			have = slices.Concat(ep.Ports, have)
		}
		for _, p := range ports {
			if err := clash(snap, p, svc.ID, have); err != nil {
				return err
			}
		}
	}
	return nil
}

func clash(snap *state.Snapshot, p swarm.PortConfig, other model.ServiceID, have []swarm.PortConfig) error {
	for _, h := range have {
		if p.PublishedPort == 0 || h.PublishedPort != p.PublishedPort || proto(h) != proto(p) {
			continue
		}
		switch {
		case ingress(h):
			return inUse(snap, p.PublishedPort, other, "an ingress")
		case ingress(p):
			return inUse(snap, p.PublishedPort, other, "a host-published")
		}
	}
	return nil
}

func inUse(snap *state.Snapshot, port uint32, owner model.ServiceID, how string) error {
	name, id := "", fmt.Sprint(owner)
	if svc := snap.Service(owner); svc != nil {
		name = svc.Name()
	}
	if c := snap.Cluster(); c != nil {
		id = c.Namer().ServiceID(owner)
	}
	return model.Invalidf("port '%d' is already in use by service '%s' (%s) as %s port", port, name, id, how)
}

func proto(p swarm.PortConfig) string { return cmp.Or(string(p.Protocol), "tcp") }

// ingress reports whether the whole swarm shares the port; that is the default.
func ingress(p swarm.PortConfig) bool { return p.PublishMode != swarm.PortConfigPublishModeHost }
