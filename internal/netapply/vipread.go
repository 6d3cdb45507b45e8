package netapply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// vipState is what the kernel holds of a task's table.
type vipState struct {
	chains map[string]chainState
	maps   [2]map[netip.Addr]string // of IPv4 and IPv6: the chain jumped to; nil when the map is missing
}

// readTable reads a task's table.
func (s *nfSocket) readTable(table string) (vipState, error) {
	st := vipState{chains: map[string]chainState{}}
	dump := func(typ int, what string, more func(b *batch), each func(a map[uint16][]byte)) error {
		var b batch
		b.begin(nfType(unix.NFNL_SUBSYS_NFTABLES, typ), unix.NLM_F_DUMP, []byte{unix.NFPROTO_INET, 0, 0, 0}, what, unix.ENOENT)
		b.str(1, table) // the table's name, in every kind of message
		if more != nil {
			more(&b)
		}
		return s.ask(&b, func(body []byte) {
			a := map[uint16][]byte{}
			attrs(body[4:], func(t uint16, v []byte) { a[t] = v })
			if text(a[1]) == table {
				each(a)
			}
		})
	}
	err := dump(unix.NFT_MSG_GETCHAIN, "list chains", nil, func(a map[uint16][]byte) {
		st.chains[text(a[unix.NFTA_CHAIN_NAME])] = chainState{base: baseFrom(a)}
	})
	if err != nil || len(st.chains) == 0 {
		return st, err
	}
	err = dump(unix.NFT_MSG_GETRULE, "list rules", nil, func(a map[uint16][]byte) {
		name := text(a[unix.NFTA_RULE_CHAIN])
		c := st.chains[name]
		c.tags = append(c.tags, tagFrom(a[unix.NFTA_RULE_USERDATA]))
		st.chains[name] = c
	})
	if err != nil {
		return st, err
	}
	err = dump(unix.NFT_MSG_GETSET, "list maps", nil, func(a map[uint16][]byte) {
		for i := range st.maps {
			if text(a[unix.NFTA_SET_NAME]) == mapName(i == 1) {
				st.maps[i] = map[netip.Addr]string{}
			}
		}
	})
	for i := range st.maps {
		if err != nil || st.maps[i] == nil {
			continue
		}
		err = dump(unix.NFT_MSG_GETSETELEM, "list virtual addresses",
			func(b *batch) { b.str(unix.NFTA_SET_ELEM_LIST_SET, mapName(i == 1)) },
			func(a map[uint16][]byte) { readElements(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS], st.maps[i]) })
	}
	return st, err
}

func text(v []byte) string { return strings.TrimRight(string(v), "\x00") }

func baseFrom(a map[uint16][]byte) string {
	hook, ok := a[unix.NFTA_CHAIN_HOOK]
	if !ok {
		return ""
	}
	var num, prio uint32
	attrs(hook, func(t uint16, v []byte) {
		switch t {
		case unix.NFTA_HOOK_HOOKNUM:
			num = binary.BigEndian.Uint32(v)
		case unix.NFTA_HOOK_PRIORITY:
			prio = binary.BigEndian.Uint32(v)
		}
	})
	policy := uint32(1)
	if p := a[unix.NFTA_CHAIN_POLICY]; len(p) == 4 {
		policy = binary.BigEndian.Uint32(p)
	}
	return fmt.Sprintf("%s %d %d %d", text(a[unix.NFTA_CHAIN_TYPE]), num, int32(prio), policy)
}

func readElements(list []byte, into map[netip.Addr]string) {
	attrs(list, func(_ uint16, elem []byte) {
		var key netip.Addr
		chain := ""
		attrs(elem, func(t uint16, v []byte) {
			switch t {
			case unix.NFTA_SET_ELEM_KEY:
				attrs(v, func(_ uint16, v []byte) { key, _ = netip.AddrFromSlice(v) })
			case unix.NFTA_SET_ELEM_DATA:
				attrs(v, func(_ uint16, v []byte) { chain = verdictChain(v) })
			}
		})
		if key.IsValid() {
			into[key] = chain
		}
	})
}

// encodeDiff writes what makes a table that is there the planned one; the batch is empty when it is already.
func encodeDiff(t *netplan.Table, have vipState) (*nfBatch, error) {
	e := &vipEncoder{table: t.Name}
	wanted := map[string]bool{}
	var refill []netplan.Chain
	for _, c := range t.AllChains() {
		wanted[c.Name] = true
		old, ok := have.chains[c.Name]
		if base := baseOf(chainOf(nil, c)); ok && old.base != base {
			e.delChain(c.Name)
			ok = false
		}
		tags := make([]string, len(c.Rules))
		for i, m := range c.Rules {
			tags[i] = tagOf(m)
		}
		switch {
		case !ok:
			e.addChain(c)
			refill = append(refill, c)
		case !slices.Equal(old.tags, tags):
			e.flushChain(c.Name)
			refill = append(refill, c)
		}
	}
	var add, del [2][]netip.Addr
	planned := map[netip.Addr]bool{}
	for _, v := range t.VIPs {
		planned[v.Addr] = true
		i := b2i(v.Addr.Is6())
		if chain, ok := have.maps[i][v.Addr]; !ok || chain != v.Chain() {
			add[i] = append(add[i], v.Addr)
			if ok {
				del[i] = append(del[i], v.Addr)
			}
		}
	}
	for i := range have.maps {
		for a := range have.maps[i] {
			if !planned[a] {
				del[i] = append(del[i], a)
			}
		}
		if have.maps[i] == nil {
			e.addMap(i == 1)
		}
		e.elements(del[i], i == 1, true)
		e.elements(add[i], i == 1, false)
	}
	for _, c := range refill {
		if err := e.fill(c); err != nil {
			return nil, err
		}
	}
	for name := range have.chains {
		if !wanted[name] {
			e.delChain(name)
		}
	}
	return e.seal(), nil
}

// reconcileTable makes a task's table the planned one. It returns whether it wrote, and the generation of the rules
// that it leaves.
func (s *nfSocket) reconcileTable(t *netplan.Table) (changed bool, gen uint32, err error) {
	for range nfTries {
		if changed, gen, err = s.reconcileTableOnce(t); err == nil {
			return changed, gen, nil
		}
		if !errors.Is(err, errStale) && !errors.Is(err, syscall.ENOENT) {
			break
		}
	}
	return changed, gen, err
}

func (s *nfSocket) reconcileTableOnce(t *netplan.Table) (bool, uint32, error) {
	gen, err := s.generation()
	if err != nil {
		return false, 0, err
	}
	have, err := s.readTable(t.Name)
	if err != nil {
		return false, 0, fmt.Errorf("read table %s: %w", t.Name, err)
	}
	b, err := (*nfBatch)(nil), error(nil)
	if len(have.chains) == 0 {
		b, err = encodeTable(t)
	} else {
		b, err = encodeDiff(t, have)
	}
	if err != nil || len(b.msgs) == 0 {
		return false, gen, err
	}
	if err := s.commit(b, gen); err != nil {
		return false, 0, fmt.Errorf("write table %s: %w", t.Name, err)
	}
	return true, after(gen), nil
}
