// Package allocate gives out what a swarm has one of: gateway addresses and the blocks they
// come from, subnets, task addresses and virtual addresses of overlay networks, and
// published ports. The leader runs it after orchestrate; the addresses of a task are added
// to the placement that schedule made, so that both are one change. Only a network gets its
// subnets before: the API asks for them in the change that makes it.
//
// It must not know how tasks come to be or where they should run. It keeps no books of its
// own: what is in use, what was given last and what is too fresh to give again is read
// from the snapshot, so a new leader gives out the same.
package allocate

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// blockBits is the size of a node's block.
const blockBits = 24

const msgPending = "pending address allocation"

// Result is what Addresses decided.
type Result struct {
	// Blocks go to the log before Txns, each a transaction of its own: nodes that got another
	// block.
	Blocks []model.Txn
	// Txns are the given ones with addresses in their placements. A placement for which there was
	// no address has become the reason why its task is pending.
	Txns []model.Txn
	// Waiting are the services of such tasks.
	Waiting []model.ServiceID
	// Given is how many placements got their addresses.
	Given int
}

// Addresses adds gateway addresses to every placement (SetTaskPlace) in the transactions. The
// transactions themselves are not changed. now is cluster time.
func Addresses(snap *state.Snapshot, txns []model.Txn, now model.Time) Result {
	a := &allocator{snap: snap, now: now, hosts: map[model.NodeID]*host{}}
	var r Result
	for _, txn := range txns {
		out := model.Txn{Guards: txn.Guards, Changes: make([]model.Change, 0, len(txn.Changes))}
		waits := model.ServiceID(0)
		for _, c := range txn.Changes {
			if p := c.SetTaskPlace; p != nil {
				if c = a.place(*p); c.SetTaskPlace != nil {
					r.Given++
				} else {
					waits = p.Task.Service
					if a.known(c.SetTaskStatus) {
						continue
					}
					if t := a.snap.Task(p.Task); t != nil {
						out.Guards = append(slices.Clip(out.Guards), model.Guard{Key: model.TaskKey(t.ID), Group: model.GroupStatus, Version: t.StatusVer})
					}
				}
			}
			out.Changes = append(out.Changes, c)
		}
		if len(out.Changes) > 0 {
			r.Txns = append(r.Txns, out)
		}
		if n := len(r.Waiting); waits != 0 && (n == 0 || r.Waiting[n-1] != waits) {
			r.Waiting = append(r.Waiting, waits)
		}
	}
	r.Blocks = a.blocks
	return r
}

// Fresh adds gateway addresses to tasks that are about to be made and have been placed. A task for which
// there is no address is left pending with the reason; Waiting then has the services. Blocks must be in
// the state before the tasks are.
func Fresh(snap *state.Snapshot, puts []*model.TasksPut, now model.Time) Result {
	a := &allocator{snap: snap, now: now, hosts: map[model.NodeID]*host{}}
	var r Result
	for _, put := range puts {
		waits := false
		tpl := a.template(put.Template)
		for i := range put.Tasks {
			if t := &put.Tasks[i]; t.State == model.StateAssigned {
				if a.freshTask(put, tpl, t) {
					r.Given++
				} else {
					waits = true
				}
			}
		}
		if n := len(r.Waiting); waits && (n == 0 || r.Waiting[n-1] != put.Service) {
			r.Waiting = append(r.Waiting, put.Service)
		}
	}
	r.Blocks = a.blocks
	return r
}

func (a *allocator) freshTask(put *model.TasksPut, tpl *model.Template, t *model.TaskNew) bool {
	h := a.host(t.Node)
	if h == nil {
		return true // the state refuses it: the node is gone
	}
	nets, addr, err := a.addresses(h, tpl)
	if err != nil {
		t.State, t.Message, t.Err = model.StatePending, put.Text(msgPending), put.Text(err.Error())
		if tpl := a.snap.Service(put.Service); tpl != nil && tpl.Spec().Mode.Global == nil && tpl.Spec().Mode.GlobalJob == nil {
			t.Node = 0 // any other may do
		}
		t.Generic = nil
		return false
	}
	t.Nets, t.Gateway4, t.Gateway6 = nets, addr, Gateway6(h.node.Gateway6, addr)
	return true
}

// addresses are all that a task on h needs. The gateway's comes last: schedule sees to it that there is one, so none
// is taken for nothing.
func (a *allocator) addresses(h *host, tpl *model.Template) (nets []model.TaskNet, gateway netip.Addr, err error) {
	if len(tpl.Nets) > 0 {
		if nets, err = a.takeNets(tpl.Nets); err != nil {
			return nil, netip.Addr{}, err
		}
	}
	gateway, err = a.gateway(h, tpl)
	return nets, gateway, err
}

