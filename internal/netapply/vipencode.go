package netapply

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// Key and data types as nft prints them.
const (
	typeInteger = 4
	typeIPAddr  = 7
	typeIP6Addr = 8
)

// A vipEncoder writes a task's table, or a change of it, as requests. What it writes does not depend on the namespace,
// so that one change is written once for all tasks of a network.
type vipEncoder struct {
	nfBatch
	table string
	sets  uint32
}

func (e *vipEncoder) addTable() {
	e.message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "add table")
	e.str(unix.NFTA_TABLE_NAME, e.table)
}

func (e *vipEncoder) addChain(c netplan.Chain) {
	e.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, "add chain")
	e.str(unix.NFTA_CHAIN_TABLE, e.table)
	e.str(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook == "" {
		return
	}
	hook := e.nest(unix.NFTA_CHAIN_HOOK)
	e.be32(unix.NFTA_HOOK_HOOKNUM, uint32(*hooks[c.Hook]))
	e.be32(unix.NFTA_HOOK_PRIORITY, uint32(int32(c.Priority)))
	hook()
	e.be32(unix.NFTA_CHAIN_POLICY, 1) // accept
	e.str(unix.NFTA_CHAIN_TYPE, c.Type)
}

func (e *vipEncoder) flushChain(name string) {
	e.message(unix.NFT_MSG_DELRULE, 0, "flush chain")
	e.str(unix.NFTA_RULE_TABLE, e.table)
	e.str(unix.NFTA_RULE_CHAIN, name)
}

func (e *vipEncoder) delChain(name string) {
	e.flushChain(name)
	e.message(unix.NFT_MSG_DELCHAIN, 0, "delete chain")
	e.str(unix.NFTA_CHAIN_TABLE, e.table)
	e.str(unix.NFTA_CHAIN_NAME, name)
}

// addMaps adds the maps of virtual addresses.
func (e *vipEncoder) addMap(six bool) {
	e.sets++
	e.newSet(mapName(six), unix.NFT_SET_MAP, keyType(six), addrLen(six), unix.NFT_DATA_VERDICT, 16)
}

func (e *vipEncoder) newSet(name string, flags, keyType, keyLen, dataType, dataLen uint32) {
	e.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, "add map")
	e.str(unix.NFTA_SET_TABLE, e.table)
	e.str(unix.NFTA_SET_NAME, name)
	e.be32(unix.NFTA_SET_FLAGS, flags)
	e.be32(unix.NFTA_SET_KEY_TYPE, keyType)
	e.be32(unix.NFTA_SET_KEY_LEN, keyLen)
	e.be32(unix.NFTA_SET_ID, e.sets)
	e.be32(unix.NFTA_SET_DATA_TYPE, dataType)
	e.be32(unix.NFTA_SET_DATA_LEN, dataLen)
}

func mapName(six bool) string {
	if six {
		return netplan.VIPMap6
	}
	return netplan.VIPMap4
}

func keyType(six bool) uint32 {
	if six {
		return typeIP6Addr
	}
	return typeIPAddr
}

func addrLen(six bool) uint32 {
	if six {
		return 16
	}
	return 4
}

// elements adds virtual addresses to the map of their family, or removes them.
func (e *vipEncoder) elements(list []netip.Addr, six, del bool) {
	for part := range slices.Chunk(list, elementsPerMessage) {
		typ, flags, what := unix.NFT_MSG_NEWSETELEM, uint16(unix.NLM_F_CREATE), "add virtual address"
		if del {
			typ, flags, what = unix.NFT_MSG_DELSETELEM, 0, "remove virtual address"
		}
		e.message(typ, flags, what)
		e.str(unix.NFTA_SET_ELEM_LIST_TABLE, e.table)
		e.str(unix.NFTA_SET_ELEM_LIST_SET, mapName(six))
		all := e.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		for _, a := range part {
			one := e.nest(unix.NFTA_LIST_ELEM)
			e.value(unix.NFTA_SET_ELEM_KEY, a.AsSlice())
			if !del {
				data := e.nest(unix.NFTA_SET_ELEM_DATA)
				verdict := e.nest(unix.NFTA_DATA_VERDICT)
				jump := int32(unix.NFT_JUMP)
				e.be32(unix.NFTA_VERDICT_CODE, uint32(jump))
				e.str(unix.NFTA_VERDICT_CHAIN, netplan.VIP{Addr: a}.Chain())
				verdict()
				data()
			}
			one()
		}
		all()
	}
}

// value adds plain data.
func (e *vipEncoder) value(typ uint16, data []byte) {
	end := e.nest(typ)
	e.attr(unix.NFTA_DATA_VALUE, data)
	end()
}

// fill adds the rules of a chain at its end.
func (e *vipEncoder) fill(c netplan.Chain) error {
	for _, m := range c.Rules {
		ex, err := e.expressions(m)
		if err != nil {
			return fmt.Errorf("encode rule %q: %w", m, err)
		}
		e.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, "add rule")
		e.str(unix.NFTA_RULE_TABLE, e.table)
		e.str(unix.NFTA_RULE_CHAIN, c.Name)
		all := e.nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, x := range ex {
			data, err := expr.Marshal(unix.NFPROTO_INET, x)
			if err != nil {
				return fmt.Errorf("encode rule %q: %w", m, err)
			}
			e.attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
		}
		all()
		e.attr(unix.NFTA_RULE_USERDATA, tagData(tagOf(m)))
	}
	return nil
}

