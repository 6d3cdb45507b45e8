package state

import (
	"fmt"

	"github.com/skep-swarm/skep/internal/model"
)

// rememberedBatches is how many applied proposals are known by their ID, so that a forwarder
// may retry one without applying it twice.
const rememberedBatches = 1024

// Apply makes the next snapshot from a batch at a log index. It is deterministic, never
// fails as a whole, and leaves s as it is. Each transaction is accepted (nil in
// Results) or refused with an error of kind Stale, Conflict, NotFound, Invalid or
// Exhausted, and a refused one changes nothing.
func (s *Snapshot) Apply(index uint64, b *model.Batch) (*Snapshot, *model.Outcome) {
	next := s.copy()
	next.index = index
	if p, ok := s.done.Get(&proposal{id: b.ID}); ok && b.ID != ([16]byte{}) {
		return next, &model.Outcome{Index: p.index, Time: s.time, Results: restoreResults(p.results), Repeated: true}
	}
	next.time = max(s.time, b.Time)
	out := &model.Outcome{Index: index, Time: next.time, Results: make([]error, len(b.Txns))}
	w := &writer{s: next, version: index, now: next.time, batch: b}
	for i := range b.Txns {
		out.Results[i] = w.txn(&b.Txns[i])
	}
	out.Touched = w.touched
	w.s.remember(b.ID, index, out.Results)
	return w.s, out
}

// With is a working copy with the changes made: the same code as Apply, without guards. Versions
// keep their values, because nothing has been written to the log yet. The first change
// that cannot be made ends it with its error.
func (s *Snapshot) With(changes ...model.Change) (*Snapshot, error) {
	w := &writer{s: s.copy(), keepVersions: true, now: s.time, batch: &model.Batch{}}
	for i := range changes {
		if err := w.change(&changes[i]); err != nil {
			return nil, fmt.Errorf("working copy: %w", err)
		}
	}
	return w.s, nil
}

func (s *Snapshot) remember(id [16]byte, index uint64, results []error) {
	if id == ([16]byte{}) {
		return
	}
	p := &proposal{id: id, index: index, results: storeResults(results)}
	s.done.Set(p)
	s.doneAt.Set(index, p)
	for s.doneAt.Len() > rememberedBatches {
		_, old, _ := s.doneAt.PopMin()
		s.done.Delete(old)
	}
}

// writer changes a snapshot that nobody else has seen yet.
type writer struct {
	s            *Snapshot
	version      uint64
	keepVersions bool
	now          model.Time
	batch        *model.Batch
	touched      []model.Key
	// template is that of the last task that was booked, templateShare what it reserves.
	template      *model.Template
	templateShare share
}

func (w *writer) touch(k model.Key) { w.touched = append(w.touched, k) }

// stamp is the version of a group that is written now.
func (w *writer) stamp(old uint64) uint64 {
	if w.keepVersions {
		return old
	}
	return w.version
}

// txn makes one transaction or nothing of it. A single change checks before it writes; several are
// made on a copy that takes the place of the snapshot when all went well.
func (w *writer) txn(t *model.Txn) error {
	for i := range t.Guards {
		if err := w.s.check(&t.Guards[i]); err != nil {
			return err
		}
	}
	if len(t.Changes) == 1 {
		return w.change(&t.Changes[0])
	}
	before, touched := w.s, len(w.touched)
	w.s = before.copy()
	for i := range t.Changes {
		if err := w.change(&t.Changes[i]); err != nil {
			w.s, w.touched = before, w.touched[:touched]
			return err
		}
	}
	return nil
}

// check compares a guard with the state.
func (s *Snapshot) check(g *model.Guard) error {
	have, exists := s.Version(g.Key, g.Group)
	switch {
	case g.Version == 0 && exists:
		return model.Conflictf("%s %s exists", g.Key.Kind, s.name(g.Key))
	case g.Version != 0 && !exists:
		return model.Stalef("%s %s is gone", g.Key.Kind, s.name(g.Key))
	case have != g.Version:
		return model.Stalef("update out of sequence")
	}
	return nil
}

func (s *Snapshot) name(k model.Key) string {
	if s.cluster == nil {
		return fmt.Sprint(k.A)
	}
	return s.cluster.Namer().ID(k)
}

// Version is the version of one group of an object, and whether there is the object.
func (s *Snapshot) Version(k model.Key, g model.Group) (uint64, bool) {
	switch k.Kind {
	case model.KindCluster:
		if s.cluster != nil {
			return s.cluster.SpecVersion, true
		}
	case model.KindNode:
		if n := s.Node(k.Node()); n != nil {
			return nodeVersion(n, g), true
		}
	case model.KindService:
		if v := s.Service(k.Service()); v != nil {
			return serviceVersion(v, g), true
		}
	case model.KindTask:
		if t := s.Task(k.Task()); t != nil {
			return taskVersion(t, g), true
		}
	case model.KindTemplate:
		if s.Template(model.TemplateID(k.A)) != nil {
			return 1, true
		}
	case model.KindNetwork:
		if n := s.Network(model.NetworkID(k.A)); n != nil && !n.Deleted {
			return n.Version, true
		}
	case model.KindSecret, model.KindConfig:
		if p := s.Payload(k); p != nil {
			return p.Version, true
		}
	case model.KindStack:
		if v := s.Stack(k.Name); v != nil {
			return v.Version, true
		}
	case model.KindImage:
		if i := s.Image(k.Name); i != nil {
			return i.Version, true
		}
	}
	return 0, false
}

