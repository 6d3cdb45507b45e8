package model

import (
	"net/netip"

	"github.com/moby/moby/api/types/swarm"
)

// Time is cluster time: nanoseconds since the Unix epoch, UTC. It enters with batches and
// never goes back (state keeps the maximum), so windows and delays are computed from it on
// every manager alike.
type Time int64

// Cluster is the one object that says what this swarm is.
type Cluster struct {
	// IDKey makes identifiers (see Namer). It is chosen at init and never changes.
	IDKey [16]byte `cbor:"1,keyasint"`
	// Incarnation rises when the cluster is restored or recovered, so that nodes
	// refuse what a former life of it told them.
	Incarnation  uint64 `cbor:"2,keyasint"`
	FeatureLevel uint32 `cbor:"3,keyasint"`

	Spec        ClusterSpec `cbor:"4,keyasint"`
	SpecVersion uint64      `cbor:"5,keyasint"`
	CreatedAt   Time        `cbor:"6,keyasint"`
	UpdatedAt   Time        `cbor:"7,keyasint"`

	// CACert and CAKey are the cluster's certificate authority, PEM. WorkerSecret and
	// ManagerSecret are the secret parts of the join tokens.
	CACert        []byte `cbor:"8,keyasint"`
	CAKey         []byte `cbor:"9,keyasint"`
	WorkerSecret  string `cbor:"10,keyasint"`
	ManagerSecret string `cbor:"11,keyasint"`

	// DefaultAddrPool and SubnetSize are for overlay networks; GatewayPool (IPv4) and
	// GatewayULA (an IPv6 /48) for the gateway network, of which every node owns blocks.
	DefaultAddrPool []netip.Prefix `cbor:"12,keyasint"`
	SubnetSize      uint32         `cbor:"13,keyasint"`
	DataPathPort    uint32         `cbor:"14,keyasint"`
	GatewayPool     netip.Prefix   `cbor:"15,keyasint"`
	GatewayULA      netip.Prefix   `cbor:"16,keyasint"`
	UnlockKey       []byte         `cbor:"17,keyasint,omitempty"`
	// LossAccepted is when a user said that nodes that are down then are lost, and their tasks
	// shall move although a mass of nodes went down at once.
	LossAccepted Time `cbor:"18,keyasint,omitempty"`
}

// Namer makes and reads this cluster's identifiers.
func (c *Cluster) Namer() Namer { return NewNamer(c.IDKey) }

// Node is a host of the swarm.
type Node struct {
	ID        NodeID `cbor:"1,keyasint"`
	CreatedAt Time   `cbor:"2,keyasint"`
	UpdatedAt Time   `cbor:"3,keyasint"`

	// Spec is the users': name, labels, role, availability.
	Spec        swarm.NodeSpec `cbor:"4,keyasint"`
	SpecVersion uint64         `cbor:"5,keyasint"`

	// Description is what the node says of itself, Observed what the leader sees of it.
	Description swarm.NodeDescription `cbor:"6,keyasint"`
	DescVersion uint64                `cbor:"7,keyasint"`
	State       swarm.NodeState       `cbor:"8,keyasint"`
	Message     string                `cbor:"9,keyasint,omitempty"`
	Addr        string                `cbor:"10,keyasint,omitempty"`
	StateVer    uint64                `cbor:"11,keyasint"`

	// Blocks are the node's /24s of the gateway pool, Gateway6 its /64.
	Blocks   []netip.Prefix `cbor:"12,keyasint"`
	Gateway6 netip.Prefix   `cbor:"13,keyasint"`
	// ManagerAddr is where a manager is reached (host:port); empty for a worker.
	ManagerAddr string `cbor:"14,keyasint,omitempty"`

	// Session and Seq are those of the last report that was applied; a report that is not
	// after them has been superseded and changes nothing.
	Session uint64 `cbor:"15,keyasint,omitempty"`
	Seq     uint64 `cbor:"16,keyasint,omitempty"`
	// Routes are prefixes that the host reaches by other ways than skep; the gateway
	// pool must not overlap them.
	Routes []netip.Prefix `cbor:"17,keyasint,omitempty"`
	// PortClashes says, per published port that this node could not hold, who has it.
	PortClashes []PortClash `cbor:"18,keyasint,omitempty"`
}

// PortClash is a published port that a node cannot serve because something else on the host
// listens there.
type PortClash struct {
	Protocol string `cbor:"1,keyasint"`
	Port     uint16 `cbor:"2,keyasint"`
	Message  string `cbor:"3,keyasint"`
}

