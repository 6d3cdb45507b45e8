package dockerapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

func wallTime(t model.Time) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(t)).UTC()
}

// wallTimePtr is nil for no time.
func wallTimePtr(t model.Time) *time.Time {
	if t == 0 {
		return nil
	}
	return new(wallTime(t))
}

func meta(version uint64, created, updated model.Time) swarm.Meta {
	return swarm.Meta{Version: swarm.Version{Index: version}, CreatedAt: wallTime(created), UpdatedAt: wallTime(updated)}
}

// containerID is the ID of a task's container: it follows from the task's, so that making the
// container twice makes one.
func containerID(taskID string) string { return model.ContainerID(taskID) }

// taskName is Docker's name of a task and of its container: service.slot.id, or service.node.id.
func taskName(n model.Namer, service string, t *model.Task) string {
	if t.Slot != 0 {
		return fmt.Sprintf("%s.%d.%s", service, t.Slot, n.TaskID(t.ID))
	}
	return service + "." + n.NodeID(t.Node) + "." + n.TaskID(t.ID)
}

func (s *Server) nodeView(snap *state.Snapshot, n *model.Node) swarm.Node {
	out := swarm.Node{
		ID:          snap.Cluster().Namer().NodeID(n.ID),
		Meta:        meta(n.SpecVersion, n.CreatedAt, n.UpdatedAt),
		Spec:        n.Spec,
		Description: n.Description,
		Status:      swarm.NodeStatus{State: n.State, Message: n.Message, Addr: n.Addr},
	}
	if out.Spec.Labels == nil {
		out.Spec.Labels = map[string]string{}
	}
	if n.State == "" {
		out.Status.State = swarm.NodeStateUnknown
	}
	if n.Spec.Role == swarm.NodeRoleManager && n.ManagerAddr != "" {
		out.ManagerStatus = &swarm.ManagerStatus{
			Leader:       s.backend.Local().Leader == n.ID,
			Reachability: swarm.ReachabilityReachable,
			Addr:         n.ManagerAddr,
		}
		if n.State == swarm.NodeStateDown {
			out.ManagerStatus.Reachability = swarm.ReachabilityUnreachable
		}
	}
	return out
}

// serviceView is Docker's Service; specs are the JSON that was accepted, unknown fields and all.
type serviceView struct {
	ID string
	swarm.Meta
	Spec          json.RawMessage
	PreviousSpec  json.RawMessage      `json:",omitempty"`
	Endpoint      swarm.Endpoint       `json:",omitempty"`
	UpdateStatus  *swarm.UpdateStatus  `json:",omitempty"`
	ServiceStatus *swarm.ServiceStatus `json:",omitempty"`
	JobStatus     *swarm.JobStatus     `json:",omitempty"`
}

type serviceViewOptions struct {
	insertDefaults, status bool
	version                apiVersion
}

func viewService(snap *state.Snapshot, v *model.Service, opt serviceViewOptions) (serviceView, error) {
	out := serviceView{
		ID:   snap.Cluster().Namer().ServiceID(v.ID),
		Meta: meta(v.SpecVersion, v.CreatedAt, v.UpdatedAt),
	}
	var err error
	if out.Spec, err = viewSpec(v.Current().Spec, opt); err != nil {
		return out, fmt.Errorf("spec of service %s: %w", v.Name(), err)
	}
	if p := v.Previous(); p != nil {
		if out.PreviousSpec, err = viewSpec(p.Spec, opt); err != nil {
			return out, fmt.Errorf("previous spec of service %s: %w", v.Name(), err)
		}
	}
	if ep := v.Spec().EndpointSpec; ep != nil {
		out.Endpoint.Spec = *ep
	}
	for _, vip := range v.VIPs {
		for _, p := range prefixes(snap.Network(vip.Network), vip.Addr4, vip.Addr6) {
			out.Endpoint.VirtualIPs = append(out.Endpoint.VirtualIPs, swarm.EndpointVirtualIP{NetworkID: snap.Cluster().Namer().NetworkID(vip.Network), Addr: p})
		}
	}
	if out.Endpoint.Spec.Mode == "" && len(out.Endpoint.Spec.Ports)+len(v.VIPs) > 0 {
		out.Endpoint.Spec.Mode = swarm.ResolutionModeVIP
	}
	out.Endpoint.Ports = v.Ports
	if u := v.Update; u != nil {
		out.UpdateStatus = &swarm.UpdateStatus{State: u.State, StartedAt: wallTimePtr(u.StartedAt), CompletedAt: wallTimePtr(u.CompletedAt), Message: u.Message}
	}
	if opt.status {
		out.ServiceStatus = serviceStatus(snap, v)
	}
	if v.JobVersion != 0 {
		out.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: v.JobIteration}, LastExecution: wallTime(v.UpdatedAt)}
	}
	return out, nil
}

