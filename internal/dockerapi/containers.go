package dockerapi

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

func (s *Server) listContainers(r *request) error {
	f, err := readFilters(r, "id", "name", "label", "status", "is-task", "exited", "ancestor", "before", "since", "volume", "network", "health")
	if err != nil {
		return err
	}
	limit, all := 0, r.bool("all")
	if text := r.query("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil {
			return model.Invalidf("invalid limit: %s", text)
		}
	}
	for _, st := range f["status"] {
		if container.ValidateContainerState(container.ContainerState(st)) != nil {
			return model.Invalidf("invalid filter 'status=%s'", st)
		}
	}
	list, err := s.backend.ListContainers(r.ctx())
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	want, err := newContainerFilter(f, list)
	if err != nil {
		return err
	}
	slices.SortStableFunc(list, func(a, b Container) int { return b.Created.Compare(a.Created) })
	out := []container.Summary{}
	for i := range list {
		c := &list[i]
		if limit > 0 && len(out) == limit {
			break
		}
		if c.State != container.StateRunning && !all && limit <= 0 && !f.has("status") && !f.has("exited") || !want.matches(c) {
			continue
		}
		out = append(out, s.containerSummary(c))
	}
	return writeJSON(r, http.StatusOK, out)
}

// containerFilter is a client's filters with the references looked up.
type containerFilter struct {
	filters
	names         []*regexp.Regexp
	before, since time.Time
	isTask        bool
}

func newContainerFilter(f filters, list []Container) (*containerFilter, error) {
	cf := &containerFilter{filters: f}
	for _, n := range f["name"] {
		re, err := regexp.Compile(n)
		if err != nil {
			return nil, model.Invalidf("invalid filter 'name=%s': %v", n, err)
		}
		cf.names = append(cf.names, re)
	}
	for key, bound := range map[string]*time.Time{"before": &cf.before, "since": &cf.since} {
		for _, ref := range f[key] {
			c, err := findContainer(list, ref)
			if err != nil {
				return nil, err
			}
			*bound = c.Created
		}
	}
	var err error
	cf.isTask, _, err = f.flag("is-task")
	return cf, err
}

func (f *containerFilter) matches(c *Container) bool {
	_, isTask := c.Labels["com.docker.swarm.task"]
	named := len(f.names) == 0 || slices.ContainsFunc(f.names, func(re *regexp.Regexp) bool {
		return re.MatchString(c.Name) || re.MatchString("/"+c.Name)
	})
	switch {
	case !named, !f.prefix("id", c.ID), !f.labels("label", c.Labels), !f.exact("status", string(c.State)), !f.exact("health", string(health(c))),
		f.has("is-task") && f.isTask != isTask,
		f.has("exited") && (c.State != container.StateExited || !f.exact("exited", strconv.Itoa(c.ExitCode))),
		f.has("ancestor") && !f.exact("ancestor", familiar(c.Image)) && !f.exact("ancestor", c.Image) && !f.prefix("ancestor", c.ImageID),
		!f.before.IsZero() && !c.Created.Before(f.before), !f.since.IsZero() && !c.Created.After(f.since),
		f.has("network") && !f.inNetwork(c):
		return false
	}
	return !f.has("volume") || slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool {
		return f.exact("volume", cmp.Or(m.Name, m.Source)) || f.exact("volume", m.Destination)
	})
}

// inNetwork reports whether a container is in one of the networks asked for, by name or by a prefix of its identifier.
func (f *containerFilter) inNetwork(c *Container) bool {
	for _, n := range c.Networks {
		if f.exact("network", n.Name) || n.ID != "" && f.prefix("network", n.ID) {
			return true
		}
	}
	return len(c.Addresses) > 0 && f.exact("network", ingressName)
}

