package orchestrate

import (
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// maxChunk bounds the changes of one transaction, so that a batch can hold it.
const maxChunk = 1000

// txns gathers changes in transactions of bounded size. Each is guarded by the service's spec and
// rollout, by the versions of what it writes, and by the nodes that it was decided by.
type txns struct {
	snap  *state.Snapshot
	base  []model.Guard
	list  []model.Txn
	nodes map[model.NodeID]bool // guarded in the last one
}

func newTxns(snap *state.Snapshot, id model.ServiceID, svc *model.Service) *txns {
	x := &txns{snap: snap}
	spec := model.Guard{Key: model.ServiceKey(id), Group: model.GroupSpec}
	if svc != nil {
		spec.Version = svc.SpecVersion
	}
	x.base = []model.Guard{spec}
	if svc != nil && svc.UpdateVersion != 0 {
		x.base = append(x.base, model.Guard{Key: spec.Key, Group: model.GroupUpdate, Version: svc.UpdateVersion})
	}
	return x
}

func (x *txns) empty() bool { return len(x.list) == 0 }

// add makes changes that belong together: they go into the same transaction.
func (x *txns) add(changes ...model.Change) {
	n := len(x.list)
	if n == 0 || len(x.list[n-1].Changes)+len(changes) > maxChunk {
		x.list = append(x.list, model.Txn{Guards: append([]model.Guard(nil), x.base...)})
		x.nodes = nil
		n++
	}
	txn := &x.list[n-1]
	for i := range changes {
		if k, g, ok := state.Writes(&changes[i]); ok {
			v, exists := x.snap.Version(k, g)
			if exists && v == 0 {
				continue // never written yet; version 0 would say that there is no such object
			}
			txn.Guards = append(txn.Guards, model.Guard{Key: k, Group: g, Version: v})
		}
	}
	txn.Changes = append(txn.Changes, changes...)
}

// bulk makes a change a transaction of its own. The numbers of its tasks are guard enough against
// others who make tasks of the service.
func (x *txns) bulk(c model.Change) {
	x.list = append(x.list, model.Txn{Guards: append([]model.Guard(nil), x.base...), Changes: []model.Change{c}})
	x.nodes = nil
}

// because guards the last transaction by a node that its decision rests on.
func (x *txns) because(n *model.Node) {
	if n == nil || x.nodes[n.ID] {
		return
	}
	if x.nodes == nil {
		x.nodes = map[model.NodeID]bool{}
	}
	x.nodes[n.ID] = true
	txn := &x.list[len(x.list)-1]
	txn.Guards = append(txn.Guards,
		model.Guard{Key: model.NodeKey(n.ID), Group: model.GroupSpec, Version: n.SpecVersion},
		model.Guard{Key: model.NodeKey(n.ID), Group: model.GroupStatus, Version: n.StateVer})
}

// while guards the last transaction by a task's observed state.
func (x *txns) while(t *model.Task) {
	txn := &x.list[len(x.list)-1]
	txn.Guards = append(txn.Guards, model.Guard{Key: model.TaskKey(t.ID), Group: model.GroupStatus, Version: t.StatusVer})
}

func desire(t *model.Task, s model.TaskState) model.Change {
	return model.Change{SetTaskDesired: &model.TaskDesiredSet{Task: t.ID, Desired: s, StartAt: t.StartAt}}
}

func put(t *model.Task) model.Change { return model.Change{PutTask: t} }

func remove(t *model.Task) model.Change {
	id := t.ID
	return model.Change{DeleteTask: &id}
}
