package agent

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// maxExpanded bounds what a placeholder may grow to, in bytes.
const maxExpanded = 64 << 10

// template is what tasks share, parsed once. Immutable.
type template struct {
	msg       *pb.Template
	spec      swarm.TaskSpec
	hostPorts []swarm.PortConfig
}

func parseTemplate(m *pb.Template) (*template, error) {
	t := &template{msg: m, hostPorts: wire.Ports(m.HostPorts)}
	if err := json.Unmarshal(m.TaskSpecJson, &t.spec); err != nil {
		return nil, fmt.Errorf("template %d: %w", m.Id, err)
	}
	return t, nil
}

// scope is what placeholders in a spec can name; the field names are Docker's.
type scope struct {
	Service struct {
		ID, Name string
		Labels   map[string]string
	}
	Node struct {
		ID, Hostname string
		Platform     struct{ Architecture, OS string }
	}
	Task struct{ ID, Name, Slot string }
}

func (a *Agent) scope(m *pb.Task, tpl *template) *scope {
	var s scope
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Service.ID, s.Service.Name, s.Service.Labels = tpl.msg.ServiceId, tpl.msg.ServiceName, tpl.msg.ServiceLabels
	s.Node.ID, s.Node.Hostname = a.node.GetNodeId(), a.hostname
	s.Node.Platform.Architecture, s.Node.Platform.OS = a.platform.Architecture, a.platform.OS
	s.Task.ID = m.Id
	s.Task.Slot = strconv.FormatUint(uint64(m.Slot), 10)
	if m.Slot == 0 {
		s.Task.Slot = s.Node.ID
	}
	s.Task.Name = taskName(s.Service.Name, s.Task.Slot, m.Id)
	return &s
}

// expand fills the placeholders of one value.
func (s *scope) expand(text string) (string, error) { return expand(text, s, maxExpanded, nil) }

// buildSpec makes the container's spec but for what is made on the way (network, logs, files). Errors are about the
// spec and reject the task.
func (a *Agent) buildSpec(m *pb.Task, tpl *template) (runtime.Spec, error) {
	if tpl.spec.ContainerSpec == nil {
		return runtime.Spec{}, runtime.Invalid("task %s has no container spec", m.Id)
	}
	s := a.scope(m, tpl)
	spec := runtime.Spec{ID: ContainerID(m.Id), TaskID: m.Id, Name: s.Task.Name, Task: tpl.spec, ImageDigest: tpl.msg.ImageDigest}
	cs := *tpl.spec.ContainerSpec
	if err := s.expandSpec(&cs); err != nil {
		return spec, runtime.Invalid("%v", err)
	}
	if tpl.msg.NetMode == string(model.NetHost) {
		// Where it has the host's addresses it goes by the host's name.
		spec.NetNS, cs.Hostname = runtime.HostNetNS, cmp.Or(cs.Hostname, s.Node.Hostname)
	}
	cs.Env = append(cs.Env, resourceEnv(m.Generic)...)
	spec.Hostname, spec.Env = cs.Hostname, cs.Env
	spec.Task.ContainerSpec = &cs
	spec.Labels = maps.Clone(cs.Labels)
	if spec.Labels == nil {
		spec.Labels = map[string]string{}
	}
	maps.Copy(spec.Labels, map[string]string{
		"com.docker.swarm.task":         "",
		"com.docker.swarm.task.id":      m.Id,
		"com.docker.swarm.task.name":    s.Task.Name,
		"com.docker.swarm.node.id":      s.Node.ID,
		"com.docker.swarm.service.id":   s.Service.ID,
		"com.docker.swarm.service.name": s.Service.Name,
	})
	return spec, nil
}

// expandSpec fills the placeholders of a spec, which is changed but for what its pointers, slices and maps lead to.
func (s *scope) expandSpec(cs *swarm.ContainerSpec) (err error) {
	if cs.Hostname, err = s.expand(cs.Hostname); err != nil {
		return fmt.Errorf("expanding hostname failed: %w", err)
	}
	if cs.Env, err = s.expandEnv(cs.Env); err != nil {
		return fmt.Errorf("expanding env failed: %w", err)
	}
	if cs.Mounts, err = s.expandMounts(cs.Mounts); err != nil {
		return fmt.Errorf("expanding mounts failed: %w", err)
	}
	return nil
}

// CheckPlaceholders tries the placeholders of a service's spec with a task that might be: what cannot be filled there is better refused
// than accepted and then rejected on every node. As in Docker this is a best effort, for nodes and tasks differ.
func CheckPlaceholders(spec *swarm.ServiceSpec) error {
	if spec.TaskTemplate.ContainerSpec == nil {
		return nil
	}
	const id = "0123456789abcdefghijklmno"
	var s scope
	s.Service.ID, s.Service.Name, s.Service.Labels = id, spec.Name, spec.Labels
	s.Node.ID, s.Node.Hostname = id, "node-hostname"
	s.Node.Platform.Architecture, s.Node.Platform.OS = "x86_64", "linux"
	s.Task.ID, s.Task.Slot, s.Task.Name = id, "1", taskName(spec.Name, "1", id)
	cs := *spec.TaskTemplate.ContainerSpec
	return s.expandSpec(&cs)
}

// resourceEnv tells a task in Docker's variables which generic resources it has: DOCKER_RESOURCE_KIND is
// how many, or the names.
func resourceEnv(list []*pb.GenericResource) []string {
	values := map[string][]string{}
	for _, g := range list {
		value := g.Name
		if value == "" {
			value = strconv.FormatInt(g.Count, 10)
		}
		values[g.Kind] = append(values[g.Kind], value)
	}
	var env []string
	for _, kind := range slices.Sorted(maps.Keys(values)) {
		env = append(env, "DOCKER_RESOURCE_"+strings.ToUpper(kind)+"="+strings.Join(values[kind], ","))
	}
	return env
}

// expandEnv fills the placeholders of variables, K=V. What is wrong with one is said by its name alone.
func (s *scope) expandEnv(in []string) ([]string, error) {
	if in == nil {
		return nil, nil
	}
	out := make([]string, len(in))
	for i, v := range in {
		var err error
		if out[i], err = s.expand(v); err != nil {
			name, _, _ := strings.Cut(v, "=")
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return out, nil
}

func (s *scope) expandMounts(in []mount.Mount) ([]mount.Mount, error) {
	out := make([]mount.Mount, len(in))
	for i, m := range in {
		var err error
		if m.Source, err = s.expand(m.Source); err != nil {
			return nil, fmt.Errorf("source %q: %w", in[i].Source, err)
		}
		if m.Target, err = s.expand(m.Target); err != nil {
			return nil, fmt.Errorf("target %q: %w", in[i].Target, err)
		}
		if m.VolumeOptions != nil {
			vo := *m.VolumeOptions
			if vo.Labels, err = s.expandMap(vo.Labels); err != nil {
				return nil, fmt.Errorf("labels of volume %q: %w", m.Source, err)
			}
			if vo.DriverConfig != nil {
				dc := *vo.DriverConfig
				if dc.Options, err = s.expandMap(dc.Options); err != nil {
					return nil, fmt.Errorf("options of volume %q: %w", m.Source, err)
				}
				vo.DriverConfig = &dc
			}
			m.VolumeOptions = &vo
		}
		out[i] = m
	}
	return out, nil
}

func (s *scope) expandMap(in map[string]string) (map[string]string, error) {
	if in == nil {
		return nil, nil
	}
	out := make(map[string]string, len(in))
	for k, v := range in {
		e, err := s.expand(v)
		if err != nil {
			return nil, err
		}
		out[k] = e
	}
	return out, nil
}
