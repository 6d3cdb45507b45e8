// Package state is the replicated state of a swarm: an immutable Snapshot with its
// indexes, the deterministic Apply that turns one snapshot and a batch into the next,
// and the encoding of both.
//
// Every manager applies the same log and so holds the same state. Nothing here may
// depend on anything but the arguments: no clock, no randomness, no I/O but the
// reader and writer of a snapshot. Deciders read a Snapshot and never write one;
// what they want is a list of changes that comes back through the log.
package state

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"sync"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/tidwall/btree"
)

type portKey struct {
	proto string
	port  uint32
}

// taskAt is a task beside its number: the number is compared where it lies in the tree, or every step of a search would
// wait for another task's memory.
type taskAt struct {
	id   model.TaskID
	task *model.Task
}

func at(t *model.Task) taskAt { return taskAt{t.ID, t} }

type svcTemplate struct {
	service  model.ServiceID
	template model.TemplateID
}

// proposal remembers a batch that was applied, for retries.
type proposal struct {
	id      [16]byte
	index   uint64
	results []storedResult
}

// Snapshot is the whole state at one log index. It is immutable and safe for concurrent use; taking
// one costs nothing, for the trees inside are copied on write.
type Snapshot struct {
	// fork guards the trees while they are copied, which marks both copies as shared.
	fork sync.Mutex
	data
}

type data struct {
	index uint64
	time  model.Time

	cluster  *model.Cluster
	nodes    *btree.Map[model.NodeID, *model.Node]
	services *btree.Map[model.ServiceID, *model.Service]
	names    *btree.Map[string, model.ServiceID]
	tasks    *btree.BTreeG[taskAt]
	onNode   *btree.Map[model.NodeID, nodeTasks]
	temps    *btree.Map[model.TemplateID, *model.Template]
	svcTemps *btree.BTreeG[svcTemplate]
	networks *btree.Map[model.NetworkID, *model.Network]
	netNames *btree.Map[string, model.NetworkID]
	netTasks *btree.BTreeG[netTask]    // tasks with addresses, by network
	netSvcs  *btree.BTreeG[netService] // services by network
	netAddrs *btree.Map[uint64, chunk] // by chunkKey
	netUses  *btree.Map[model.NetworkID, netUse]
	netRests *btree.BTreeG[netRest]
	images   *btree.Map[string, *model.Image]
	ports    *btree.BTreeG[portOwner]
	addrs    *addrSet
	rests    *btree.Map[uint32, model.Time] // when addresses were freed, for a while
	restAt   *btree.BTreeG[rest]            // the same by time
	loads    *btree.Map[model.NodeID, Load]
	payloads payloads
	stacks   *btree.Map[string, *model.Stack]
	done     *btree.BTreeG[*proposal]      // by id
	doneAt   *btree.Map[uint64, *proposal] // by index

	lastNode     model.NodeID
	lastService  model.ServiceID
	lastTemplate model.TemplateID
	lastNetwork  model.NetworkID
}

type portOwner struct {
	portKey
	service model.ServiceID
}

// New is the state before the first entry of the log.
func New() *Snapshot {
	o := btree.Options{NoLocks: true}
	return &Snapshot{data: data{
		nodes:    new(btree.Map[model.NodeID, *model.Node]),
		services: new(btree.Map[model.ServiceID, *model.Service]),
		names:    new(btree.Map[string, model.ServiceID]),
		tasks:    btree.NewBTreeGOptions(func(a, b taskAt) bool { return a.id.Less(b.id) }, o),
		onNode:   new(btree.Map[model.NodeID, nodeTasks]),
		temps:    new(btree.Map[model.TemplateID, *model.Template]),
		svcTemps: btree.NewBTreeGOptions(func(a, b svcTemplate) bool {
			if a.service != b.service {
				return a.service < b.service
			}
			return a.template < b.template
		}, o),
		networks: new(btree.Map[model.NetworkID, *model.Network]),
		netNames: new(btree.Map[string, model.NetworkID]),
		netTasks: btree.NewBTreeGOptions(netTask.less, o),
		netSvcs:  btree.NewBTreeGOptions(netService.less, o),
		netAddrs: new(btree.Map[uint64, chunk]),
		netUses:  new(btree.Map[model.NetworkID, netUse]),
		netRests: btree.NewBTreeGOptions(netRest.less, o),
		images:   new(btree.Map[string, *model.Image]),
		ports: btree.NewBTreeGOptions(func(a, b portOwner) bool {
			if a.port != b.port {
				return a.port < b.port
			}
			return a.proto < b.proto
		}, o),
		addrs:  new(addrSet),
		rests:  new(btree.Map[uint32, model.Time]),
		restAt: btree.NewBTreeGOptions(rest.less, o),
		loads:  new(btree.Map[model.NodeID, Load]),
		done: btree.NewBTreeGOptions(func(a, b *proposal) bool {
			return string(a.id[:]) < string(b.id[:])
		}, o),
		doneAt:   new(btree.Map[uint64, *proposal]),
		payloads: newPayloads(),
		stacks:   new(btree.Map[string, *model.Stack]),
	}}
}

