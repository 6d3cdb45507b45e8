package model

import (
	"net/netip"

	"github.com/moby/moby/api/types/swarm"
)

// Limits of a batch; a proposer splits its work to stay within them.
const (
	MaxBatchChanges = 2000
	MaxBatchBytes   = 1 << 20
)

// Batch is one proposal to the log: a list of transactions, each accepted or refused alone.
type Batch struct {
	// ID is remembered for a while, so that a retry is not applied twice.
	ID [16]byte `cbor:"1,keyasint"`
	// Actor and Reason say who wants this and why ("user alice", "rollout").
	Actor  string `cbor:"2,keyasint"`
	Reason string `cbor:"3,keyasint"`
	// Time is the proposer's clock; cluster time is the maximum of all so far.
	Time Time  `cbor:"4,keyasint"`
	Txns []Txn `cbor:"5,keyasint"`
}

// Txn is a set of changes that happen together or not at all.
type Txn struct {
	Guards  []Guard  `cbor:"1,keyasint,omitempty"`
	Changes []Change `cbor:"2,keyasint"`
}

// Group is the part of an object that has one writer and a version of its own.
type Group uint8

const (
	GroupSpec    Group = 1 // a cluster's, node's or service's spec; an image, network or template as a whole
	GroupDesired Group = 2 // a task's desired state
	GroupPlace   Group = 3 // a task's node and addresses
	GroupStatus  Group = 4 // a task's or node's observed state
	GroupUpdate  Group = 5 // a service's update status
	GroupPorts   Group = 6 // a service's allocated ports and virtual addresses
	GroupDesc    Group = 7 // a node's description
	GroupTasks   Group = 8 // the numbers of a service's tasks: the version is the highest one given
)

// Guard is what a change was computed from: the group of the object at Key was at Version.
// Version 0 means that there was no such object.
type Guard struct {
	Key     Key    `cbor:"1,keyasint"`
	Group   Group  `cbor:"2,keyasint"`
	Version uint64 `cbor:"3,keyasint"`
}

// Change is one change; exactly one field is set.
type Change struct {
	PutCluster     *Cluster          `cbor:"1,keyasint,omitempty"` // the whole object; versions are Apply's
	PutNode        *Node             `cbor:"2,keyasint,omitempty"` // creates a node
	SetNodeSpec    *NodeSpecSet      `cbor:"3,keyasint,omitempty"`
	SetNodeDesc    *NodeDescSet      `cbor:"4,keyasint,omitempty"`
	SetNodeState   *NodeStateSet     `cbor:"5,keyasint,omitempty"`
	SetNodeBlocks  *NodeBlocksSet    `cbor:"6,keyasint,omitempty"`
	DeleteNode     NodeID            `cbor:"7,keyasint,omitempty"`
	NewRevision    *NewRevision      `cbor:"8,keyasint,omitempty"` // creates a service when it has no revision yet
	DeleteService  ServiceID         `cbor:"9,keyasint,omitempty"`
	SetUpdate      *UpdateSet        `cbor:"10,keyasint,omitempty"`
	SetPorts       *PortsSet         `cbor:"11,keyasint,omitempty"`
	PutTask        *Task             `cbor:"12,keyasint,omitempty"` // creates a task
	SetTaskDesired *TaskDesiredSet   `cbor:"13,keyasint,omitempty"`
	SetTaskPlace   *TaskPlaceSet     `cbor:"14,keyasint,omitempty"`
	SetTaskStatus  *TaskStatusSet    `cbor:"15,keyasint,omitempty"` // the manager's: pending reasons, orphaned
	DeleteTask     *TaskID           `cbor:"16,keyasint,omitempty"`
	Report         *Report           `cbor:"17,keyasint,omitempty"` // an agent's
	PutNetwork     *Network          `cbor:"18,keyasint,omitempty"`
	DeleteNetwork  NetworkID         `cbor:"19,keyasint,omitempty"`
	PutImage       *Image            `cbor:"20,keyasint,omitempty"`
	DeleteImage    string            `cbor:"21,keyasint,omitempty"`
	SetNotice      *NoticeSet        `cbor:"22,keyasint,omitempty"`
	PutTasks       *TasksPut         `cbor:"23,keyasint,omitempty"` // creates many tasks of one service
	SetVIPs        *VIPsSet          `cbor:"24,keyasint,omitempty"`
	PutPayload     *Payload          `cbor:"40,keyasint,omitempty"` // creates a secret or a config
	SetPayload     *PayloadSet       `cbor:"41,keyasint,omitempty"`
	DeletePayload  *Key              `cbor:"42,keyasint,omitempty"`
	PutStack       *StackRevisionPut `cbor:"50,keyasint,omitempty"`
	DeleteStack    string            `cbor:"52,keyasint,omitempty"`
}

