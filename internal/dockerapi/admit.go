package dockerapi

import (
	"regexp"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// Limits of what a user may ask for.
const (
	maxServiceName = 63
	minNanoCPUs    = 1_000_000 // a thousandth of a core
	minMemory      = 4 << 20   // bytes
	// maxReplicas keeps a slip of the keyboard from filling the log.
	maxReplicas = 100_000
)

var dnsName = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)

func invalid(format string, args ...any) error { return rpcErrorf(model.Invalid, format, args...) }

// admit checks a service's spec, with Docker's words where it has them: everything that can be
// said without knowing the swarm. Its errors are Invalid, or Unimplemented for what
// Docker can and skep cannot do yet.
func admit(spec *swarm.ServiceSpec) error {
	checks := []func(*swarm.ServiceSpec) error{
		admitRuntime, admitName, admitMode, admitImage, admitResources, admitRestart, admitPlacement,
		admitContainer, admitMounts, admitHealth, admitUpdates, admitEndpoint, admitNetworks, admitReserved,
	}
	for _, check := range checks {
		if err := check(spec); err != nil {
			return err
		}
	}
	return unsupportedFeature(spec)
}

func admitRuntime(s *swarm.ServiceSpec) error {
	t := &s.TaskTemplate
	switch t.Runtime {
	case swarm.RuntimeContainer, "":
		if t.ContainerSpec == nil || t.PluginSpec != nil || t.NetworkAttachmentSpec != nil {
			return model.Invalidf("mismatched Runtime and *Spec fields")
		}
	case swarm.RuntimePlugin:
		if t.PluginSpec == nil || t.ContainerSpec != nil {
			return model.Invalidf("mismatched Runtime and *Spec fields")
		}
	default:
		return model.Invalidf("unsupported runtime")
	}
	return nil
}

func admitName(s *swarm.ServiceSpec) error {
	switch {
	case s.Name == "":
		return invalid("meta: name must be provided")
	case !dnsName.MatchString(s.Name):
		return invalid("name must be valid as a DNS name component")
	case len(s.Name) > maxServiceName:
		return invalid("name must be 63 characters or fewer")
	}
	return admitLabels("Labels", s.Labels)
}

// admitLabels refuses labels that no client could ask for again.
func admitLabels(where string, labels map[string]string) error {
	if _, ok := labels[""]; ok {
		return invalid("%s: a label needs a name", where)
	}
	return nil
}

func admitMode(s *swarm.ServiceSpec) error {
	m, n := s.Mode, 0
	for _, set := range []bool{m.Replicated != nil, m.Global != nil, m.ReplicatedJob != nil, m.GlobalJob != nil} {
		if set {
			n++
		}
	}
	if n > 1 {
		return model.Invalidf("must specify only one service mode")
	}
	if m.Replicated != nil && m.Replicated.Replicas != nil && *m.Replicated.Replicas > maxReplicas {
		return invalid("Number of replicas must be at most %d", maxReplicas)
	}
	if job := m.ReplicatedJob; job != nil && job.TotalCompletions != nil && *job.TotalCompletions > maxReplicas {
		return invalid("Number of completions must be at most %d", maxReplicas)
	}
	return nil
}

func admitImage(s *swarm.ServiceSpec) error {
	if s.TaskTemplate.Runtime == swarm.RuntimePlugin {
		return nil
	}
	image := containerOf(s).Image
	if image == "" {
		return invalid("ContainerSpec: image reference must be provided")
	}
	if _, err := reference.ParseNormalizedNamed(image); err != nil {
		return invalid("ContainerSpec: %q is not a valid repository/tag", image)
	}
	return nil
}

func admitResources(s *swarm.ServiceSpec) error {
	r := s.TaskTemplate.Resources
	if r == nil {
		return nil
	}
	if l := r.Limits; l != nil {
		if err := admitAmounts(l.NanoCPUs, l.MemoryBytes); err != nil {
			return err
		}
		if l.Pids < 0 {
			return invalid("invalid pids value %d: Must not be negative", l.Pids)
		}
	}
	if v := r.Reservations; v != nil {
		if err := admitAmounts(v.NanoCPUs, v.MemoryBytes); err != nil {
			return err
		}
	}
	if l, v := r.Limits, r.Reservations; l != nil && v != nil {
		// A reservation beyond the limit is room that nobody can use.
		if l.MemoryBytes != 0 && v.MemoryBytes > l.MemoryBytes {
			return invalid("memory reservation of %d bytes is above the limit of %d bytes", v.MemoryBytes, l.MemoryBytes)
		}
	}
	return nil
}

func admitAmounts(nanoCPUs, memory int64) error {
	if nanoCPUs != 0 && nanoCPUs < minNanoCPUs {
		return invalid("invalid cpu value %g: Must be at least %g", float64(nanoCPUs)/1e9, minNanoCPUs/1e9)
	}
	if memory != 0 && memory < minMemory {
		return invalid("invalid memory value %d: Must be at least 4MiB", memory)
	}
	return nil
}

func admitRestart(s *swarm.ServiceSpec) error {
	p := s.TaskTemplate.RestartPolicy
	if p == nil {
		return nil
	}
	known := []swarm.RestartPolicyCondition{"", swarm.RestartPolicyConditionNone, swarm.RestartPolicyConditionOnFailure, swarm.RestartPolicyConditionAny}
	switch {
	case !slices.Contains(known, p.Condition):
		return model.Invalidf("invalid RestartCondition: %q", p.Condition)
	case negative(p.Delay):
		return invalid("TaskSpec: restart-delay cannot be negative")
	case negative(p.Window):
		return invalid("TaskSpec: restart-window cannot be negative")
	}
	return nil
}

func negative(d *time.Duration) bool { return d != nil && *d < 0 }

func admitUpdates(s *swarm.ServiceSpec) error {
	if err := admitUpdate("update", s.UpdateConfig, true); err != nil {
		return err
	}
	return admitUpdate("rollback", s.RollbackConfig, false)
}

func admitUpdate(what string, u *swarm.UpdateConfig, mayRollBack bool) error {
	if u == nil {
		return nil
	}
	actions := []swarm.FailureAction{"", swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue}
	if mayRollBack {
		actions = append(actions, swarm.UpdateFailureActionRollback)
	}
	orders := []swarm.UpdateOrder{"", swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst}
	switch {
	case !slices.Contains(actions, u.FailureAction):
		return model.Invalidf("unrecognized %s failure action %s", what, u.FailureAction)
	case !slices.Contains(orders, u.Order):
		return model.Invalidf("unrecognized %s order %s", what, u.Order)
	case u.Delay < 0:
		return invalid("TaskSpec: %s-delay cannot be negative", what)
	case u.Monitor < 0:
		return invalid("TaskSpec: %s-monitor cannot be negative", what)
	case u.MaxFailureRatio < 0 || u.MaxFailureRatio > 1:
		return invalid("TaskSpec: %s-maxfailureratio cannot be less than 0 or bigger than 1", what)
	}
	return nil
}