// Hostname is the name that users know the node by.
func (n *Node) Hostname() string { return n.Description.Hostname }

// Service is what a user asked for, with its bounded history.
type Service struct {
	ID        ServiceID `cbor:"1,keyasint"`
	CreatedAt Time      `cbor:"2,keyasint"`
	UpdatedAt Time      `cbor:"3,keyasint"`
	// SpecVersion is the log index of the last change of the spec: Docker's Version.Index.
	SpecVersion uint64 `cbor:"4,keyasint"`

	// Revisions is the history, oldest first; the last one is in force. Never empty.
	Revisions []*Revision `cbor:"5,keyasint"`
	// Template is what new tasks are made from, InForceAt when it came into force, which may be longer ago than Revisions tell.
	Template  TemplateID `cbor:"6,keyasint"`
	InForceAt Time       `cbor:"31,keyasint,omitempty"`

	// Update is the state of the last rollout; its times are data, so that a new leader
	// carries on exactly.
	Update        *UpdateStatus `cbor:"7,keyasint,omitempty"`
	UpdateVersion uint64        `cbor:"8,keyasint,omitempty"`

	// Ports is the endpoint as allocated: every published port has its number.
	Ports       []swarm.PortConfig `cbor:"9,keyasint,omitempty"`
	PortVersion uint64             `cbor:"10,keyasint,omitempty"`
	// PortError says why a published port could not be allocated.
	PortError string `cbor:"11,keyasint,omitempty"`

	// LastTask is the highest task number given out so far.
	LastTask uint64 `cbor:"12,keyasint,omitempty"`
	// JobIteration counts the runs of a job.
	JobIteration uint64 `cbor:"13,keyasint,omitempty"`
	JobVersion   uint64 `cbor:"14,keyasint,omitempty"`
	// Notice is what the planner has to say of the service as a whole, for users; usually nothing.
	Notice string `cbor:"15,keyasint,omitempty"`
	// Opened is the last template whose tasks were let go by what the service depends on; 0 for none.
	Opened TemplateID `cbor:"30,keyasint,omitempty"`
	// VIPs are the service's virtual addresses, one for each overlay network of the template in force, in
	// its order; they share PortVersion with Ports. None with endpoint mode dnsrr.
	VIPs []VIP `cbor:"16,keyasint,omitempty"`
	// NetError says why a virtual address could not be allocated.
	NetError string `cbor:"17,keyasint,omitempty"`
}

// Current is the revision in force.
func (s *Service) Current() *Revision { return s.Revisions[len(s.Revisions)-1] }

// Previous is the revision before it, or nil.
func (s *Service) Previous() *Revision {
	if len(s.Revisions) < 2 {
		return nil
	}
	return s.Revisions[len(s.Revisions)-2]
}

// Spec is the typed view of the revision in force.
func (s *Service) Spec() *swarm.ServiceSpec { return s.Current().Spec.Typed }

// Name is the service's name.
func (s *Service) Name() string { return s.Current().Spec.Typed.Name }

// Revision is one version of a service's spec in its numbered history.
type Revision struct {
	Num      uint64      `cbor:"1,keyasint"`
	Spec     ServiceSpec `cbor:"2,keyasint"`
	Template TemplateID  `cbor:"3,keyasint"`
	At       Time        `cbor:"4,keyasint"`
	Actor    string      `cbor:"5,keyasint,omitempty"`
	Reason   string      `cbor:"6,keyasint,omitempty"`
	// RegistryAuth is what its nodes pull the image with, nil for nothing.
	RegistryAuth Credentials `cbor:"7,keyasint,omitempty"`
}

// UpdateStatus is where a rollout stands.
type UpdateStatus struct {
	State       swarm.UpdateState `cbor:"1,keyasint"`
	StartedAt   Time              `cbor:"2,keyasint"`
	CompletedAt Time              `cbor:"3,keyasint,omitempty"`
	Message     string            `cbor:"4,keyasint,omitempty"`
	// LastStep is when the rollout last replaced tasks: the update delay counts from it.
	LastStep Time `cbor:"5,keyasint,omitempty"`
	// ResumedAt is when a user let a paused rollout go on: failures until then do not count.
	ResumedAt Time `cbor:"6,keyasint,omitempty"`
	// Late is a rollout that no revision began: it brings tasks that an earlier one had to leave out to the template in
	// force. Their failures neither pause it nor turn it back.
	Late bool `cbor:"7,keyasint,omitempty"`
}