func nodeVersion(n *model.Node, g model.Group) uint64 {
	switch g {
	case model.GroupStatus:
		return n.StateVer
	case model.GroupDesc:
		return n.DescVersion
	}
	return n.SpecVersion
}

func serviceVersion(v *model.Service, g model.Group) uint64 {
	switch g {
	case model.GroupUpdate:
		return v.UpdateVersion
	case model.GroupPorts:
		return v.PortVersion
	case model.GroupTasks:
		return v.LastTask
	}
	return v.SpecVersion
}

func taskVersion(t *model.Task, g model.Group) uint64 {
	switch g {
	case model.GroupDesired:
		return t.DesiredVer
	case model.GroupStatus:
		return t.StatusVer
	}
	return t.PlaceVer
}

// Writes is the object and group that a change writes, for guards: the group must still be at
// the version that the change was computed from. ok is false for reports, which carry
// their session and sequence instead.
func Writes(c *model.Change) (k model.Key, g model.Group, ok bool) {
	switch {
	case c.PutCluster != nil:
		return model.ClusterKey(), model.GroupSpec, true
	case c.PutNode != nil:
		return model.NodeKey(c.PutNode.ID), model.GroupSpec, true
	case c.SetNodeSpec != nil:
		return model.NodeKey(c.SetNodeSpec.Node), model.GroupSpec, true
	case c.SetNodeDesc != nil:
		return model.NodeKey(c.SetNodeDesc.Node), model.GroupDesc, true
	case c.SetNodeState != nil:
		return model.NodeKey(c.SetNodeState.Node), model.GroupStatus, true
	case c.SetNodeBlocks != nil:
		return model.NodeKey(c.SetNodeBlocks.Node), model.GroupSpec, true
	case c.DeleteNode != 0:
		return model.NodeKey(c.DeleteNode), model.GroupSpec, true
	case c.NewRevision != nil:
		return model.ServiceKey(c.NewRevision.Service), model.GroupSpec, true
	case c.DeleteService != 0:
		return model.ServiceKey(c.DeleteService), model.GroupSpec, true
	case c.SetUpdate != nil:
		return model.ServiceKey(c.SetUpdate.Service), model.GroupUpdate, true
	case c.SetPorts != nil:
		return model.ServiceKey(c.SetPorts.Service), model.GroupPorts, true
	case c.PutTask != nil:
		return model.TaskKey(c.PutTask.ID), model.GroupDesired, true
	case c.SetTaskDesired != nil:
		return model.TaskKey(c.SetTaskDesired.Task), model.GroupDesired, true
	case c.SetTaskPlace != nil:
		return model.TaskKey(c.SetTaskPlace.Task), model.GroupPlace, true
	case c.SetTaskStatus != nil:
		return model.TaskKey(c.SetTaskStatus.Task), model.GroupStatus, true
	case c.DeleteTask != nil:
		return model.TaskKey(*c.DeleteTask), model.GroupDesired, true
	case c.PutNetwork != nil:
		return model.NetworkKey(c.PutNetwork.ID), model.GroupSpec, true
	case c.DeleteNetwork != 0:
		return model.NetworkKey(c.DeleteNetwork), model.GroupSpec, true
	case c.PutImage != nil:
		return model.ImageKey(c.PutImage.Name), model.GroupSpec, true
	case c.DeleteImage != "":
		return model.ImageKey(c.DeleteImage), model.GroupSpec, true
	case c.PutTasks != nil:
		return model.ServiceKey(c.PutTasks.Service), model.GroupTasks, true
	case c.SetVIPs != nil:
		return model.ServiceKey(c.SetVIPs.Service), model.GroupPorts, true
	case c.PutPayload != nil:
		return c.PutPayload.Key(), model.GroupSpec, true
	case c.SetPayload != nil:
		return c.SetPayload.Payload, model.GroupSpec, true
	case c.DeletePayload != nil:
		return *c.DeletePayload, model.GroupSpec, true
	case c.PutStack != nil:
		return model.StackKey(c.PutStack.Stack), model.GroupSpec, true
	case c.DeleteStack != "":
		return model.StackKey(c.DeleteStack), model.GroupSpec, true
	case c.SetNotice != nil:
		return model.ServiceKey(c.SetNotice.Service), model.GroupUpdate, true
	}
	return model.Key{}, 0, false
}
