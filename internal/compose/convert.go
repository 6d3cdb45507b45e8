package compose

import (
	"cmp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
)

// converter makes API objects of a checked model. What cannot be converted becomes a problem of the
// loader, and the object stays incomplete.
type converter struct {
	l     *loader
	m     *model
	scope scope
}

func (c *converter) fail(service string, keys []string, format string, args ...any) {
	c.l.problems.add(c.m.at("services", service, keys...), "service "+service+": "+format, args...)
}

func (c *converter) stack(name string) *Stack {
	s := &Stack{Name: name}
	services := sub(c.m.value, "services")
	for _, n := range sorted(services) {
		s.Services = append(s.Services, c.service(n, sub(services, n)))
	}
	s.Networks = c.networks(services)
	s.Secrets = c.secrets()
	s.Configs = c.configs()
	s.Volumes = c.volumes(services)
	return s
}

func (c *converter) service(name string, m dict) swarm.ServiceSpec {
	deploy := sub(m, "deploy")
	image := str(m, "image")
	if image == "" {
		c.fail(name, nil, "it has no image: add `image:`; a stack does not build")
	} else if _, err := reference.ParseAnyReference(image); err != nil {
		c.fail(name, []string{"image"}, "invalid image %q: %v", image, err)
	}
	labels := c.scope.labels(textMap(deploy, "labels"))
	labels[labelImage] = image
	if deps := c.dependsOn(name, sub(m, "depends_on")); deps != "" && labels[LabelDependsOn] == "" {
		labels[LabelDependsOn] = deps
	}
	mode := c.mode(name, m, deploy)
	return swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: c.scope.name(name), Labels: labels},
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: c.container(name, m),
			LogDriver:     logDriver(m),
			Resources:     c.resources(name, m, sub(deploy, "resources")),
			RestartPolicy: c.restart(name, m, sub(deploy, "restart_policy")),
			Placement:     c.placement(name, m, sub(deploy, "placement")),
			Networks:      c.attachments(name, m),
		},
		EndpointSpec:   c.endpoint(m, deploy),
		Mode:           mode,
		UpdateConfig:   updateConfig(sub(deploy, "update_config")),
		RollbackConfig: updateConfig(sub(deploy, "rollback_config")),
	}
}

func (c *converter) container(name string, m dict) *swarm.ContainerSpec {
	spec := &swarm.ContainerSpec{
		Image:           tagged(str(m, "image")),
		Labels:          c.scope.labels(textMap(m, "labels")),
		Command:         texts(m, "entrypoint"),
		Args:            texts(m, "command"),
		Hostname:        str(m, "hostname"),
		Env:             environment(sub(m, "environment")),
		Dir:             str(m, "working_dir"),
		User:            text(m["user"]),
		Groups:          texts(m, "group_add"),
		Privileges:      c.privileges(name, m),
		StopSignal:      str(m, "stop_signal"),
		TTY:             flag(m, "tty"),
		OpenStdin:       flag(m, "stdin_open"),
		ReadOnly:        flag(m, "read_only"),
		Mounts:          c.mounts(name, m),
		StopGracePeriod: durationPtr(m, "stop_grace_period"),
		Healthcheck:     c.health(name, sub(m, "healthcheck")),
		Hosts:           hosts(texts(m, "extra_hosts")),
		DNSConfig:       c.dns(name, m),
		Secrets:         c.secretRefs(name, m),
		Configs:         c.configRefs(name, m),
		Isolation:       container.Isolation(str(m, "isolation")),
		Sysctls:         textMap(m, "sysctls"),
		Ulimits:         ulimits(sub(m, "ulimits")),
	}
	if b, ok := m["init"].(bool); ok {
		spec.Init = &b
	}
	spec.OomScoreAdj, _ = number(m, "oom_score_adj")
	spec.CapabilityAdd, spec.CapabilityDrop = capabilities(texts(m, "cap_add"), texts(m, "cap_drop"))
	return spec
}

// tagged is an image's name with its tag, as Docker's client sends it.
func tagged(image string) string {
	ref, err := reference.ParseAnyReference(image)
	if named, ok := ref.(reference.Named); err == nil && ok {
		return reference.FamiliarString(reference.TagNameOnly(named))
	}
	return image
}

func environment(m dict) []string {
	var out []string
	for _, k := range sorted(m) {
		if v, ok := m[k].(string); ok {
			k += "=" + v
		}
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// hosts are lines of a hosts file: address first.
func hosts(list []string) []string {
	var out []string
	for _, h := range list {
		host, ip, _ := strings.Cut(h, ":")
		out = append(out, ip+" "+host)
	}
	return out
}

func ulimits(m dict) []*container.Ulimit {
	var out []*container.Ulimit
	for _, name := range sorted(m) {
		u := &container.Ulimit{Name: name}
		if n, ok := number(m, name); ok {
			u.Soft, u.Hard = n, n
		} else {
			u.Soft, _ = number(sub(m, name), "soft")
			u.Hard, _ = number(sub(m, name), "hard")
		}
		out = append(out, u)
	}
	return out
}

// capabilities: added ones win over dropped ones, ALL over the rest of its list.
func capabilities(add, drop []string) (added, dropped []string) {
	normal := func(in []string) []string {
		var out []string
		for _, x := range in {
			x = strings.ToUpper(strings.TrimSpace(x))
			if x != "ALL" && x != "RESET" && !strings.HasPrefix(x, "CAP_") {
				x = "CAP_" + x
			}
			out = append(out, x)
		}
		if slices.Contains(out, "ALL") {
			return []string{"ALL"}
		}
		slices.Sort(out)
		return slices.DeleteFunc(slices.Compact(out), func(x string) bool { return x == "RESET" })
	}
	added = normal(add)
	dropped = slices.DeleteFunc(normal(drop), func(x string) bool { return slices.Contains(added, x) })
	return added, dropped
}

func logDriver(m dict) *swarm.Driver {
	l := sub(m, "logging")
	if l == nil {
		return nil
	}
	return &swarm.Driver{Name: str(l, "driver"), Options: textMap(l, "options")}
}

// health: what is not set is left to the image.
func (c *converter) health(name string, m dict) *container.HealthConfig {
	if m == nil {
		return nil
	}
	test := texts(m, "test")
	if flag(m, "disable") {
		if len(test) > 0 {
			c.fail(name, []string{"healthcheck", "disable"}, "healthcheck: test and disable exclude each other: keep one")
		}
		return &container.HealthConfig{Test: []string{"NONE"}}
	}
	retries, _ := number(m, "retries")
	return &container.HealthConfig{
		Test: test, Interval: durationOf(m, "interval"), Timeout: durationOf(m, "timeout"), StartPeriod: durationOf(m, "start_period"),
		StartInterval: durationOf(m, "start_interval"), Retries: int(retries),
	}
}

// dependsOn is the value of the label that makes the server hold a service back.
func (c *converter) dependsOn(name string, deps dict) string {
	var out []string
	for _, dep := range sorted(deps) {
		condition := cmp.Or(str(sub(deps, dep), "condition"), "service_started")
		if condition == "service_completed_successfully" {
			switch mode := str(sub(sub(sub(c.m.value, "services"), dep), "deploy"), "mode"); mode {
			case "replicated-job", "global-job":
			default:
				c.l.warn(c.m.at("services", name, "depends_on", dep), name, "depends_on",
					"waits for %s to complete, which is no job: give it deploy.mode replicated-job, or restart_policy condition none or on-failure", dep)
			}
		}
		out = append(out, dep+"="+condition)
	}
	return strings.Join(out, ",")
}
