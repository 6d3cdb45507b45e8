package netapply

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// socketBuffer holds the answers to one transaction: a few thousand rules.
const socketBuffer = 8 << 20

// A filter is a connection to the nftables of one namespace. Its methods may
// be called concurrently; transactions do not mix.
type filter struct {
	mu   sync.Mutex
	conn *nftables.Conn
	port uint32 // of the socket: changes that carry it are our own
}

// openFilter opens a connection in the namespace that fd refers to.
func openFilter(fd int) (*filter, error) {
	f := &filter{}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(fd), nftables.WithSockOptions(func(c *netlink.Conn) error {
		f.port = c.PID()
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		return errors.Join(raw.Control(func(fd uintptr) {
			// Forced sizes need no larger limit of the host's; a process that
			// may write nftables may set them.
			for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
				err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o, socketBuffer))
			}
		}), err)
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	f.conn = conn
	return f, nil
}

func (f *filter) close() {
	if f != nil {
		_ = f.conn.CloseLasting()
	}
}

func inetTable(name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
}

// reconcile compares a table with its plan and writes the difference in one
// transaction. It reports whether it wrote anything.
func (f *filter) reconcile(t *netplan.Table) (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return again(func() (bool, error) { return f.reconcileOnce(t) })
}

// again repeats what failed some times: between reading and writing, and even
// between two parts of one reading, someone may have flushed the ruleset.
func again[T any](f func() (T, error)) (v T, err error) {
	for range 4 {
		if v, err = f(); err == nil {
			return v, nil
		}
	}
	return v, err
}

func (f *filter) reconcileOnce(t *netplan.Table) (bool, error) {
	have, err := f.read(t)
	if err != nil {
		return false, err
	}
	e := &encoder{conn: f.conn, table: inetTable(t.Name)}
	changed, err := f.diff(e, t, have)
	if err != nil {
		return false, err
	}
	if !changed {
		return false, nil
	}
	if err := f.conn.Flush(); err != nil {
		return false, fmt.Errorf("write nftables table %s: %w", t.Name, err)
	}
	return true, nil
}

var hooks = map[string]*nftables.ChainHook{
	"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput,
	"forward": nftables.ChainHookForward, "output": nftables.ChainHookOutput,
	"postrouting": nftables.ChainHookPostrouting,
}

func chainOf(table *nftables.Table, c netplan.Chain) *nftables.Chain {
	out := &nftables.Chain{Name: c.Name, Table: table}
	if c.Hook != "" {
		policy := nftables.ChainPolicyAccept
		out.Type, out.Hooknum, out.Policy = nftables.ChainType(c.Type), hooks[c.Hook], &policy
		out.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	}
	return out
}

// diff queues what is missing: first every chain and set, because rules refer
// to them, then rules and elements, then what nobody asked for goes.
func (f *filter) diff(e *encoder, t *netplan.Table, have tableState) (bool, error) {
	changed := false
	if !have.exists {
		f.conn.AddTable(e.table)
		changed = true
	}
	wanted := map[string]bool{}
	for _, c := range t.Chains {
		wanted[c.Name] = true
		nc := chainOf(e.table, c)
		old, ok := have.chains[c.Name]
		if ok && old.base != baseOf(nc) {
			f.conn.FlushChain(nc)
			f.conn.DelChain(nc)
			delete(have.chains, c.Name)
			ok = false
		}
		if !ok {
			f.conn.AddChain(nc)
			changed = true
		}
	}
	setsChanged, stale, err := f.diffSets(e, t, have)
	if err != nil {
		return false, err
	}
	changed = changed || setsChanged
	for _, c := range t.Chains {
		tags := make([]string, len(c.Rules))
		for i, r := range c.Rules {
			tags[i] = tagOf(r)
		}
		old, ok := have.chains[c.Name]
		if c.Admin || ok && slices.Equal(old.tags, tags) || !ok && len(tags) == 0 {
			continue
		}
		changed = true
		if err := f.fill(e, c, ok); err != nil {
			return false, err
		}
	}
	stale()
	for name := range have.chains {
		if !wanted[name] {
			nc := &nftables.Chain{Name: name, Table: e.table}
			f.conn.FlushChain(nc)
			f.conn.DelChain(nc)
			changed = true
		}
	}
	return changed, nil
}

