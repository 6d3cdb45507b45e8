package state

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/skep-swarm/skep/internal/model"
)

// listed is a task in the list of its node. What it was given there lies beside it, so that the address that was given
// last is found without going to the tasks.
type listed struct {
	task     model.TaskID
	placeVer uint64
	addr     uint32 // gateway address, 0 for none
}

func listedOf(t *model.Task) listed {
	l := listed{task: t.ID, placeVer: t.PlaceVer}
	if t.Gateway4.IsValid() {
		l.addr = addrKey(t.Gateway4)
	}
	return l
}

// nodeTasks are the tasks of a node in the order of their numbers, immutable like all in a snapshot. New tasks mostly come
// last, so there is room for some behind the end: the first version that is made longer takes it, without copying. A
// version never looks behind its own end. The zero value is an empty list.
//
// In one tree of all nodes' tasks, every task of a service that spreads over the nodes copied another leaf of
// dozens of tasks: half of what a commit cost.
type nodeTasks struct {
	list []listed
	used *atomic.Int64 // how much of list's array some version has taken
}

func (n nodeTasks) find(id model.TaskID) (int, bool) {
	return slices.BinarySearchFunc(n.list, id, func(l listed, id model.TaskID) int {
		switch {
		case l.task.Less(id):
			return -1
		case l.task == id:
			return 0
		}
		return 1
	})
}

// with is the list with a task added or replaced.
func (n nodeTasks) with(l listed) nodeTasks {
	end := len(n.list)
	if end > 0 && !n.list[end-1].task.Less(l.task) {
		i, have := n.find(l.task)
		if have {
			n = n.moved(end)
			n.list[i] = l
			return n
		}
		n = n.moved(end + 1)
		n.list = slices.Insert(n.list, i, l)
		return n
	}
	if end == cap(n.list) || !n.used.CompareAndSwap(int64(end), int64(end+1)) {
		n = n.moved(end + 1)
	}
	n.list = append(n.list, l)
	return n
}

// without is the list without a task.
func (n nodeTasks) without(id model.TaskID) nodeTasks {
	i, have := n.find(id)
	if !have {
		return n
	}
	n = n.moved(len(n.list))
	n.list = slices.Delete(n.list, i, i+1)
	return n
}

// moved is a copy in an array of its own, of which the first so many entries are taken.
func (n nodeTasks) moved(taken int) nodeTasks {
	list := append(make([]listed, 0, taken+taken/4+2), n.list...)
	used := new(atomic.Int64)
	used.Store(int64(taken))
	return nodeTasks{list, used}
}

// list puts a task on the list of its node, or replaces it there.
func (s *Snapshot) list(t *model.Task) {
	n, _ := s.onNode.Get(t.Node)
	s.onNode.Set(t.Node, n.with(listedOf(t)))
}

// unlist takes a task off the list of its node.
func (s *Snapshot) unlist(t *model.Task) {
	n, _ := s.onNode.Get(t.Node)
	if n = n.without(t.ID); len(n.list) > 0 {
		s.onNode.Set(t.Node, n)
	} else {
		s.onNode.Delete(t.Node)
	}
}

// TasksOnNode goes over the tasks that were placed on a node, dead ones in the history included.
func (s *Snapshot) TasksOnNode(node model.NodeID) iter.Seq[*model.Task] {
	return func(yield func(*model.Task) bool) {
		n, _ := s.onNode.Get(node)
		for i := range n.list {
			if t := s.Task(n.list[i].task); t != nil && !yield(t) {
				return
			}
		}
	}
}

// LastAddr is the gateway address (IPv4) that was given last on a node, of those whose tasks are still listed there;
// of one batch it is the highest. ok is false when there is none.
func (s *Snapshot) LastAddr(node model.NodeID) (last netip.Addr, ok bool) {
	var of listed
	n, _ := s.onNode.Get(node)
	for _, l := range n.list {
		if l.addr != 0 && (l.placeVer > of.placeVer || l.placeVer == of.placeVer && l.addr > of.addr) {
			of = l
		}
	}
	if of.addr == 0 {
		return netip.Addr{}, false
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], of.addr)
	return netip.AddrFrom4(b), true
}