// viewSpec is a spec as a client of the version wants it.
func viewSpec(spec model.ServiceSpec, opt serviceViewOptions) (json.RawMessage, error) {
	if opt.insertDefaults {
		full, err := withDefaults(spec)
		if err != nil {
			return nil, err
		}
		spec = full
	}
	if !opt.version.before(44) || len(spec.Typed.TaskTemplate.Networks) == 0 {
		return spec.Raw, nil
	}
	// Before API 1.44 the networks stood (also) beside the task template.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(spec.Raw, &fields); err != nil {
		return nil, fmt.Errorf("decode stored spec: %w", err)
	}
	networks, err := json.Marshal(spec.Typed.TaskTemplate.Networks)
	if err != nil {
		return nil, fmt.Errorf("encode networks: %w", err)
	}
	fields["Networks"] = networks
	return json.Marshal(fields)
}

// serviceStatus counts a service's tasks as Docker does.
func serviceStatus(snap *state.Snapshot, v *model.Service) *swarm.ServiceStatus {
	var st swarm.ServiceStatus
	mode := v.Spec().Mode
	job := mode.ReplicatedJob != nil || mode.GlobalJob != nil
	for t := range snap.Tasks(v.ID) {
		wanted := t.Desired <= model.StateRunning
		if t.State == model.StateRunning && wanted {
			st.RunningTasks++
		}
		switch {
		case mode.Global != nil && wanted:
			st.DesiredTasks++
		case job && t.JobIteration == v.JobIteration:
			if t.State == model.StateComplete {
				st.CompletedTasks++
			} else if mode.GlobalJob != nil && wanted && !t.State.Terminal() {
				st.DesiredTasks++ // clients add those that completed themselves
			}
		}
	}
	switch {
	case mode.Replicated != nil && mode.Replicated.Replicas != nil:
		st.DesiredTasks = *mode.Replicated.Replicas
	case mode.ReplicatedJob != nil && mode.ReplicatedJob.MaxConcurrent != nil:
		st.DesiredTasks = *mode.ReplicatedJob.MaxConcurrent // also when less is left to do: Docker's table says 0/2 (5/5 completed)
	}
	return &st
}

// taskView is Docker's Task.
type taskView struct {
	ID string
	swarm.Meta
	Labels              map[string]string
	Spec                json.RawMessage
	ServiceID           string `json:",omitempty"`
	Slot                int    `json:",omitempty"`
	NodeID              string `json:",omitempty"`
	Status              swarm.TaskStatus
	DesiredState        swarm.TaskState
	NetworksAttachments []swarm.NetworkAttachment `json:",omitempty"`
	GenericResources    []swarm.GenericResource   `json:",omitempty"`
	JobIteration        *swarm.Version            `json:",omitempty"`
	Volumes             []swarm.VolumeAttachment
}

// taskViewer makes many task views from one snapshot: a template's JSON is made once.
type taskViewer struct {
	snap     *state.Snapshot
	namer    model.Namer
	specs    map[model.TemplateID]json.RawMessage
	nodes    map[model.NodeID]string
	services map[model.ServiceID]string
	ingress  swarm.Network
	networks map[model.NetworkID]swarm.Network
}

func newTaskViewer(snap *state.Snapshot) *taskViewer {
	tv := &taskViewer{snap: snap, namer: snap.Cluster().Namer(), specs: map[model.TemplateID]json.RawMessage{},
		nodes: map[model.NodeID]string{}, services: map[model.ServiceID]string{}, networks: map[model.NetworkID]swarm.Network{}}
	tv.ingress = swarmNetwork(tv.namer, ingressNetwork(snap))
	return tv
}

// remembered is the identifier of a key that many tasks share.
func remembered[K comparable](known map[K]string, k K, name func(K) string) string {
	id, ok := known[k]
	if !ok {
		id = name(k)
		known[k] = id
	}
	return id
}