// fill queues the rules of a chain, in place of those that are there.
func (f *filter) fill(e *encoder, c netplan.Chain, flush bool) error {
	nc := chainOf(e.table, c)
	if flush {
		f.conn.FlushChain(nc)
	}
	for _, r := range c.Rules {
		if err := e.rule(nc, r); err != nil {
			return fmt.Errorf("encode rule %q: %w", r, err)
		}
	}
	return nil
}

// diffSets queues missing sets and elements. The function it returns queues
// the removal of elements that are too many, which must come before the
// removal of the chains they refer to.
func (f *filter) diffSets(e *encoder, t *netplan.Table, have tableState) (bool, func(), error) {
	if !t.Mapped {
		return false, func() {}, nil
	}
	set, pub, err := e.sets()
	if err != nil {
		return false, nil, err
	}
	wanted := map[netplan.PortKey]bool{}
	for _, k := range t.Ports {
		wanted[k] = true
	}
	changed := false
	var stale []func()
	for _, s := range []*nftables.Set{set, pub} {
		var add, del []netplan.PortKey
		for _, k := range t.Ports {
			if chain, ok := have.ports[s.Name][k]; !ok || s.IsMap && chain != k.Chain() {
				add = append(add, k)
				if ok {
					del = append(del, k)
				}
			}
		}
		if len(del) > 0 {
			f.deleteElements(s, del)
		}
		var gone []netplan.PortKey
		for k := range have.ports[s.Name] {
			if !wanted[k] {
				gone = append(gone, k)
			}
		}
		if have.sets[s.Name] == nil {
			if err := f.conn.AddSet(s, nil); err != nil {
				return false, nil, err
			}
			changed = true
		}
		if err := f.addElements(s, add); err != nil {
			return false, nil, err
		}
		if len(gone) > 0 {
			stale = append(stale, func() { f.deleteElements(s, gone) })
		}
		changed = changed || len(add)+len(gone) > 0
	}
	return changed, func() {
		for _, fn := range stale {
			fn()
		}
	}, nil
}

// elementsPerMessage keeps one message below 64 KiB.
const elementsPerMessage = 400

func (f *filter) addElements(s *nftables.Set, keys []netplan.PortKey) error {
	for part := range slices.Chunk(keys, elementsPerMessage) {
		els, maps := elements(part)
		if s.IsMap {
			els = maps
		}
		if err := f.conn.SetAddElements(s, els); err != nil {
			return fmt.Errorf("encode elements of %s: %w", s.Name, err)
		}
	}
	return nil
}

func (f *filter) deleteElements(s *nftables.Set, keys []netplan.PortKey) {
	for part := range slices.Chunk(keys, elementsPerMessage) {
		els, _ := elements(part) // the key alone names an element
		_ = f.conn.SetDeleteElements(s, els)
	}
}

// setPorts writes the chains of some ports, adds those that are new to set
// and map, and removes others, in one transaction.
func (f *filter) setPorts(table string, set []netplan.Port, fresh map[netplan.PortKey]bool, del []netplan.PortKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := &encoder{conn: f.conn, table: inetTable(table)}
	named, pub, err := e.sets()
	if err != nil {
		return err
	}
	var added []netplan.PortKey
	for _, p := range set {
		c := netplan.PortChain(p)
		if fresh[p.PortKey] {
			f.conn.AddChain(chainOf(e.table, c))
			added = append(added, p.PortKey)
		}
		if err := f.fill(e, c, true); err != nil {
			return err
		}
	}
	for _, s := range []*nftables.Set{named, pub} {
		if err := f.addElements(s, added); err != nil {
			return err
		}
		f.deleteElements(s, del)
	}
	for _, k := range del {
		nc := &nftables.Chain{Name: k.Chain(), Table: e.table}
		f.conn.FlushChain(nc)
		f.conn.DelChain(nc)
	}
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("write published ports: %w", err)
	}
	return nil
}

// remove deletes the instance's table.
func (f *filter) remove(table string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conn.AddTable(inetTable(table)) // so that deleting never fails
	f.conn.DelTable(inetTable(table))
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("delete nftables table %s: %w", table, err)
	}
	return nil
}
