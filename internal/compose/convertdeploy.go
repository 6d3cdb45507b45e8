package compose

import (
	"cmp"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// durationOf reads a duration that canon has checked.
func durationOf(m dict, key string) time.Duration {
	d, _ := time.ParseDuration(str(m, key))
	return d
}

func durationPtr(m dict, key string) *time.Duration {
	if str(m, key) == "" {
		return nil
	}
	d := durationOf(m, key)
	return &d
}

func (c *converter) unsigned(name string, m dict, key string, at ...string) *uint64 {
	n, ok := number(m, key)
	if !ok {
		return nil
	}
	if n < 0 {
		c.fail(name, append(at, key), "%s must be 0 or more", key)
		return nil
	}
	u := uint64(n)
	return &u
}

func (c *converter) mode(name string, m, deploy dict) swarm.ServiceMode {
	replicas := c.unsigned(name, deploy, "replicas", "deploy")
	if s, ok := number(m, "scale"); ok && replicas == nil {
		replicas = c.unsigned(name, m, "scale")
	} else if ok && replicas != nil && uint64(s) != *replicas {
		c.fail(name, []string{"scale"}, "scale and deploy.replicas differ: keep one")
	}
	mode := str(deploy, "mode")
	if strings.HasPrefix(mode, "global") && replicas != nil {
		c.fail(name, []string{"deploy", "replicas"}, "replicas can only be used with replicated or replicated-job mode: remove replicas or mode %s", mode)
	}
	switch mode {
	case "global":
		return swarm.ServiceMode{Global: &swarm.GlobalService{}}
	case "global-job":
		return swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}
	case "replicated-job":
		return swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: replicas, TotalCompletions: replicas}}
	case "replicated", "":
	default:
		c.fail(name, []string{"deploy", "mode"}, "unknown mode %q: use replicated, global, replicated-job or global-job", mode)
	}
	return swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: replicas}}
}

func updateConfig(m dict) *swarm.UpdateConfig {
	if m == nil {
		return nil
	}
	u := &swarm.UpdateConfig{
		Parallelism: 1, Delay: durationOf(m, "delay"), FailureAction: swarm.FailureAction(str(m, "failure_action")),
		Monitor: durationOf(m, "monitor"), Order: swarm.UpdateOrder(str(m, "order")),
	}
	if n, ok := number(m, "parallelism"); ok && n >= 0 {
		u.Parallelism = uint64(n)
	}
	switch r := m["max_failure_ratio"].(type) {
	case float64:
		u.MaxFailureRatio = float32(r)
	case int:
		u.MaxFailureRatio = float32(r)
	}
	return u
}

// restart: deploy.restart_policy, else the container's own `restart` in its terms.
func (c *converter) restart(name string, m, policy dict) *swarm.RestartPolicy {
	if policy != nil {
		return &swarm.RestartPolicy{
			Condition: swarm.RestartPolicyCondition(str(policy, "condition")), Delay: durationPtr(policy, "delay"),
			MaxAttempts: c.unsigned(name, policy, "max_attempts", "deploy", "restart_policy"), Window: durationPtr(policy, "window"),
		}
	}
	restart := str(m, "restart")
	word, count, counted := strings.Cut(restart, ":")
	out := &swarm.RestartPolicy{}
	switch word {
	case "", "no":
		if word == "" && counted {
			c.fail(name, []string{"restart"}, "invalid restart policy %q: use no, always, unless-stopped or on-failure[:N]", restart)
		}
		return nil
	case "always", "unless-stopped":
		out.Condition = swarm.RestartPolicyConditionAny
	case "on-failure":
		out.Condition = swarm.RestartPolicyConditionOnFailure
	default:
		c.fail(name, []string{"restart"}, "invalid restart policy %q: use no, always, unless-stopped or on-failure[:N]", restart)
		return nil
	}
	if count != "" {
		n, err := strconv.ParseUint(count, 10, 32)
		if err != nil {
			c.fail(name, []string{"restart"}, "invalid restart policy %q: the number of attempts must be a whole number", restart)
		}
		if n > 0 {
			out.MaxAttempts = &n
		}
	}
	return out
}

func (c *converter) placement(name string, m, placement dict) *swarm.Placement {
	out := &swarm.Placement{Constraints: texts(placement, "constraints")}
	for _, v := range list(placement, "preferences") {
		p, _ := v.(dict)
		out.Preferences = append(out.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: str(p, "spread")}})
	}
	if n := c.unsigned(name, placement, "max_replicas_per_node", "deploy", "placement"); n != nil {
		out.MaxReplicas = *n
	}
	if p := str(m, "platform"); p != "" {
		os, arch, ok := strings.Cut(p, "/")
		if !ok || os == "" || arch == "" {
			c.fail(name, []string{"platform"}, "platform %q is not OS/ARCHITECTURE, for example linux/arm64", p)
		}
		arch, _, _ = strings.Cut(arch, "/") // a swarm does not tell variants apart
		out.Platforms = []swarm.Platform{{OS: os, Architecture: arch}}
	}
	return out
}

