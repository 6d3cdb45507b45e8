package dockerapi

import (
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/agent"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/schedule"
	"github.com/skep-swarm/skep/internal/volumes"
)

var capability = regexp.MustCompile(`^(?i)(CAP_)?[A-Z_]+$`)

func admitPlacement(s *swarm.ServiceSpec) error {
	p := s.TaskTemplate.Placement
	if p == nil {
		return nil
	}
	constraints, err := model.ParseConstraints(p.Constraints)
	if err != nil {
		return invalid("%s", err)
	}
	for _, c := range constraints {
		if err := admitConstraint(c); err != nil {
			return err
		}
	}
	for _, pref := range p.Preferences {
		if pref.Spread == nil || pref.Spread.SpreadDescriptor == "" {
			return model.Invalidf("invalid placement preference: %q", "")
		}
		if !schedule.ValidSpread(pref.Spread.SpreadDescriptor) {
			return invalid("placement preference '%s': tasks are spread over node.labels.NAME or engine.labels.NAME", pref.Spread.SpreadDescriptor)
		}
	}
	return nil
}

// admitConstraint checks what the syntax does not: a constraint that can never be met because of a typing
// error is better refused than left pending.
func admitConstraint(c model.Constraint) error {
	known := []string{"node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch"}
	name := strings.ToLower(c.Key)
	if !slices.Contains(known, name) && !strings.HasPrefix(name, "node.labels.") && !strings.HasPrefix(name, "engine.labels.") {
		return invalid("constraint '%s': key '%s' is none of %s, node.labels.*, engine.labels.*", c, c.Key, strings.Join(known, ", "))
	}
	if name == "node.ip" && !c.ValidIP() {
		return invalid("constraint '%s': value '%s' is neither an address nor a subnet", c, c.Value)
	}
	return nil
}

func admitContainer(s *swarm.ServiceSpec) error {
	c := containerOf(s)
	if err := admitReferences(c); err != nil {
		return err
	}
	if err := agent.CheckPlaceholders(s); err != nil {
		return invalid("%s", err)
	}
	if err := admitLabels("ContainerSpec: Labels", c.Labels); err != nil {
		return err
	}
	for _, e := range c.Env {
		if name, _, _ := strings.Cut(e, "="); name == "" {
			return invalid("ContainerSpec: invalid environment variable: %s", e)
		}
		if strings.ContainsRune(e, 0) {
			return invalid("ContainerSpec: an environment variable must not contain a NUL character")
		}
	}
	for _, name := range slices.Concat(c.CapabilityAdd, c.CapabilityDrop) {
		if !capability.MatchString(name) {
			return invalid("ContainerSpec: invalid capability: %q", name)
		}
	}
	if slices.Contains(c.Groups, "") {
		return invalid("ContainerSpec: a group must have a name or a number")
	}
	for _, u := range c.Ulimits {
		if u == nil || u.Name == "" || u.Hard != -1 && u.Soft > u.Hard {
			return invalid("ContainerSpec: ulimit soft limit must be less than or equal to hard limit")
		}
	}
	if negative(c.StopGracePeriod) {
		return invalid("ContainerSpec: StopGracePeriod cannot be negative")
	}
	if c.Dir != "" && !path.IsAbs(c.Dir) {
		return invalid("ContainerSpec: the working directory '%s' is invalid, it needs to be an absolute path", c.Dir)
	}
	if c.OomScoreAdj < -1000 || c.OomScoreAdj > 1000 {
		return invalid("ContainerSpec: invalid value %d, range for oom score adj is [-1000, 1000]", c.OomScoreAdj)
	}
	return nil
}

func admitMounts(s *swarm.ServiceSpec) error {
	seen := map[string]bool{}
	for _, m := range containerOf(s).Mounts {
		target := path.Clean(m.Target)
		switch {
		case m.Target == "":
			return invalid("ContainerSpec: invalid mount config for type %q: field Target must not be empty", m.Type)
		case !path.IsAbs(target):
			return invalid("ContainerSpec: invalid mount target, must be an absolute path: %s", m.Target)
		case target == "/":
			return invalid("ContainerSpec: invalid mount target: a container's root cannot be a mount point")
		case seen[target]:
			return invalid("ContainerSpec: duplicate mount point: %s", m.Target)
		}
		seen[target] = true
		if err := admitMount(&m); err != nil {
			return err
		}
	}
	return nil
}

