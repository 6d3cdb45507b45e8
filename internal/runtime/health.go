package runtime

import (
	"time"

	"github.com/moby/moby/api/types/container"
)

// Docker's defaults of a health check.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
)

// Healthcheck is the check in force when a task's spec asks for one and its image for another, either may be nil: what the
// spec leaves out is the image's, what both leave out is Docker's default. It returns nil when there is none to do.
func Healthcheck(spec, image *container.HealthConfig) *container.HealthConfig {
	var h container.HealthConfig
	if image != nil {
		h = *image
	}
	if spec != nil {
		if len(spec.Test) > 0 {
			h.Test = spec.Test
		}
		take(&h.Interval, spec.Interval)
		take(&h.Timeout, spec.Timeout)
		take(&h.StartPeriod, spec.StartPeriod)
		take(&h.StartInterval, spec.StartInterval)
		take(&h.Retries, spec.Retries)
	}
	if len(h.Test) < 2 || h.Test[0] != "CMD" && h.Test[0] != "CMD-SHELL" {
		return nil // none, or NONE
	}
	fill(&h.Interval, healthInterval)
	fill(&h.Timeout, healthTimeout)
	fill(&h.StartInterval, healthStartInterval)
	fill(&h.Retries, healthRetries)
	h.StartPeriod = max(h.StartPeriod, 0)
	return &h
}

func take[T comparable](field *T, value T) {
	var zero T
	if value != zero {
		*field = value
	}
}

func fill[T int | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}
