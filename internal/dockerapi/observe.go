package dockerapi

import (
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// observer turns one applied batch into events.
type observer struct {
	Applied
	namer model.Namer
	at    time.Time
	local model.NodeID
	emit  func(typ events.Type, action events.Action, scope, id string, attrs map[string]string, at time.Time)
}

// observe emits the events of an applied batch, once per object that it touched.
func (s *Server) observe(a Applied) {
	if a.Outcome == nil || a.Outcome.Repeated || a.After.Cluster() == nil {
		return
	}
	o := &observer{Applied: a, namer: a.After.Cluster().Namer(), at: wallTime(a.Outcome.Time), local: s.backend.Local().Node, emit: s.emit}
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
		case model.KindTask:
			o.task(k)
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

// task emits the container's events of a task on this node, as far as its states tell them.
func (o *observer) task(k model.Key) {
	old, now := o.Before.Task(k.Task()), o.After.Task(k.Task())
	shown, snap := now, o.After
	if shown == nil {
		shown, snap = old, o.Before
	}
	if shown == nil || shown.Node == 0 || shown.Node != o.local {
		return
	}
	attrs, id := o.containerAttrs(snap, shown), containerID(o.namer.TaskID(shown.ID))
	emit := func(action events.Action) { o.emit(events.ContainerEventType, action, scopeLocal, id, attrs, o.at) }
	had, has := old != nil && hasContainer(old), now != nil && hasContainer(now)
	ran, runs := old != nil && wasStarted(old), now != nil && wasStarted(now)
	if !had && has {
		emit(events.ActionCreate)
	}
	if !ran && runs {
		emit(events.ActionStart)
	}
	if now != nil && runs && now.State.Terminal() && !(old != nil && old.State.Terminal()) {
		attrs = mergedLabels(attrs, map[string]string{"exitCode": strconv.Itoa(int(now.ExitCode))})
		emit(events.ActionDie)
	}
	if had && now == nil {
		emit(events.ActionDestroy)
	}
}

func wasStarted(t *model.Task) bool {
	return t.RunningSince != 0 || t.State == model.StateRunning || t.PID != 0
}

func (o *observer) containerAttrs(snap *state.Snapshot, t *model.Task) map[string]string {
	service, image := "", ""
	var labels map[string]string
	if tmpl := snap.Template(t.Template); tmpl != nil {
		service = tmpl.ServiceName
		if c := tmpl.Task.Typed.ContainerSpec; c != nil {
			image, labels = c.Image, c.Labels
		}
	}
	attrs := mergedLabels(labels, taskLabels(o.namer, service, t))
	attrs["image"], attrs["name"] = image, taskName(o.namer, service, t)
	return attrs
}