func admitMount(m *mount.Mount) error {
	bad := func(format string, args ...any) error {
		return invalid("ContainerSpec: invalid mount config for type %q: %s", m.Type, fmt.Sprintf(format, args...))
	}
	switch m.Type {
	case mount.TypeBind:
		switch {
		case m.Source == "":
			return bad("field Source must not be empty")
		case !path.IsAbs(m.Source):
			return bad("invalid mount path: '%s' mount path must be absolute", m.Source)
		case m.VolumeOptions != nil || m.TmpfsOptions != nil:
			return bad("field VolumeOptions or TmpfsOptions must not be specified")
		case m.BindOptions != nil && m.BindOptions.Propagation != "" && !slices.Contains(mount.Propagations, m.BindOptions.Propagation):
			return bad("invalid propagation mode: %s", m.BindOptions.Propagation)
		}
	case mount.TypeVolume:
		switch {
		case m.BindOptions != nil || m.TmpfsOptions != nil:
			return bad("field BindOptions or TmpfsOptions must not be specified")
		case m.Source != "" && !strings.Contains(m.Source, "{{") && !volumeName.MatchString(m.Source):
			return bad("%q includes invalid characters for a local volume name, only %q are allowed. If you intended to pass a host directory, use absolute path", m.Source, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
		}
		return admitVolume(m.VolumeOptions, bad)
	case mount.TypeTmpfs:
		switch {
		case m.Source != "":
			return bad("field Source must not be specified")
		case m.BindOptions != nil || m.VolumeOptions != nil:
			return bad("field BindOptions or VolumeOptions must not be specified")
		case m.TmpfsOptions != nil && m.TmpfsOptions.SizeBytes < 0:
			return bad("size must not be negative")
		}
	case mount.TypeCluster, mount.TypeImage, mount.TypeNamedPipe: // unsupported.go has its say
	default:
		return model.Invalidf("invalid MountType: %q", m.Type)
	}
	return nil
}

// admitVolume refuses options of volumes that no node can honour: a task could only fail with them.
func admitVolume(o *mount.VolumeOptions, bad func(format string, args ...any) error) error {
	switch {
	case o == nil:
	case o.Subpath != "" && !filepath.IsLocal(o.Subpath):
		return bad("subpath must be a relative path within the volume")
	case o.DriverConfig != nil && (o.DriverConfig.Name == "" || o.DriverConfig.Name == "local"):
		if err := volumes.CheckOptions(o.DriverConfig.Options); err != nil {
			return bad("%v", err)
		}
	}
	return nil
}

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func admitHealth(s *swarm.ServiceSpec) error {
	h := containerOf(s).Healthcheck
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.value != 0 && d.value < time.Millisecond {
			return invalid("ContainerSpec: %s in HealthConfig cannot be less than 1ms", d.name)
		}
	}
	if h.Retries < 0 {
		return invalid("ContainerSpec: Retries in HealthConfig cannot be negative")
	}
	if len(h.Test) > 0 {
		switch h.Test[0] {
		case "NONE", "CMD", "CMD-SHELL", "":
		default:
			return invalid("ContainerSpec: unknown type of health test: %q: use NONE, CMD or CMD-SHELL", h.Test[0])
		}
	}
	return nil
}

func admitEndpoint(s *swarm.ServiceSpec) error {
	ep := s.EndpointSpec
	if ep == nil {
		return nil
	}
	switch ep.Mode {
	case "", swarm.ResolutionModeVIP, swarm.ResolutionModeDNSRR:
	default:
		return model.Invalidf("invalid Mode: %q", ep.Mode)
	}
	type published struct {
		port  uint32
		proto string
	}
	seen := map[published]bool{}
	for _, p := range ep.Ports {
		if err := admitPort(&p); err != nil {
			return err
		}
		if ep.Mode == swarm.ResolutionModeDNSRR && p.PublishMode != swarm.PortConfigPublishModeHost {
			return invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		}
		key := published{p.PublishedPort, string(p.Protocol)}
		if p.PublishedPort != 0 && seen[key] {
			return invalid("EndpointSpec: duplicate published ports provided")
		}
		seen[key] = true
	}
	return nil
}

func admitPort(p *swarm.PortConfig) error {
	switch p.Protocol {
	case "tcp", "udp", "sctp", "":
	default:
		return model.Invalidf("invalid protocol value %q", p.Protocol)
	}
	switch p.PublishMode {
	case swarm.PortConfigPublishModeIngress, swarm.PortConfigPublishModeHost, "":
	default:
		return model.Invalidf("invalid PublishMode: %q", p.PublishMode)
	}
	if p.TargetPort == 0 || p.TargetPort > 65535 {
		return invalid("EndpointSpec: invalid target port %d: must be between 1 and 65535", p.TargetPort)
	}
	if p.PublishedPort > 65535 {
		return invalid("EndpointSpec: invalid published port %d: must be between 1 and 65535", p.PublishedPort)
	}
	return nil
}