func (e *vipEncoder) expressions(m netplan.Match) ([]expr.Any, error) {
	ex := conditions(m)
	family, six := uint32(unix.NFPROTO_IPV4), m.Family == 6
	if six {
		family = unix.NFPROTO_IPV6
	}
	switch m.Verb {
	case netplan.Virtual:
		offset := uint32(16)
		if six {
			offset = 24
		}
		return append(ex, &expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: addrLen(six)},
			&expr.Lookup{SourceRegister: reg1, IsDestRegSet: true, SetName: mapName(six)}), nil
	case netplan.Translate:
		to := m.To[0]
		nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: reg1}
		ex = append(ex, &expr.Immediate{Register: reg1, Data: to.Addr().AsSlice()})
		if to.Port() != 0 {
			nat.RegProtoMin, nat.Specified = unix.NFT_REG_2, true
			ex = append(ex, &expr.Immediate{Register: unix.NFT_REG_2, Data: binary.BigEndian.AppendUint16(nil, to.Port())})
		}
		return append(ex, nat), nil
	case netplan.Balance:
		e.anonymous(m, six)
		return append(ex, &expr.Numgen{Register: reg1, Modulus: uint32(len(m.To)), Type: unix.NFT_NG_INCREMENTAL},
			&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetID: e.sets, SetName: anonymousMap},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: reg1}), nil
	}
	act, ok := plain(m)
	if !ok {
		return nil, fmt.Errorf("not for a task's table")
	}
	return append(ex, act...), nil
}

// anonymousMap has the kernel choose a name.
const anonymousMap = "__map%d"

// anonymous adds the map from a number to a backend that the next rule looks at.
func (e *vipEncoder) anonymous(m netplan.Match, six bool) {
	e.sets++
	e.newSet(anonymousMap, unix.NFT_SET_ANONYMOUS|unix.NFT_SET_CONSTANT|unix.NFT_SET_MAP, typeInteger, 4, keyType(six), addrLen(six))
	desc := e.nest(unix.NFTA_SET_DESC)
	e.be32(unix.NFTA_SET_DESC_SIZE, uint32(len(m.To)))
	desc()
	e.message(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, "add backends")
	e.str(unix.NFTA_SET_ELEM_LIST_TABLE, e.table)
	e.str(unix.NFTA_SET_ELEM_LIST_SET, anonymousMap)
	e.be32(unix.NFTA_SET_ELEM_LIST_SET_ID, e.sets)
	all := e.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for i, a := range m.To {
		one := e.nest(unix.NFTA_LIST_ELEM)
		// The number lies in the register as the machine writes it.
		e.value(unix.NFTA_SET_ELEM_KEY, binaryutil.NativeEndian.PutUint32(uint32(i)))
		e.value(unix.NFTA_SET_ELEM_DATA, a.Addr().AsSlice())
		one()
	}
	all()
}

// encodeTable writes a whole table where none is.
func encodeTable(t *netplan.Table) (*nfBatch, error) {
	e := &vipEncoder{table: t.Name}
	e.addTable()
	for _, six := range []bool{false, true} {
		e.addMap(six)
	}
	chains := t.AllChains()
	for _, c := range chains {
		e.addChain(c)
	}
	var addrs [2][]netip.Addr
	for _, c := range chains {
		if err := e.fill(c); err != nil {
			return nil, err
		}
	}
	for _, v := range t.VIPs {
		i := b2i(v.Addr.Is6())
		addrs[i] = append(addrs[i], v.Addr)
	}
	for i, list := range addrs {
		e.elements(list, i == 1, false)
	}
	return e.seal(), nil
}

// encodeOut writes the chain of what a task begins anew.
func encodeOut(node netplan.Node, dns netplan.DNSPorts) (*nfBatch, error) {
	e := &vipEncoder{table: node.HostLink()}
	c := netplan.OutChain(dns)
	e.flushChain(c.Name)
	if err := e.fill(c); err != nil {
		return nil, err
	}
	return e.seal(), nil
}

// A vipChange is what changes among the virtual addresses of one network.
type vipChange struct {
	add, set []netplan.VIP // new ones, and those with other backends
	del      []netip.Addr
}

// encodeChange writes a change of the tables of tasks of one turn that have all other virtual addresses.
func encodeChange(table string, turn int, c vipChange) (*nfBatch, error) {
	e := &vipEncoder{table: table}
	for _, v := range c.add {
		e.addChain(netplan.VIPChain(v, turn))
	}
	for _, v := range c.set {
		e.flushChain(v.Chain())
	}
	var add, del [2][]netip.Addr
	for _, v := range slices.Concat(c.add, c.set) {
		if err := e.fill(netplan.VIPChain(v, turn)); err != nil {
			return nil, err
		}
	}
	for _, v := range c.add {
		i := b2i(v.Addr.Is6())
		add[i] = append(add[i], v.Addr)
	}
	for _, a := range c.del {
		i := b2i(a.Is6())
		del[i] = append(del[i], a)
	}
	for i := range 2 {
		e.elements(add[i], i == 1, false)
		e.elements(del[i], i == 1, true)
	}
	for _, a := range c.del {
		e.delChain(netplan.VIP{Addr: a}.Chain())
	}
	return e.seal(), nil
}