// Weight is how many changes this one counts for in a batch.
func (c *Change) Weight() int {
	if c.PutTasks != nil {
		return 1 + len(c.PutTasks.Tasks)/4 // a few dozen bytes each
	}
	return 1
}

// NodeSpecSet replaces a node's spec.
type NodeSpecSet struct {
	Node NodeID         `cbor:"1,keyasint"`
	Spec swarm.NodeSpec `cbor:"2,keyasint"`
}

// NodeDescSet replaces what a node says of itself.
type NodeDescSet struct {
	Node        NodeID                `cbor:"1,keyasint"`
	Description swarm.NodeDescription `cbor:"2,keyasint"`
	Routes      []netip.Prefix        `cbor:"3,keyasint,omitempty"`
	PortClashes []PortClash           `cbor:"4,keyasint,omitempty"`
}

// NodeStateSet is what the leader sees of a node.
type NodeStateSet struct {
	Node    NodeID          `cbor:"1,keyasint"`
	State   swarm.NodeState `cbor:"2,keyasint"`
	Message string          `cbor:"3,keyasint,omitempty"`
	Addr    string          `cbor:"4,keyasint,omitempty"`
}

// NodeBlocksSet gives a node its blocks of the gateway pool.
type NodeBlocksSet struct {
	Node   NodeID         `cbor:"1,keyasint"`
	Blocks []netip.Prefix `cbor:"2,keyasint"`
}

// NewRevision is the only way that a service's spec changes, by whomever.
type NewRevision struct {
	Service ServiceID   `cbor:"1,keyasint"`
	Spec    ServiceSpec `cbor:"2,keyasint"`
	// Template is set when the revision needs one that is not stored yet; otherwise
	// TemplateID names the one it shares.
	Template   *Template  `cbor:"3,keyasint,omitempty"`
	TemplateID TemplateID `cbor:"4,keyasint"`
	// Update is the rollout's first status, nil when tasks need no replacement.
	Update *UpdateStatus `cbor:"5,keyasint,omitempty"`
	// Ports as allocated with the revision: dynamic ones may follow by SetPorts.
	Ports []swarm.PortConfig `cbor:"6,keyasint,omitempty"`
	// JobIteration of the run that this revision starts, for jobs.
	JobIteration uint64 `cbor:"7,keyasint,omitempty"`
	// RegistryAuth replaces what nodes pull the image with; nil means nothing.
	RegistryAuth Credentials `cbor:"8,keyasint,omitempty"`
	// Reason is why the revision was made, when the batch's reason does not say it.
	Reason string `cbor:"9,keyasint,omitempty"`
}

// UpdateSet is the state of a rollout.
type UpdateSet struct {
	Service ServiceID     `cbor:"1,keyasint"`
	Update  *UpdateStatus `cbor:"2,keyasint,omitempty"`
}

// NoticeSet is what the planner has to say of a service. It belongs to the group of the update status, and
// leaves its version.
type NoticeSet struct {
	Service ServiceID `cbor:"1,keyasint"`
	Text    string    `cbor:"2,keyasint,omitempty"`
	// Opened is the template whose gate has opened; 0 changes nothing.
	Opened TemplateID `cbor:"3,keyasint,omitempty"`
}

// PortsSet gives a service its allocated ports, or says why it has none.
type PortsSet struct {
	Service ServiceID          `cbor:"1,keyasint"`
	Ports   []swarm.PortConfig `cbor:"2,keyasint,omitempty"`
	Err     string             `cbor:"3,keyasint,omitempty"`
}

// VIPsSet gives a service its virtual addresses, or says why it lacks one. It belongs to the group of the
// published ports.
type VIPsSet struct {
	Service ServiceID `cbor:"1,keyasint"`
	VIPs    []VIP     `cbor:"2,keyasint,omitempty"`
	Err     string    `cbor:"3,keyasint,omitempty"`
}

// MaxTasksPut bounds the tasks of one TasksPut.
const MaxTasksPut = 3000

