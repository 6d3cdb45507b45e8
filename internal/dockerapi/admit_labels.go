package dockerapi

import (
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-swarm/skep/internal/agent"
	"github.com/skep-swarm/skep/internal/orchestrate"
)

// admitReserved checks the labels of a service that mean something to skep: what Docker's API has no field for.
func admitReserved(s *swarm.ServiceSpec) error {
	if order, ok := s.Labels[orchestrate.DrainLabel]; ok && !orchestrate.ValidDrainOrder(order) {
		return invalid("label %s=%s: use start-first or stop-first", orchestrate.DrainLabel, order)
	}
	if text, ok := s.Labels[orchestrate.DependsLabel]; ok && !orchestrate.ValidDepends(text) {
		return invalid("label %s=%s: use SERVICE=CONDITION, separated by commas, with the conditions service_started, service_healthy and service_completed_successfully", orchestrate.DependsLabel, text)
	}
	if text, ok := s.Labels[agent.DrainTimeLabel]; ok {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d > agent.MaxDrainTime {
			return invalid("label %s=%s: use a duration from 0s to %s, such as 500ms or 5s", agent.DrainTimeLabel, text, agent.MaxDrainTime)
		}
	}
	return nil
}