// copy makes a snapshot that shares everything until one of the two is written.
func (s *Snapshot) copy() *Snapshot {
	s.fork.Lock()
	defer s.fork.Unlock()
	d := s.data
	d.nodes, d.services, d.names = s.nodes.Copy(), s.services.Copy(), s.names.Copy()
	d.tasks, d.onNode = s.tasks.Copy(), s.onNode.Copy()
	d.temps, d.svcTemps = s.temps.Copy(), s.svcTemps.Copy()
	d.networks, d.netNames, d.images = s.networks.Copy(), s.netNames.Copy(), s.images.Copy()
	d.netTasks, d.netSvcs = s.netTasks.Copy(), s.netSvcs.Copy()
	d.netAddrs, d.netUses, d.netRests = s.netAddrs.Copy(), s.netUses.Copy(), s.netRests.Copy()
	d.ports, d.addrs, d.loads = s.ports.Copy(), s.addrs.copy(), s.loads.Copy()
	d.rests, d.restAt = s.rests.Copy(), s.restAt.Copy()
	d.done, d.doneAt = s.done.Copy(), s.doneAt.Copy()
	d.payloads, d.stacks = s.payloads.copy(), s.stacks.Copy()
	return &Snapshot{data: d}
}

// Index is the log index of the last batch in this snapshot, Time the cluster time after it.
func (s *Snapshot) Index() uint64    { return s.index }
func (s *Snapshot) Time() model.Time { return s.time }

// Cluster is the swarm itself, nil before it was initialised.
func (s *Snapshot) Cluster() *model.Cluster { return s.cluster }

// Node, Service, Task, Template and Image return the object or nil.
func (s *Snapshot) Node(id model.NodeID) *model.Node {
	v, _ := s.nodes.Get(id)
	return v
}

func (s *Snapshot) Service(id model.ServiceID) *model.Service {
	v, _ := s.services.Get(id)
	return v
}

// ServiceByName finds a service by its exact name.
func (s *Snapshot) ServiceByName(name string) *model.Service {
	id, ok := s.names.Get(name)
	if !ok {
		return nil
	}
	return s.Service(id)
}

func (s *Snapshot) Task(id model.TaskID) *model.Task {
	v, _ := s.tasks.Get(taskAt{id: id})
	return v.task
}

func (s *Snapshot) Template(id model.TemplateID) *model.Template {
	v, _ := s.temps.Get(id)
	return v
}

// TemplateByHash finds a stored template of the service with that content.
func (s *Snapshot) TemplateByHash(svc model.ServiceID, hash [32]byte) *model.Template {
	for t := range s.TemplatesOf(svc) {
		if t.Hash == hash {
			return t
		}
	}
	return nil
}

// Network may also be one that users deleted, as long as tasks have addresses in it.
func (s *Snapshot) Network(id model.NetworkID) *model.Network {
	v, _ := s.networks.Get(id)
	return v
}

// NetworkByName finds a network by its exact name.
func (s *Snapshot) NetworkByName(name string) *model.Network {
	id, ok := s.netNames.Get(name)
	if !ok {
		return nil
	}
	return s.Network(id)
}

func (s *Snapshot) Image(name string) *model.Image {
	v, _ := s.images.Get(name)
	return v
}