// Template is the part of a service's spec that tasks are made from: a change of it replaces
// them, a change of anything else (replicas, labels, placement, restart and update policy,
// ingress ports) does not. It is stored once and referred to by tasks. Immutable.
type Template struct {
	ID      TemplateID `cbor:"1,keyasint"`
	Service ServiceID  `cbor:"2,keyasint"`
	// ServiceName is kept here because tasks outlive their service.
	ServiceName string `cbor:"3,keyasint"`
	// Hash identifies the content; the same content is the same template.
	Hash [32]byte `cbor:"4,keyasint"`
	Task TaskSpec `cbor:"5,keyasint"`
	// HostPorts are the published ports in host mode.
	HostPorts []swarm.PortConfig `cbor:"6,keyasint,omitempty"`
	// ImageDigest is the digest that the image's name meant when the revision was made;
	// empty when no one knew it.
	ImageDigest string `cbor:"7,keyasint,omitempty"`
	// ServiceLabels as Docker's clients filter tasks by.
	ServiceLabels map[string]string `cbor:"8,keyasint,omitempty"`
	// Nets are the networks of the task spec by their numbers, in its order; see SetNetworks.
	Nets []NetAttach `cbor:"9,keyasint,omitempty"`
	// NetMode is NetHost or NetNone for tasks that are in no network of the swarm, not even the gateway's.
	NetMode NetMode `cbor:"10,keyasint,omitempty"`
}

// Task is one replica's life on one node.
type Task struct {
	ID       TaskID     `cbor:"1,keyasint"`
	Slot     uint32     `cbor:"2,keyasint,omitempty"` // 0 for global services
	Template TemplateID `cbor:"3,keyasint"`

	// Placement group, written by the manager's pass up to assigned.
	Node     NodeID     `cbor:"4,keyasint,omitempty"`
	Gateway4 netip.Addr `cbor:"5,keyasint,omitempty"`
	Gateway6 netip.Addr `cbor:"6,keyasint,omitempty"`
	PlaceVer uint64     `cbor:"7,keyasint"`

	// Desired group.
	Desired    TaskState `cbor:"8,keyasint"`
	DesiredVer uint64    `cbor:"9,keyasint"`
	// StartAt holds a restarted task back (desired ready) until its delay is over.
	StartAt Time `cbor:"10,keyasint,omitempty"`

	// Status group: new … assigned by the manager, later states by the agent.
	State     TaskState `cbor:"11,keyasint"`
	Message   string    `cbor:"12,keyasint,omitempty"`
	Err       string    `cbor:"13,keyasint,omitempty"`
	StatusAt  Time      `cbor:"14,keyasint"`
	StatusVer uint64    `cbor:"15,keyasint"`
	PID       uint32    `cbor:"16,keyasint,omitempty"`
	ExitCode  int32     `cbor:"17,keyasint,omitempty"`
	// RunningSince is when the task was first reported running.
	RunningSince Time `cbor:"18,keyasint,omitempty"`
	// HostPorts are host-mode ports as the agent bound them.
	HostPorts []swarm.PortConfig `cbor:"19,keyasint,omitempty"`

	CreatedAt Time `cbor:"20,keyasint"`
	// Restarts are the times of the restarts in this slot that still count against the
	// policy's max attempts; inherited by the replacement of a failed task.
	Restarts []Time `cbor:"21,keyasint,omitempty"`
	// JobIteration is the run of the job that this task belongs to.
	JobIteration uint64 `cbor:"22,keyasint,omitempty"`
	// Generic are the generic resources that the task was given on its node; placement group.
	Generic []swarm.GenericResource `cbor:"23,keyasint,omitempty"`
	// Nets are the task's addresses in the overlay networks of its template, in its order; placement group.
	Nets []TaskNet `cbor:"24,keyasint,omitempty"`
	// Health is what its health check says; status group.
	Health Health `cbor:"30,keyasint,omitempty"`
}

// Image is what a name means in this cluster when no registry says otherwise.
type Image struct {
	// Name is fully qualified with its tag: docker.io/library/nginx:latest.
	Name      string           `cbor:"1,keyasint"`
	Digest    string           `cbor:"2,keyasint"`
	Platforms []swarm.Platform `cbor:"3,keyasint,omitempty"`
	At        Time             `cbor:"4,keyasint"`
	Version   uint64           `cbor:"5,keyasint"`
}
