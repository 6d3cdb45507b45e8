package dockerapi

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
)

func (s *Server) listContainers(r *request) error {
	f, err := readFilters(r, "id", "name", "label", "status", "is-task", "exited", "ancestor", "before", "since", "volume", "network", "health", "publish", "expose", "isolation")
	if err != nil {
		return err
	}
	limit, all := 0, r.bool("all")
	if text := r.query("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil {
			return model.Invalidf("invalid limit: %s", text)
		}
	}
	list, err := s.backend.ListContainers(r.ctx())
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	want, err := s.newContainerFilter(r, f, list)
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
		sum := s.containerSummary(c)
		if r.bool("size") {
			if sum.SizeRw, sum.SizeRootFs, err = s.backend.ContainerSize(r.ctx(), c.ID); err != nil && model.KindOf(err) != model.NotFound {
				return err
			}
		}
		out = append(out, sum)
	}
	return writeJSON(r, http.StatusOK, out)
}

// containerSummary is a container as docker ps shows it.
func (s *Server) containerSummary(c *Container) container.Summary {
	out := container.Summary{
		ID: c.ID, Names: []string{"/" + c.Name}, Image: c.Image, ImageID: c.ImageID, Command: commandLine(c.Command), Created: c.Created.Unix(),
		Labels: c.Labels, State: c.State, Status: s.containerStatus(c), Ports: portSummaries(c), Mounts: c.Mounts,
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

// commandLine is a command as people may read it.
func commandLine(args []string) string {
	var out []string
	for i, a := range args {
		if i > 0 && strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// binding is one port of a container: host is 0 when it is not this host's.
type binding struct {
	port network.Port
	host uint16
}

// bindings are the ports that a container has on its host, and those that its image and its service speak of, in order. An
// ingress port is the service's, not the container's.
func bindings(c *Container) []binding {
	var out []binding
	onHost := map[network.Port]bool{}
	for _, p := range c.Ports {
		if port, ok := network.PortFrom(uint16(p.TargetPort), cmp.Or(p.Protocol, network.TCP)); ok && p.PublishMode == swarm.PortConfigPublishModeHost && p.PublishedPort != 0 {
			out = append(out, binding{port, uint16(p.PublishedPort)})
			onHost[port] = true
		}
	}
	for port := range exposed(c) {
		if !onHost[port] {
			out = append(out, binding{port: port})
		}
	}
	slices.SortFunc(out, func(a, b binding) int {
		return cmp.Or(cmp.Compare(a.port.Num(), b.port.Num()), cmp.Compare(a.port.Proto(), b.port.Proto()), cmp.Compare(a.host, b.host))
	})
	return out
}

// exposed are the ports that a container's image and service speak of.
func exposed(c *Container) network.PortSet {
	out := network.PortSet{}
	if c.ImageConfig != nil {
		for text := range c.ImageConfig.ExposedPorts {
			if port, err := network.ParsePort(text); err == nil {
				out[port] = struct{}{}
			}
		}
	}
	for _, p := range slices.Concat(c.ServicePorts, c.Ports) {
		if port, ok := network.PortFrom(uint16(p.TargetPort), cmp.Or(p.Protocol, network.TCP)); ok {
			out[port] = struct{}{}
		}
	}
	return out
}

func portSummaries(c *Container) []container.PortSummary {
	out := []container.PortSummary{}
	for _, b := range bindings(c) {
		sum := container.PortSummary{PrivatePort: b.port.Num(), Type: string(b.port.Proto())}
		if b.host == 0 {
			out = append(out, sum)
			continue
		}
		for _, ip := range anyAddress() {
			sum.IP, sum.PublicPort = ip, b.host
			out = append(out, sum)
		}
	}
	return out
}

// anyAddress is where a published port is reached: at every address of the host, of either kind.
func anyAddress() []netip.Addr { return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} }

func endpoints(c *Container) map[string]*network.EndpointSettings {
	out := map[string]*network.EndpointSettings{}
	for _, n := range c.Networks {
		ep := &network.EndpointSettings{NetworkID: n.ID, EndpointID: n.EndpointID, Aliases: n.Aliases, DNSNames: n.DNSNames, Gateway: n.Gateway, IPv6Gateway: n.Gateway6}
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
		mac := netplan.TaskMAC(a.Addr())
		ep.MacAddress = mac[:]
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
