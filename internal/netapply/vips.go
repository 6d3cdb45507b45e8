package netapply

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/skep-swarm/skep/internal/netplan"
)

// SetVIPs gives virtual addresses of a network their backends, and takes the addresses of del away: one transaction in
// the namespace of each of the network's tasks on this node, which touches only their chains. A removed backend gets no
// new connection when it returns; TCP connections drain, UDP flows are cut over.
func (n *Network) SetVIPs(ctx context.Context, num uint64, set []netplan.VIP, del []netip.Addr) error {
	n.state.RLock()
	defer n.state.RUnlock()
	if !n.ready {
		return ErrNotReady
	}
	ov, err := n.overlay(num)
	if err != nil {
		return err
	}
	ov.change.Lock()
	defer ov.change.Unlock()
	base := ov.bare()
	for _, v := range set {
		if err := base.CheckVIP(v); err != nil {
			return err
		}
	}
	ov.mu.Lock()
	var before []netplan.VIP
	for _, v := range set {
		if old, ok := ov.vips[v.Addr]; ok {
			before = append(before, old)
		}
	}
	for _, a := range del {
		if old, ok := ov.vips[a]; ok && !slices.ContainsFunc(set, func(v netplan.VIP) bool { return v.Addr == a }) {
			before = append(before, old)
		}
	}
	change, lost := changeOf(before, set)
	total := len(ov.vips) + len(change.add) - len(change.del)
	if total <= netplan.MaxVIPs {
		for _, v := range set {
			ov.vips[v.Addr] = v
		}
		for _, a := range change.del {
			delete(ov.vips, a)
		}
	}
	ov.mu.Unlock()
	if total > netplan.MaxVIPs {
		return fmt.Errorf("network %d: %d virtual addresses: at most %d", num, total, netplan.MaxVIPs)
	}
	return n.carry(ctx, ov, change, lost)
}

// changeOf compares two lists of virtual addresses. It returns those also whose flows are to be forgotten.
func changeOf(before, now []netplan.VIP) (vipChange, []netip.Addr) {
	old, next := map[netip.Addr]netplan.VIP{}, map[netip.Addr]netplan.VIP{}
	for _, v := range before {
		old[v.Addr] = v
	}
	var c vipChange
	for _, v := range now {
		next[v.Addr] = v
		o, ok := old[v.Addr]
		switch {
		case !ok:
			c.add = append(c.add, v)
		case !sameBackends(o.Backends, v.Backends):
			c.set = append(c.set, v)
		}
	}
	for a := range old {
		if _, ok := next[a]; !ok {
			c.del = append(c.del, a)
		}
	}
	return c, touchedVIPs(old, next)
}

func sameBackends(a, b []netip.Addr) bool {
	if slices.Equal(a, b) {
		return true
	}
	return slices.Equal(sorted(a), sorted(b))
}

