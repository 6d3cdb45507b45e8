package dockerapi

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// observer turns one applied batch into events.
type observer struct {
	Applied
	namer model.Namer
	at    time.Time
	emit  func(typ events.Type, action events.Action, scope, id string, attrs map[string]string, at time.Time)
}

// observe emits the events of an applied batch, once per object that it touched.
func (s *Server) observe(a Applied) {
	if a.Outcome == nil || a.Outcome.Repeated || a.After.Cluster() == nil {
		return
	}
	o := &observer{Applied: a, namer: a.After.Cluster().Namer(), at: wallTime(a.Outcome.Time), emit: s.emit}
	seen := map[model.Key]bool{}
	for _, k := range a.Outcome.Touched {
		if seen[k] {
			continue
		}
		seen[k] = true
		switch k.Kind {
		case model.KindService:
			o.service(k)
		case model.KindNode:
			o.node(k)
		case model.KindNetwork:
			o.network(k)
		case model.KindSecret, model.KindConfig:
			o.payload(k)
		}
	}
}

// lifecycle is the action that follows from an object's being there before and after.
func lifecycle(before, after bool) events.Action {
	switch {
	case !before && after:
		return events.ActionCreate
	case before && !after:
		return events.ActionRemove
	}
	return events.ActionUpdate
}

// changed notes a field in Docker's form, if it changed.
func changed(attrs map[string]string, name, old, now string) bool {
	if old == now {
		return false
	}
	attrs[name+".old"], attrs[name+".new"] = old, now
	if old == "" {
		delete(attrs, name+".old")
	}
	if now == "" {
		delete(attrs, name+".new")
	}
	return true
}

func (o *observer) service(k model.Key) {
	old, now := o.Before.Service(k.Service()), o.After.Service(k.Service())
	if old == nil && now == nil {
		return
	}
	attrs := map[string]string{}
	action := lifecycle(old != nil, now != nil)
	if now != nil {
		attrs["name"] = now.Name()
	} else {
		attrs["name"] = old.Name()
	}
	if action == events.ActionUpdate {
		news := old.SpecVersion != now.SpecVersion
		news = changed(attrs, "image", containerOf(old.Spec()).Image, containerOf(now.Spec()).Image) || news
		news = changed(attrs, "replicas", replicas(old), replicas(now)) || news
		news = changed(attrs, "updatestate", updateState(old), updateState(now)) || news
		if !news {
			return // ports and the like are no news to clients
		}
	}
	o.emit(events.ServiceEventType, action, scopeSwarm, o.namer.ID(k), attrs, o.at)
}

func replicas(s *model.Service) string {
	if r := s.Spec().Mode.Replicated; r != nil && r.Replicas != nil {
		return strconv.FormatUint(*r.Replicas, 10)
	}
	return ""
}

func updateState(s *model.Service) string {
	if s.Update == nil {
		return ""
	}
	return string(s.Update.State)
}

func (o *observer) node(k model.Key) {
	old, now := o.Before.Node(k.Node()), o.After.Node(k.Node())
	if old == nil && now == nil {
		return
	}
	attrs := map[string]string{}
	action := lifecycle(old != nil, now != nil)
	if now != nil {
		attrs["name"] = now.Hostname()
	} else {
		attrs["name"] = old.Hostname()
	}
	if action == events.ActionUpdate {
		news := old.SpecVersion != now.SpecVersion
		news = changed(attrs, "state", string(old.State), string(now.State)) || news
		news = changed(attrs, "role", string(old.Spec.Role), string(now.Spec.Role)) || news
		news = changed(attrs, "availability", string(old.Spec.Availability), string(now.Spec.Availability)) || news
		news = changed(attrs, "reachability", reachability(old), reachability(now)) || news
		if !news {
			return
		}
	}
	o.emit(events.NodeEventType, action, scopeSwarm, o.namer.ID(k), attrs, o.at)
}

func reachability(n *model.Node) string {
	switch {
	case n.Spec.Role != swarm.NodeRoleManager:
		return ""
	case n.State == swarm.NodeStateDown:
		return string(swarm.ReachabilityUnreachable)
	}
	return string(swarm.ReachabilityReachable)
}

func (o *observer) network(k model.Key) {
	id := model.NetworkID(k.A)
	old, now := o.Before.Network(id), o.After.Network(id)
	// What users deleted is gone for them, though its last tasks may still have addresses in it.
	if old != nil && old.Deleted {
		old = nil
	}
	if now != nil && now.Deleted {
		now = nil
	}
	if old == nil && now == nil {
		return
	}
	shown := now
	if shown == nil {
		shown = old
	}
	o.emit(events.NetworkEventType, lifecycle(old != nil, now != nil), scopeSwarm, o.namer.ID(k), map[string]string{"name": shown.Name, "type": shown.Driver}, o.at)
}

func (o *observer) payload(k model.Key) {
	old, now := o.Before.Payload(k), o.After.Payload(k)
	if old == nil && now == nil {
		return
	}
	shown, typ := now, events.SecretEventType
	if shown == nil {
		shown = old
	}
	if k.Kind == model.KindConfig {
		typ = events.ConfigEventType
	}
	o.emit(typ, lifecycle(old != nil, now != nil), scopeSwarm, o.namer.ID(k), map[string]string{"name": shown.Name()}, o.at)
}

// observeContainer emits what happened to a container, and what it did to its networks and volumes.
func (s *Server) observeContainer(e ContainerEvent) {
	c := &e.Container
	emit := func(typ events.Type, action events.Action, id string, attrs map[string]string) {
		s.emit(typ, action, scopeLocal, id, attrs, e.At)
	}
	around := func(network, volume events.Action) {
		for _, n := range slices.Sorted(maps.Keys(endpoints(c))) {
			ep := endpoints(c)[n]
			emit(events.NetworkEventType, network, cmp.Or(ep.NetworkID, n), map[string]string{"container": c.ID, "name": n, "type": networkType(n)})
		}
		for _, m := range c.Mounts {
			if m.Name == "" {
				continue
			}
			attrs := map[string]string{"container": c.ID, "driver": m.Driver}
			if volume == events.ActionMount {
				attrs["destination"], attrs["read/write"], attrs["propagation"] = m.Destination, strconv.FormatBool(m.RW), string(m.Propagation)
			}
			emit(events.VolumeEventType, volume, m.Name, attrs)
		}
	}
	if e.Action == events.ActionStart {
		around(events.ActionConnect, events.ActionMount)
	}
	emit(events.ContainerEventType, e.Action, c.ID, mergedLabels(containerEventAttrs(c), e.Attrs))
	if e.Action == events.ActionDie {
		around(events.ActionDisconnect, events.ActionUnmount)
	}
}

// networkType is the driver of a network that a task can be in.
func networkType(name string) string {
	switch name {
	case "none":
		return "null"
	case "host", "bridge":
		return name
	}
	return model.DriverOverlay
}