// resources: deploy.resources, and where it is silent the limits on the service itself.
func (c *converter) resources(name string, m, res dict) *swarm.ResourceRequirements {
	out := &swarm.ResourceRequirements{}
	at := func(keys ...string) []string { return append([]string{"deploy", "resources"}, keys...) }
	if l := sub(res, "limits"); l != nil {
		out.Limits = &swarm.Limit{NanoCPUs: c.cpus(name, l, "cpus", at("limits", "cpus")), MemoryBytes: bytesOf(l, "memory")}
		out.Limits.Pids, _ = number(l, "pids")
	}
	if r := sub(res, "reservations"); r != nil {
		out.Reservations = &swarm.Resources{NanoCPUs: c.cpus(name, r, "cpus", at("reservations", "cpus")), MemoryBytes: bytesOf(r, "memory")}
		for _, v := range list(r, "generic_resources") {
			g, _ := v.(dict)
			var one swarm.GenericResource
			if d := sub(g, "discrete_resource_spec"); d != nil {
				n, _ := number(d, "value")
				one.DiscreteResourceSpec = &swarm.DiscreteGenericResource{Kind: str(d, "kind"), Value: n}
			}
			out.Reservations.GenericResources = append(out.Reservations.GenericResources, one)
		}
	}
	c.containerLimits(name, m, out)
	return out
}

func (c *converter) containerLimits(name string, m dict, out *swarm.ResourceRequirements) {
	limit := func() *swarm.Limit {
		if out.Limits == nil {
			out.Limits = &swarm.Limit{}
		}
		return out.Limits
	}
	if n := bytesOf(m, "mem_limit"); n > 0 && limit().MemoryBytes == 0 {
		limit().MemoryBytes = n
	}
	if n := c.cpus(name, m, "cpus", []string{"cpus"}); n > 0 && limit().NanoCPUs == 0 {
		limit().NanoCPUs = n
	}
	if n, ok := number(m, "pids_limit"); ok && n > 0 && limit().Pids == 0 {
		limit().Pids = n
	}
	if n := bytesOf(m, "mem_reservation"); n > 0 {
		if out.Reservations == nil {
			out.Reservations = &swarm.Resources{}
		}
		out.Reservations.MemoryBytes = cmp.Or(out.Reservations.MemoryBytes, n)
	}
	if swap := text(m["memswap_limit"]); swap != "" {
		n := int64(-1)
		if swap != "-1" {
			n = bytesOf(m, "memswap_limit") - limit().MemoryBytes // Compose counts memory and swap together
			if limit().MemoryBytes == 0 || n < 0 {
				c.fail(name, []string{"memswap_limit"}, "memswap_limit counts memory and swap together, so it needs a memory limit that is not larger")
			}
		}
		out.SwapBytes = &n
	}
	if n, ok := number(m, "mem_swappiness"); ok {
		out.MemorySwappiness = &n
	}
}

func bytesOf(m dict, key string) int64 {
	n, _ := strconv.ParseInt(text(m[key]), 10, 64)
	return n
}

func (c *converter) cpus(name string, m dict, key string, at []string) int64 {
	s := text(m[key])
	if s == "" {
		return 0
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok || len(s) > 32 {
		c.fail(name, at, "%q is no number of CPUs: write for example 0.5", s)
		return 0
	}
	nano := r.Mul(r, big.NewRat(1e9, 1))
	if !nano.IsInt() || !nano.Num().IsInt64() {
		c.fail(name, at, "%q CPUs is too precise: use up to nine digits after the point", s)
		return 0
	}
	return nano.Num().Int64()
}

func (c *converter) endpoint(m, deploy dict) *swarm.EndpointSpec {
	out := &swarm.EndpointSpec{Mode: swarm.ResolutionMode(strings.ToLower(str(deploy, "endpoint_mode")))}
	for _, v := range list(m, "ports") {
		p, _ := v.(dict)
		target, _ := number(p, "target")
		host, _ := number(p, "published")
		out.Ports = append(out.Ports, swarm.PortConfig{
			Name: str(p, "name"), Protocol: network.IPProtocol(str(p, "protocol")), TargetPort: uint32(target), PublishedPort: uint32(host),
			PublishMode: swarm.PortConfigPublishMode(str(p, "mode")),
		})
	}
	slices.SortStableFunc(out.Ports, func(a, b swarm.PortConfig) int { return cmp.Compare(a.PublishedPort, b.PublishedPort) })
	return out
}

func (c *converter) dns(name string, m dict) *swarm.DNSConfig {
	servers, search, options := texts(m, "dns"), texts(m, "dns_search"), texts(m, "dns_opt")
	if m["dns"] == nil && m["dns_search"] == nil && m["dns_opt"] == nil {
		return nil
	}
	out := &swarm.DNSConfig{Search: search, Options: options}
	for _, s := range servers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			c.fail(name, []string{"dns"}, "dns %q is no address: a name server is given by its IP address", s)
			continue
		}
		out.Nameservers = append(out.Nameservers, a)
	}
	return out
}
