package dockerapi

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/skep-swarm/skep/internal/model"
)

// containerFilter is a client's filters with the references looked up.
type containerFilter struct {
	filters
	names         patterns
	before, since time.Time
	isTask        bool
	images        map[string]bool // identifiers of those asked for as ancestors
	// publish and expose are ports on the host and in the container; nil when they are not asked for.
	publish, expose map[network.Port]bool
}

func (s *Server) newContainerFilter(r *request, f filters, list []Container) (*containerFilter, error) {
	cf := &containerFilter{filters: f, images: map[string]bool{}}
	if err := checkContainerFilter(f); err != nil {
		return nil, err
	}
	var err error
	if cf.names, err = f.patterns("name"); err != nil {
		return nil, err
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
	if cf.publish, err = portFilter(f, "publish"); err != nil {
		return nil, err
	}
	if cf.expose, err = portFilter(f, "expose"); err != nil {
		return nil, err
	}
	if f.has("ancestor") {
		if err := s.findAncestors(r, cf); err != nil {
			return nil, err
		}
	}
	cf.isTask, _, err = f.flag("is-task")
	return cf, err
}

// checkContainerFilter refuses values that can match nothing.
func checkContainerFilter(f filters) error {
	for _, v := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return model.Invalidf("invalid filter 'status=%s': %v", v, err)
		}
	}
	for _, v := range f["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return model.Invalidf("invalid filter 'health=%s': %v", v, err)
		}
	}
	for _, v := range f["exited"] {
		if _, err := strconv.Atoi(v); err != nil {
			return model.Invalidf("invalid filter 'exited=%s': it is not an exit code", v)
		}
	}
	return nil
}

// maxPortRange bounds how many ports a filter may name: all that there are.
const maxPortRange = 1 << 16

// portFilter reads ports as "80", "80/udp" or "8000-8010/tcp"; nil when the key is not asked for.
func portFilter(f filters, key string) (map[network.Port]bool, error) {
	if !f.has(key) {
		return nil, nil
	}
	out := map[network.Port]bool{}
	for _, v := range f[key] {
		if strings.Contains(v, ":") {
			return nil, model.Invalidf("filter for '%s' should not contain ':': %s", key, v)
		}
		ports, err := network.ParsePortRange(v)
		if err != nil {
			return nil, model.Invalidf("error while looking up for %s %s: %v", key, v, err)
		}
		for p := range ports.All() {
			if len(out) < maxPortRange {
				out[p] = true
			}
		}
	}
	return out, nil
}

// findAncestors looks up the images whose containers are asked for. One that is not here matches by its name.
func (s *Server) findAncestors(r *request, cf *containerFilter) error {
	list, err := s.backend.ListImages(r.ctx())
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, ref := range cf.filters["ancestor"] {
		if img, err := findImage(list, ref); err == nil {
			cf.images[img.ID] = true
		}
	}
	return nil
}

// hasPorts reports whether a container publishes or exposes one of the ports asked for.
func (f *containerFilter) hasPorts(c *Container) bool {
	if f.publish == nil && f.expose == nil {
		return true
	}
	for _, b := range bindings(c) {
		host, ok := network.PortFrom(b.host, b.port.Proto())
		if f.expose[b.port] || ok && b.host != 0 && f.publish[host] {
			return true
		}
	}
	return false
}

// hasAncestor reports whether a container was made from one of the images asked for.
func (f *containerFilter) hasAncestor(c *Container) bool {
	return !f.has("ancestor") || f.images[c.ImageID] || f.exact("ancestor", familiar(c.Image)) || f.exact("ancestor", c.Image)
}

func (f *containerFilter) matches(c *Container) bool {
	_, isTask := c.Labels["com.docker.swarm.task"]
	named := f.names.match(c.Name) || f.names.match("/"+c.Name)
	switch {
	case !named, !f.prefix("id", c.ID), !f.labels("label", c.Labels), !f.exact("status", string(c.State)), !f.exact("health", string(health(c))),
		f.has("is-task") && f.isTask != isTask,
		f.has("exited") && (c.State != container.StateExited || !f.exact("exited", strconv.Itoa(c.ExitCode))),
		!f.hasAncestor(c), !f.hasPorts(c), !f.exact("isolation", "default"),
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
	return false
}