func (tv *taskViewer) view(t *model.Task) (taskView, error) {
	out := taskView{
		ID:           tv.namer.TaskID(t.ID),
		Meta:         meta(max(t.StatusVer, t.PlaceVer, t.DesiredVer), t.CreatedAt, max(t.StatusAt, t.CreatedAt)),
		Labels:       map[string]string{},
		ServiceID:    remembered(tv.services, t.ID.Service, tv.namer.ServiceID),
		Slot:         int(t.Slot),
		DesiredState: t.Desired.API(), GenericResources: t.Generic,
		Status: swarm.TaskStatus{Timestamp: wallTime(max(t.StatusAt, t.CreatedAt)), State: t.State.API(), Message: t.Message, Err: t.Err,
			PortStatus: swarm.PortStatus{Ports: t.HostPorts}},
	}
	if t.Node != 0 {
		out.NodeID = remembered(tv.nodes, t.Node, tv.namer.NodeID)
	}
	if hasContainer(t) {
		out.Status.ContainerStatus = &swarm.ContainerStatus{ContainerID: containerID(out.ID), PID: int(t.PID), ExitCode: int(t.ExitCode)}
	}
	if t.JobIteration != 0 {
		out.JobIteration = &swarm.Version{Index: t.JobIteration}
		if t.Slot > 0 {
			out.Slot-- // a job's slots count from 0 in Docker's API, and its CLI waits for just those
		}
		if t.Desired == model.StateRunning {
			out.DesiredState = swarm.TaskStateComplete // what Docker wants of a job's task
		}
	}
	var err error
	if out.Spec, err = tv.spec(t); err != nil {
		return out, fmt.Errorf("spec of task %s: %w", out.ID, err)
	}
	out.NetworksAttachments = tv.attachments(t)
	return out, nil
}

// hasContainer reports whether a container was ever made for the task, as far as its status tells.
func hasContainer(t *model.Task) bool {
	switch t.State {
	case model.StateReady, model.StateStarting, model.StateRunning, model.StateComplete, model.StateFailed:
		return true
	}
	return t.PID != 0 || t.RunningSince != 0
}

// spec is the template's, with the placement and restart policy that are in force: those are no
// part of a template.
func (tv *taskViewer) spec(t *model.Task) (json.RawMessage, error) {
	if raw, ok := tv.specs[t.Template]; ok {
		return raw, nil
	}
	tmpl := tv.snap.Template(t.Template)
	if tmpl == nil {
		return json.RawMessage("{}"), nil
	}
	raw := tmpl.Task.Raw
	if svc := tv.snap.Service(t.ID.Service); svc != nil {
		var now struct{ TaskTemplate map[string]json.RawMessage }
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(svc.Current().Spec.Raw, &now); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(raw, &fields); err != nil {
			return nil, err
		}
		for _, key := range []string{"Placement", "RestartPolicy"} {
			delete(fields, key)
			if v, ok := now.TaskTemplate[key]; ok {
				fields[key] = v
			}
		}
		var err error
		if raw, err = json.Marshal(fields); err != nil {
			return nil, err
		}
	}
	tv.specs[t.Template] = raw
	return raw, nil
}

// attachments are a task's places in the ingress network, when its service has ports there, and in overlay networks.
func (tv *taskViewer) attachments(t *model.Task) []swarm.NetworkAttachment {
	var out []swarm.NetworkAttachment
	if gatewayNetwork(tv.snap, t) == ingressName {
		a4, a6 := gatewayAddresses(t)
		addrs := slices.DeleteFunc([]netip.Prefix{a4, a6}, func(p netip.Prefix) bool { return !p.IsValid() })
		out = append(out, swarm.NetworkAttachment{Addresses: addrs, Network: tv.ingress})
	}
	for _, a := range t.Nets {
		n := tv.snap.Network(a.Network)
		if n == nil {
			continue // it went with its last task
		}
		view, known := tv.networks[n.ID]
		if !known {
			view = swarmNetwork(tv.namer, n)
			tv.networks[n.ID] = view
		}
		out = append(out, swarm.NetworkAttachment{Network: view, Addresses: prefixes(n, a.Addr4, a.Addr6)})
	}
	return out
}

// serviceLabels are the labels by which clients filter a task: its service's, while there is one.
func (tv *taskViewer) serviceLabels(t *model.Task) map[string]string {
	if svc := tv.snap.Service(t.ID.Service); svc != nil {
		return svc.Spec().Labels
	}
	if tmpl := tv.snap.Template(t.Template); tmpl != nil {
		return tmpl.ServiceLabels
	}
	return nil
}

func (tv *taskViewer) serviceName(t *model.Task) string {
	if tmpl := tv.snap.Template(t.Template); tmpl != nil {
		return tmpl.ServiceName
	}
	return tv.namer.ServiceID(t.ID.Service)
}

// mergedLabels is a copy of both, the latter winning.
func mergedLabels(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, b)
	return out
}