// containerSummary is a container as docker ps shows it.
func (s *Server) containerSummary(c *Container) container.Summary {
	out := container.Summary{
		ID: c.ID, Names: []string{"/" + c.Name}, Image: c.Image, ImageID: c.ImageID, Command: strings.Join(c.Command, " "), Created: c.Created.Unix(),
		Labels: c.Labels, State: c.State, Status: s.containerStatus(c), Ports: portSummaries(c.Ports), Mounts: c.Mounts,
		NetworkSettings: &container.NetworkSettingsSummary{Networks: endpoints(c)},
	}
	out.HostConfig.NetworkMode = networkMode(c)
	if out.Mounts == nil {
		out.Mounts = []container.MountPoint{}
	}
	return out
}

// containerStatus is Docker's sentence about a container's state.
func (s *Server) containerStatus(c *Container) string {
	switch c.State {
	case container.StateRunning:
		up := "Up " + units.HumanDuration(s.now().Sub(c.Started))
		switch h := health(c); h {
		case container.NoHealthcheck:
			return up
		case container.Starting:
			return up + " (health: starting)"
		default:
			return up + " (" + string(h) + ")"
		}
	case container.StateExited:
		return fmt.Sprintf("Exited (%d) %s ago", c.ExitCode, units.HumanDuration(s.now().Sub(c.Finished)))
	case container.StateCreated:
		return "Created"
	case container.StateDead:
		return "Dead"
	case container.StateRemoving:
		return "Removal In Progress"
	}
	return string(c.State)
}

// health is Docker's word for what a container's health check says.
func health(c *Container) container.HealthStatus {
	switch {
	case c.Healthcheck == nil:
		return container.NoHealthcheck
	case c.Health == nil:
		return container.Starting // it has not been looked at
	}
	return c.Health.Status
}

func portSummaries(ports []swarm.PortConfig) []container.PortSummary {
	out := []container.PortSummary{}
	for _, p := range ports {
		sum := container.PortSummary{PrivatePort: uint16(p.TargetPort), PublicPort: uint16(p.PublishedPort), Type: string(p.Protocol)}
		if p.PublishMode == swarm.PortConfigPublishModeHost && p.PublishedPort != 0 {
			sum.IP = netip.IPv4Unspecified()
		} else {
			sum.PublicPort = 0 // an ingress port is the service's, not the container's
		}
		out = append(out, sum)
	}
	return out
}

// ingressName is what the gateway network is called to clients.
const ingressName = "ingress"

func endpoints(c *Container) map[string]*network.EndpointSettings {
	out := map[string]*network.EndpointSettings{}
	if len(c.Addresses) > 0 {
		ep := &network.EndpointSettings{}
		for _, a := range c.Addresses {
			setAddress(ep, a)
		}
		out[ingressName] = ep
	}
	for _, n := range c.Networks {
		ep := &network.EndpointSettings{NetworkID: n.ID, EndpointID: n.EndpointID, Aliases: n.Aliases, DNSNames: n.Aliases, Gateway: n.Gateway}
		for _, a := range []netip.Prefix{n.Addr4, n.Addr6} {
			setAddress(ep, a)
		}
		out[n.Name] = ep
	}
	return out
}

func setAddress(ep *network.EndpointSettings, a netip.Prefix) {
	switch {
	case !a.IsValid():
	case a.Addr().Is4():
		ep.IPAddress, ep.IPPrefixLen = a.Addr(), a.Bits()
	default:
		ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen = a.Addr(), a.Bits()
	}
}

// networkMode is Docker's word for where a container lives: a task is in its first network.
func networkMode(c *Container) string {
	if len(c.Networks) > 0 && c.Networks[0].ID == "" {
		return c.Networks[0].Name
	}
	return "default"
}

// findContainer looks a container up by ID, name and prefix of its ID, in this order.
func findContainer(list []Container, ref string) (*Container, error) {
	name := strings.TrimPrefix(ref, "/")
	for i := range list {
		if list[i].ID == ref || list[i].Name == name {
			return &list[i], nil
		}
	}
	var found *Container
	for i := range list {
		if strings.HasPrefix(list[i].ID, ref) {
			if found != nil {
				return nil, model.Invalidf("multiple IDs found with provided prefix: %s", ref)
			}
			found = &list[i]
		}
	}
	if found == nil {
		return nil, notFoundf("No such container: %s", ref)
	}
	return found, nil
}

