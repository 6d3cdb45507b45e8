package runtime

import (
	"regexp"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
)

// MinMemory is the smallest memory limit a container may have, in bytes: below it the kernel cannot even start the
// process reliably. Docker refuses the same.
const MinMemory = 6 << 20

var idPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Validate reports why spec can never work, as a KindInvalid error. It reads nothing but spec.
func (s *Spec) Validate() error {
	if !idPattern.MatchString(s.ID) {
		return Invalid("container ID %q is not 64 hex characters", s.ID)
	}
	c := s.Task.ContainerSpec
	if c == nil {
		return Invalid("task %s has no container spec", s.TaskID)
	}
	if c.Image == "" {
		return Invalid("ContainerSpec: image reference must be provided")
	}
	if len(s.Hostname) > 64 {
		return Invalid("invalid hostname %q: longer than 64 characters", s.Hostname)
	}
	return validateResources(s.Task.Resources)
}

func validateResources(r *swarm.ResourceRequirements) error {
	if r == nil {
		return nil
	}
	var limit swarm.Limit
	if r.Limits != nil {
		limit = *r.Limits
	}
	switch {
	case limit.MemoryBytes < 0 || limit.NanoCPUs < 0 || limit.Pids < -1:
		return Invalid("resource limits must not be negative")
	case limit.MemoryBytes > 0 && limit.MemoryBytes < MinMemory:
		return Invalid("invalid memory value %s: Minimum memory limit allowed is 6MB", units.BytesSize(float64(limit.MemoryBytes)))
	case limit.NanoCPUs > 0 && limit.NanoCPUs < 1e6:
		return Invalid("invalid cpu value %g: Must be at least 0.001", float64(limit.NanoCPUs)/1e9)
	}
	if r.SwapBytes != nil && *r.SwapBytes >= 0 && limit.MemoryBytes == 0 && *r.SwapBytes != 0 {
		return Invalid("swap can only be limited together with memory")
	}
	if r.MemorySwappiness != nil && (*r.MemorySwappiness < -1 || *r.MemorySwappiness > 100) {
		return Invalid("invalid value: %d, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	}
	return nil
}