// gateway is an address of the gateway network for a task on h; the zero Addr for one that is in no network.
func (a *allocator) gateway(h *host, tpl *model.Template) (netip.Addr, error) {
	if tpl.NetMode != "" {
		return netip.Addr{}, nil
	}
	return a.take(h)
}

// template is that of a task that is about to be placed; an empty one when it is gone.
func (a *allocator) template(id model.TemplateID) *model.Template {
	if a.tpl == nil || a.tpl.ID != id {
		if a.tpl = a.snap.Template(id); a.tpl == nil {
			a.tpl = &model.Template{ID: id}
		}
	}
	return a.tpl
}

type allocator struct {
	snap   *state.Snapshot
	now    model.Time
	hosts  map[model.NodeID]*host
	nets   map[model.NetworkID]*pool
	given  []netip.Prefix // blocks that this pass gave
	blocks []model.Txn
	tpl    *model.Template // the last one that was looked at
}

// host gives out the addresses of one node.
type host struct {
	node   *model.Node
	blocks []netip.Prefix
	given  map[uint32]struct{} // by this pass
	next   netip.Addr          // where to look first
	err    error               // why there are no more
}

func (a *allocator) place(p model.TaskPlaceSet) model.Change {
	h := a.host(p.Node)
	if h == nil {
		return model.Change{SetTaskPlace: &p} // the state refuses it: the node is gone
	}
	tpl := &model.Template{}
	if t := a.snap.Task(p.Task); t != nil {
		tpl = a.template(t.Template)
	}
	nets, addr, err := a.addresses(h, tpl)
	if err != nil {
		return model.Change{SetTaskStatus: &model.TaskStatusSet{Task: p.Task, State: model.StatePending,
			Message: msgPending, Err: err.Error()}}
	}
	p.Nets, p.Gateway4, p.Gateway6 = nets, addr, Gateway6(h.node.Gateway6, addr)
	return model.Change{SetTaskPlace: &p}
}

// known reports whether a task says already why it waits.
func (a *allocator) known(s *model.TaskStatusSet) bool {
	t := a.snap.Task(s.Task)
	return t != nil && t.State == s.State && t.Err == s.Err
}

// host reads what the state knows of a node's addresses. The search goes on behind the one that
// was given last, so that freed ones rest for as long as the block allows.
func (a *allocator) host(id model.NodeID) *host {
	if h, ok := a.hosts[id]; ok {
		return h
	}
	n := a.snap.Node(id)
	if n == nil {
		return nil
	}
	h := &host{node: n, blocks: n.Blocks}
	if last, ok := a.snap.LastAddr(id); ok {
		h.next = last.Next()
	}
	a.hosts[id] = h
	return h
}

// take gives a node's next free address, from a new block when the old ones are full.
func (a *allocator) take(h *host) (netip.Addr, error) {
	if h.err != nil {
		return netip.Addr{}, h.err
	}
	addr := a.search(h, false)
	if !addr.IsValid() {
		// An address from a new block beats a fresh one; a fresh one beats none.
		if err := a.grow(h); err == nil {
			addr = a.search(h, false)
		} else if addr = a.search(h, true); !addr.IsValid() {
			h.err = fmt.Errorf("no free address on node %s: %w", h.node.Hostname(), err)
			return netip.Addr{}, h.err
		}
	}
	if h.given == nil {
		h.given = map[uint32]struct{}{}
	}
	h.given[number(addr)] = struct{}{}
	h.next = addr.Next()
	return addr, nil
}

// search goes once round the node's blocks, from next on. Resting addresses are passed over
// unless they are asked for.
func (a *allocator) search(h *host, resting bool) netip.Addr {
	start := 0
	for i, b := range h.blocks {
		if b.Contains(h.next) {
			start = i
		}
	}
	for k := 0; k <= len(h.blocks) && len(h.blocks) > 0; k++ {
		b := h.blocks[(start+k)%len(h.blocks)]
		addr := b.Masked().Addr().Next().Next() // not the network, not the gateway
		if k == 0 && b.Contains(h.next) && h.next.Compare(addr) > 0 {
			addr = h.next
		}
		for ; b.Contains(addr.Next()); addr = addr.Next() { // not the broadcast address
			if h.free(number(addr)) && !a.snap.AddrInUse(addr) && (resting || !a.snap.Resting(addr, a.now)) {
				return addr
			}
		}
	}
	return netip.Addr{}
}

// free reports whether this pass has not given the address yet.
func (h *host) free(addr uint32) bool {
	_, ok := h.given[addr]
	return !ok
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