func (s *Server) getContainer(r *request, c *Container) error {
	out := container.InspectResponse{
		ID: c.ID, Name: "/" + c.Name, Created: c.Created.UTC().Format(time.RFC3339Nano), Image: c.ImageID, LogPath: c.LogPath, Driver: "overlayfs",
		Platform: "linux", Mounts: c.Mounts, HostConfig: hostConfig(c), Config: containerConfig(c),
		State: &container.State{
			Status: c.State, Running: c.State == container.StateRunning, OOMKilled: c.OOMKilled, Dead: c.State == container.StateDead, Pid: c.PID,
			ExitCode: c.ExitCode, Error: c.Error, StartedAt: c.Started.UTC().Format(time.RFC3339Nano), FinishedAt: c.Finished.UTC().Format(time.RFC3339Nano), Health: c.Health,
		},
		ExecIDs:         s.execs.of(c.ID),
		NetworkSettings: &container.NetworkSettings{Ports: portMap(c.Ports), Networks: endpoints(c)},
	}
	if len(c.Command) > 0 {
		out.Path, out.Args = c.Command[0], c.Command[1:]
	}
	if out.Mounts == nil {
		out.Mounts = []container.MountPoint{}
	}
	return writeJSON(r, http.StatusOK, out)
}

func portMap(ports []swarm.PortConfig) network.PortMap {
	out := network.PortMap{}
	for _, p := range ports {
		port, ok := network.PortFrom(uint16(p.TargetPort), p.Protocol)
		if !ok {
			continue
		}
		bindings := out[port]
		if p.PublishMode == swarm.PortConfigPublishModeHost && p.PublishedPort != 0 {
			bindings = append(bindings, network.PortBinding{HostIP: netip.IPv4Unspecified(), HostPort: strconv.Itoa(int(p.PublishedPort))})
		}
		out[port] = bindings
	}
	return out
}

func containerConfig(c *Container) *container.Config {
	out := &container.Config{Hostname: c.Hostname, Image: c.Image, Labels: c.Labels, Cmd: c.Command}
	if c.Task == nil || c.Task.ContainerSpec == nil {
		return out
	}
	spec := c.Task.ContainerSpec
	out.User, out.Env, out.WorkingDir, out.Tty, out.OpenStdin = spec.User, spec.Env, spec.Dir, spec.TTY, spec.OpenStdin
	out.StopSignal, out.Healthcheck = spec.StopSignal, c.Healthcheck
	if len(spec.Command) > 0 {
		out.Entrypoint, out.Cmd = spec.Command, spec.Args
	}
	return out
}

func hostConfig(c *Container) *container.HostConfig {
	out := &container.HostConfig{NetworkMode: container.NetworkMode(networkMode(c)), LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{}}}
	if c.Task == nil {
		return out
	}
	if r := c.Task.Resources; r != nil && r.Limits != nil {
		out.NanoCPUs, out.Memory = r.Limits.NanoCPUs, r.Limits.MemoryBytes
		if r.Limits.Pids > 0 {
			out.PidsLimit = &r.Limits.Pids
		}
		if r.Reservations != nil {
			out.MemoryReservation = r.Reservations.MemoryBytes
		}
	}
	if spec := c.Task.ContainerSpec; spec != nil {
		out.Init, out.ReadonlyRootfs, out.CapAdd, out.CapDrop = spec.Init, spec.ReadOnly, spec.CapabilityAdd, spec.CapabilityDrop
		out.Mounts, out.Ulimits, out.Sysctls, out.ExtraHosts, out.OomScoreAdj = spec.Mounts, spec.Ulimits, spec.Sysctls, spec.Hosts, int(spec.OomScoreAdj)
	}
	return out
}