// TasksPut creates tasks of one service that have no history: they are alike but for what each of Tasks
// says, and get the numbers from First up, in that order.
type TasksPut struct {
	Service      ServiceID  `cbor:"1,keyasint"`
	Template     TemplateID `cbor:"2,keyasint"`
	First        uint64     `cbor:"3,keyasint"`
	Desired      TaskState  `cbor:"4,keyasint"`
	StartAt      Time       `cbor:"5,keyasint,omitempty"`
	JobIteration uint64     `cbor:"6,keyasint,omitempty"`
	// Base is the log index of the state that the nodes were chosen by: the change is stale when the
	// spec, the state or the description of a chosen node changed after it. 0 asks for no check.
	Base  uint64    `cbor:"7,keyasint,omitempty"`
	Texts []string  `cbor:"8,keyasint"`
	Tasks []TaskNew `cbor:"9,keyasint"`
}

// TaskNew is one task of a TasksPut. Message and Err are numbers of Texts.
type TaskNew struct {
	Slot     uint32                  `cbor:"1,keyasint,omitempty"`
	State    TaskState               `cbor:"2,keyasint,omitempty"`
	Message  uint16                  `cbor:"3,keyasint,omitempty"`
	Err      uint16                  `cbor:"4,keyasint,omitempty"`
	Node     NodeID                  `cbor:"5,keyasint,omitempty"`
	Gateway4 netip.Addr              `cbor:"6,keyasint,omitempty"`
	Gateway6 netip.Addr              `cbor:"7,keyasint,omitempty"`
	Generic  []swarm.GenericResource `cbor:"8,keyasint,omitempty"`
	Nets     []TaskNet               `cbor:"9,keyasint,omitempty"`
}

// Text is the number of a text; the first one is empty.
func (p *TasksPut) Text(s string) uint16 {
	if len(p.Texts) == 0 {
		p.Texts = append(p.Texts, "")
	}
	for i := len(p.Texts) - 1; i >= 0; i-- {
		if p.Texts[i] == s {
			return uint16(i)
		}
	}
	if len(p.Texts) > maxTexts {
		return uint16(len(p.Texts) - 1) // as good as any: nobody reads so many reasons
	}
	p.Texts = append(p.Texts, s)
	return uint16(len(p.Texts) - 1)
}

const maxTexts = 1000

// TaskDesiredSet says what should become of a task.
type TaskDesiredSet struct {
	Task    TaskID    `cbor:"1,keyasint"`
	Desired TaskState `cbor:"2,keyasint"`
	StartAt Time      `cbor:"3,keyasint,omitempty"`
}

// TaskPlaceSet assigns a task to a node, with its addresses.
type TaskPlaceSet struct {
	Task     TaskID     `cbor:"1,keyasint"`
	Node     NodeID     `cbor:"2,keyasint"`
	Gateway4 netip.Addr `cbor:"3,keyasint,omitempty"`
	Gateway6 netip.Addr `cbor:"4,keyasint,omitempty"`
	Message  string     `cbor:"5,keyasint,omitempty"`
	// Generic are the generic resources of the node that the task gets.
	Generic []swarm.GenericResource `cbor:"6,keyasint,omitempty"`
	// Nets are its addresses in the overlay networks of its template.
	Nets []TaskNet `cbor:"7,keyasint,omitempty"`
}

// TaskStatusSet is the manager's word on a task: pending with its reason, or orphaned.
type TaskStatusSet struct {
	Task    TaskID    `cbor:"1,keyasint"`
	State   TaskState `cbor:"2,keyasint"`
	Message string    `cbor:"3,keyasint,omitempty"`
	Err     string    `cbor:"4,keyasint,omitempty"`
}

// Report is what a node says of its tasks, in one session, in order.
type Report struct {
	Node    NodeID       `cbor:"1,keyasint"`
	Session uint64       `cbor:"2,keyasint"`
	Seq     uint64       `cbor:"3,keyasint"`
	Tasks   []TaskReport `cbor:"4,keyasint"`
}

// TaskReport is one task's observed state.
type TaskReport struct {
	Task      TaskID             `cbor:"1,keyasint"`
	State     TaskState          `cbor:"2,keyasint"`
	Message   string             `cbor:"3,keyasint,omitempty"`
	Err       string             `cbor:"4,keyasint,omitempty"`
	PID       uint32             `cbor:"5,keyasint,omitempty"`
	ExitCode  int32              `cbor:"6,keyasint,omitempty"`
	HostPorts []swarm.PortConfig `cbor:"7,keyasint,omitempty"`
	Health    Health             `cbor:"10,keyasint,omitempty"`
}

// Outcome is what became of a batch.
type Outcome struct {
	Index uint64 // log index
	Time  Time   // cluster time after it
	// Results has one entry per transaction; nil means accepted.
	Results []error
	// Touched are the objects that changed, in the order of the changes; a key may repeat.
	Touched []Key
	// Repeated is true when the batch had been applied before: nothing changed now.
	Repeated bool
}
