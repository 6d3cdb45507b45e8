package dockerapi

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// Docker's defaults, as features of its API: clients are shown them.
const (
	defaultStopGrace     = 10 * time.Second
	defaultRestartDelay  = 5 * time.Second
	defaultUpdateMonitor = 5 * time.Second
	defaultHeartbeat     = 5 * time.Second
	defaultCertExpiry    = 90 * 24 * time.Hour
	defaultTaskHistory   = 5
	defaultSnapshots     = 10000
	defaultSlowFollowers = 500
	defaultElectionTick  = 10
	defaultHeartbeatTick = 1
	defaultDataPathPort  = 4789
	defaultSubnetSize    = 24
	defaultSwarmName     = "default"
	defaultListenAddr    = "0.0.0.0:2377"
	defaultSwarmPort     = 2377
)

// withDefaults is a service spec with every default spelled out (insertDefaults=true).
func withDefaults(spec model.ServiceSpec) (model.ServiceSpec, error) {
	full, err := model.ParseSpec[swarm.ServiceSpec](spec.Raw) // a copy of our own
	if err != nil {
		return full, err
	}
	s := full.Typed
	t := &s.TaskTemplate
	if c := t.ContainerSpec; c != nil {
		if c.StopGracePeriod == nil {
			c.StopGracePeriod = new(defaultStopGrace)
		}
		if c.DNSConfig == nil {
			c.DNSConfig = &swarm.DNSConfig{}
		}
		if c.Isolation == "" {
			c.Isolation = "default"
		}
	}
	if t.Resources == nil {
		t.Resources = &swarm.ResourceRequirements{}
	}
	if t.Resources.Limits == nil {
		t.Resources.Limits = &swarm.Limit{}
	}
	if t.Resources.Reservations == nil {
		t.Resources.Reservations = &swarm.Resources{}
	}
	if t.Placement == nil {
		t.Placement = &swarm.Placement{}
	}
	t.RestartPolicy = restartDefaults(t.RestartPolicy)
	if mode := modeOf(s); mode == modeReplicated || mode == modeGlobal {
		s.UpdateConfig = updateDefaults(s.UpdateConfig)
		s.RollbackConfig = updateDefaults(s.RollbackConfig)
	}
	if s.EndpointSpec == nil {
		s.EndpointSpec = &swarm.EndpointSpec{}
	}
	if s.EndpointSpec.Mode == "" {
		s.EndpointSpec.Mode = swarm.ResolutionModeVIP
	}
	return mergeSpec(spec.Raw, s)
}

func restartDefaults(p *swarm.RestartPolicy) *swarm.RestartPolicy {
	var r swarm.RestartPolicy
	if p != nil {
		r = *p
	}
	if r.Condition == "" {
		r.Condition = swarm.RestartPolicyConditionAny
	}
	if r.Delay == nil {
		r.Delay = new(defaultRestartDelay)
	}
	if r.MaxAttempts == nil {
		r.MaxAttempts = new(uint64(0))
	}
	return &r
}

func updateDefaults(p *swarm.UpdateConfig) *swarm.UpdateConfig {
	u := swarm.UpdateConfig{Parallelism: 1}
	if p != nil {
		u = *p
	}
	if u.FailureAction == "" {
		u.FailureAction = swarm.UpdateFailureActionPause
	}
	if u.Monitor == 0 {
		u.Monitor = defaultUpdateMonitor
	}
	if u.Order == "" {
		u.Order = swarm.UpdateOrderStopFirst
	}
	return &u
}

// DefaultSwarmSpec is a swarm's spec with every field that was left out filled in.
func DefaultSwarmSpec(s swarm.Spec) swarm.Spec {
	return mergeSwarmSpec(swarm.Spec{
		Annotations:   swarm.Annotations{Name: defaultSwarmName, Labels: map[string]string{}},
		Orchestration: swarm.OrchestrationConfig{TaskHistoryRetentionLimit: new(int64(defaultTaskHistory))},
		Raft: swarm.RaftConfig{SnapshotInterval: defaultSnapshots, KeepOldSnapshots: new(uint64(0)),
			LogEntriesForSlowFollowers: defaultSlowFollowers, ElectionTick: defaultElectionTick, HeartbeatTick: defaultHeartbeatTick},
		Dispatcher: swarm.DispatcherConfig{HeartbeatPeriod: defaultHeartbeat},
		CAConfig:   swarm.CAConfig{NodeCertExpiry: defaultCertExpiry},
	}, s)
}

// mergeSwarmSpec is old with every field that s has. As in Docker, a field that is left out keeps
// its value; labels and autolock are always taken.
func mergeSwarmSpec(old, s swarm.Spec) swarm.Spec {
	out := old
	if s.Name != "" {
		out.Name = s.Name
	}
	if s.Labels != nil {
		out.Labels = s.Labels
	}
	if s.Orchestration.TaskHistoryRetentionLimit != nil {
		out.Orchestration = s.Orchestration
	}
	mergeRaft(&out.Raft, s.Raft)
	if s.Dispatcher.HeartbeatPeriod != 0 {
		out.Dispatcher = s.Dispatcher
	}
	if s.CAConfig.NodeCertExpiry != 0 {
		out.CAConfig.NodeCertExpiry = s.CAConfig.NodeCertExpiry
	}
	out.CAConfig.ExternalCAs = s.CAConfig.ExternalCAs
	out.CAConfig.SigningCACert, out.CAConfig.SigningCAKey = s.CAConfig.SigningCACert, s.CAConfig.SigningCAKey
	if s.CAConfig.ForceRotate != 0 {
		out.CAConfig.ForceRotate = s.CAConfig.ForceRotate
	}
	if s.TaskDefaults.LogDriver != nil {
		out.TaskDefaults = s.TaskDefaults
	}
	out.EncryptionConfig = s.EncryptionConfig
	return out
}

func mergeRaft(out *swarm.RaftConfig, s swarm.RaftConfig) {
	if s.SnapshotInterval != 0 {
		out.SnapshotInterval = s.SnapshotInterval
	}
	if s.KeepOldSnapshots != nil {
		out.KeepOldSnapshots = s.KeepOldSnapshots
	}
	if s.LogEntriesForSlowFollowers != 0 {
		out.LogEntriesForSlowFollowers = s.LogEntriesForSlowFollowers
	}
	if s.ElectionTick != 0 {
		out.ElectionTick = s.ElectionTick
	}
	if s.HeartbeatTick != 0 {
		out.HeartbeatTick = s.HeartbeatTick
	}
}