func sorted(list []netip.Addr) []netip.Addr {
	out := slices.Clone(list)
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// carry brings a change of a network's virtual addresses to the namespaces of its tasks. ov.change is held.
func (n *Network) carry(ctx context.Context, ov *overlay, c vipChange, lost []netip.Addr) error {
	if len(c.add)+len(c.set)+len(c.del) == 0 {
		return nil
	}
	var batches [netplan.Turns]func() (*nfBatch, error)
	for turn := range batches {
		batches[turn] = sync.OnceValues(func() (*nfBatch, error) { return encodeChange(n.node.HostLink(), turn, c) })
	}
	num := ov.bare().Num
	// Once begun it reaches all: what the tasks' namespaces hold is known from the networks' values.
	return n.forTasks(context.WithoutCancel(ctx), n.tasksOf(num), func(st *taskState) error {
		b, err := batches[st.task.Turn()]()
		if err != nil {
			return err
		}
		return n.changeTable(st, b, lost)
	})
}

// forTasks does something with each of some tasks that are there, some at a time. Its errors are those of parts, or the
// context's.
func (n *Network) forTasks(ctx context.Context, list []*taskState, f func(*taskState) error) error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for part := range slices.Chunk(list, max(1, (len(list)+maxParallel-1)/maxParallel)) {
		wg.Go(func() {
			for _, st := range part {
				if ctx.Err() != nil {
					return
				}
				st.mu.Lock()
				var err error
				if st.done && !st.gone {
					err = f(st)
				}
				st.mu.Unlock()
				if err != nil {
					mu.Lock()
					errs = append(errs, st.part(err))
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// withRules runs f with a socket in a task's namespace. st.mu is held.
func (n *Network) withRules(st *taskState, f func(s *nfSocket) error) error {
	path := n.Path(st.task)
	s, err := n.nf.take(path)
	if err != nil {
		return err
	}
	if err := f(s); err != nil {
		s.close() // answers may still be on their way
		return err
	}
	n.nf.give(path, s)
	return nil
}

// changeTable carries one change to one task. A namespace in which someone else changed the rules, or has removed what
// the change is about, is compared as a whole. st.mu is held.
func (n *Network) changeTable(st *taskState, b *nfBatch, lost []netip.Addr) error {
	st.owe(lost)
	err := n.withRules(st, func(s *nfSocket) error {
		if st.gen == 0 {
			return errStale
		}
		if err := s.commit(b, st.gen); err != nil {
			return err
		}
		st.gen = after(st.gen)
		return nil
	})
	if err != nil {
		st.gen = 0
		if _, err := n.mendTable(st); err != nil {
			return err
		}
	}
	return n.forgetFlows(st)
}

// mendTable makes a task's table what it should be, and returns how many changes that took. Where nobody touched the
// rules since, that is known from their generation alone. st.mu is held.
func (n *Network) mendTable(st *taskState) (int, error) {
	nets, err := n.netsOf(st.task, true)
	if err != nil {
		return 0, err
	}
	t := netplan.TaskTable(n.node, nets, st.task)
	if t == nil {
		return 0, nil
	}
	changed := false
	err = n.withRules(st, func(s *nfSocket) error {
		changed, st.gen, err = s.reconcileTable(t)
		return err
	})
	st.bad = st.bad || err != nil
	if err == nil {
		err = n.forgetFlows(st)
	}
	return b2i(changed), err
}

// checkTable is mendTable where it is not known that something is wrong. st.mu is held.
func (n *Network) checkTable(st *taskState) (int, error) {
	if len(st.task.Nets) == 0 && st.task.DNS == (netplan.DNSPorts{}) {
		return 0, nil
	}
	if st.gen != 0 {
		var gen uint32
		err := n.withRules(st, func(s *nfSocket) (err error) {
			gen, err = s.generation()
			return err
		})
		if err != nil {
			return 0, err
		}
		if gen == st.gen {
			return 0, n.forgetFlows(st)
		}
	}
	return n.mendTable(st)
}

// passTables mends the tables of all tasks.
func (n *Network) passTables(ctx context.Context, _ netplan.Plan) (int, error) {
	return n.mendTables(ctx, n.listTasks())
}

func (n *Network) mendTables(ctx context.Context, list []*taskState) (int, error) {
	var mu sync.Mutex
	total := 0
	err := n.forTasks(ctx, list, func(st *taskState) error {
		c, err := n.checkTable(st)
		mu.Lock()
		defer mu.Unlock()
		total += c
		return err
	})
	return total, err
}

// badTasks are those of some tasks that could not be mended the last time.
func badTasks(list []*taskState) []*taskState {
	return slices.DeleteFunc(slices.Clone(list), func(st *taskState) bool {
		st.mu.Lock()
		defer st.mu.Unlock()
		return !st.bad
	})
}

func (n *Network) listTasks() []*taskState {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]*taskState, 0, len(n.tasks))
	for _, st := range n.tasks {
		out = append(out, st)
	}
	return out
}