// Nodes, Services, Templates and Images go over all of a kind in key order.
func (s *Snapshot) Nodes() iter.Seq[*model.Node] {
	return func(yield func(*model.Node) bool) {
		s.nodes.Scan(func(_ model.NodeID, v *model.Node) bool { return yield(v) })
	}
}

func (s *Snapshot) Services() iter.Seq[*model.Service] {
	return func(yield func(*model.Service) bool) {
		s.services.Scan(func(_ model.ServiceID, v *model.Service) bool { return yield(v) })
	}
}

func (s *Snapshot) Templates() iter.Seq[*model.Template] {
	return func(yield func(*model.Template) bool) {
		s.temps.Scan(func(_ model.TemplateID, v *model.Template) bool { return yield(v) })
	}
}

// TemplatesOf goes over the stored templates of one service, oldest first.
func (s *Snapshot) TemplatesOf(svc model.ServiceID) iter.Seq[*model.Template] {
	return func(yield func(*model.Template) bool) {
		s.svcTemps.Ascend(svcTemplate{service: svc}, func(k svcTemplate) bool {
			if k.service != svc {
				return false
			}
			t := s.Template(k.template)
			return t == nil || yield(t)
		})
	}
}

// Networks leaves out those that users deleted.
func (s *Snapshot) Networks() iter.Seq[*model.Network] {
	return func(yield func(*model.Network) bool) {
		s.networks.Scan(func(_ model.NetworkID, v *model.Network) bool { return v.Deleted || yield(v) })
	}
}

func (s *Snapshot) Images() iter.Seq[*model.Image] {
	return func(yield func(*model.Image) bool) {
		s.images.Scan(func(_ string, v *model.Image) bool { return yield(v) })
	}
}

// AllTasks goes over every task, by service and number.
func (s *Snapshot) AllTasks() iter.Seq[*model.Task] {
	return func(yield func(*model.Task) bool) {
		s.tasks.Scan(func(k taskAt) bool { return yield(k.task) })
	}
}

// Tasks goes over one service's tasks, oldest first; the service itself may be gone.
func (s *Snapshot) Tasks(svc model.ServiceID) iter.Seq[*model.Task] {
	return func(yield func(*model.Task) bool) {
		s.tasks.Ascend(taskAt{id: model.TaskID{Service: svc}}, func(k taskAt) bool {
			return k.id.Service == svc && yield(k.task)
		})
	}
}

// NextServiceWithTasks is the lowest service number ≥ from that has tasks, so that services
// that are gone but not yet cleaned up can be found; ok is false at the end.
func (s *Snapshot) NextServiceWithTasks(from model.ServiceID) (id model.ServiceID, ok bool) {
	s.tasks.Ascend(taskAt{id: model.TaskID{Service: from}}, func(k taskAt) bool {
		id, ok = k.id.Service, true
		return false
	})
	return id, ok
}

// NumNodes, NumServices and NumTasks count.
func (s *Snapshot) NumNodes() int    { return s.nodes.Len() }
func (s *Snapshot) NumServices() int { return s.services.Len() }
func (s *Snapshot) NumTasks() int    { return s.tasks.Len() }

// PortOwner is the service that has an ingress port ("tcp", "udp" or "sctp").
func (s *Snapshot) PortOwner(proto string, port uint32) (model.ServiceID, bool) {
	o, ok := s.ports.Get(portOwner{portKey: portKey{proto, port}})
	return o.service, ok
}

// Load is what is reserved on a node.
func (s *Snapshot) Load(node model.NodeID) Load {
	l, _ := s.loads.Get(node)
	return l
}

// Loads goes over the nodes that have tasks, in key order.
func (s *Snapshot) Loads() iter.Seq2[model.NodeID, Load] {
	return func(yield func(model.NodeID, Load) bool) { s.loads.Scan(yield) }
}

// LastNode, LastService, LastTemplate and LastNetwork are the highest numbers given so far.
func (s *Snapshot) LastNode() model.NodeID         { return s.lastNode }
func (s *Snapshot) LastService() model.ServiceID   { return s.lastService }
func (s *Snapshot) LastTemplate() model.TemplateID { return s.lastTemplate }
func (s *Snapshot) LastNetwork() model.NetworkID   { return s.lastNetwork }

func addrKey(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
