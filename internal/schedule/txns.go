package schedule

import (
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// txns gathers one service's changes in transactions of bounded size. Each is guarded by the
// spec that placement was read from, by the spec and state of the nodes that were
// chosen, and by the version of what it writes.
type txns struct {
	svc   *model.Service
	list  []model.Txn
	nodes map[model.NodeID]bool // guarded in the last one
}

func (x *txns) open() *model.Txn {
	if n := len(x.list); n > 0 && len(x.list[n-1].Changes) < maxChunk {
		return &x.list[n-1]
	}
	x.nodes = map[model.NodeID]bool{}
	x.list = append(x.list, model.Txn{Guards: []model.Guard{{Key: model.ServiceKey(x.svc.ID), Group: model.GroupSpec, Version: x.svc.SpecVersion}}})
	return &x.list[len(x.list)-1]
}

func (x *txns) place(j job, n *model.Node, message string, generic []swarm.GenericResource) {
	if j.task == nil {
		t := &j.put.Tasks[j.i]
		t.Node, t.Generic = n.ID, generic
		t.State, t.Message, t.Err = model.StateAssigned, j.put.Text(message), 0
		return
	}
	txn := x.open()
	if !x.nodes[n.ID] {
		x.nodes[n.ID] = true
		txn.Guards = append(txn.Guards,
			model.Guard{Key: model.NodeKey(n.ID), Group: model.GroupSpec, Version: n.SpecVersion},
			model.Guard{Key: model.NodeKey(n.ID), Group: model.GroupStatus, Version: n.StateVer})
	}
	t := j.task
	txn.Guards = append(txn.Guards, model.Guard{Key: model.TaskKey(t.ID), Group: model.GroupPlace, Version: t.PlaceVer})
	txn.Changes = append(txn.Changes, model.Change{SetTaskPlace: &model.TaskPlaceSet{Task: t.ID, Node: n.ID, Message: message, Generic: generic}})
}

// pend gives tasks their reason for waiting; those that have it already are left alone.
func (x *txns) pend(tasks []job, why string) {
	for _, j := range tasks {
		if j.task == nil {
			t := &j.put.Tasks[j.i]
			t.State, t.Message, t.Err = model.StatePending, j.put.Text(msgPending), j.put.Text(why)
			continue
		}
		t := j.task
		if t.State == model.StatePending && t.Err == why {
			continue
		}
		txn := x.open()
		txn.Guards = append(txn.Guards, model.Guard{Key: model.TaskKey(t.ID), Group: model.GroupPlace, Version: t.PlaceVer},
			model.Guard{Key: model.TaskKey(t.ID), Group: model.GroupStatus, Version: t.StatusVer}) // a newer leader may know better
		txn.Changes = append(txn.Changes, model.Change{SetTaskStatus: &model.TaskStatusSet{
			Task: t.ID, State: model.StatePending, Message: msgPending, Err: why}})
	}
}
