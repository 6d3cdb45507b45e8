package netapply

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// tagOf is the comment that a rule carries: equal tags mean equal rules, so a
// comparison need not decode what the kernel holds.
func tagOf(m netplan.Match) string {
	sum := sha256.Sum256([]byte(m.String()))
	return "skep " + hex.EncodeToString(sum[:6])
}

func tagData(tag string) []byte { return userdata.AppendString(nil, userdata.TypeComment, tag) }

func tagFrom(data []byte) string {
	s, _ := userdata.GetString(data, userdata.TypeComment)
	return s
}

// Registers of 4 bytes within the first two of 16.
const (
	reg1 = unix.NFT_REG_1
	r32n = unix.NFT_REG32_00
)

// encoder turns planned rules into nftables expressions within one batch.
type encoder struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func name16(s string) []byte {
	b := make([]byte, 16)
	copy(b, s)
	return b
}

func cmpEq(not bool, data []byte) *expr.Cmp {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	return &expr.Cmp{Op: op, Register: reg1, Data: data}
}

// rule adds one rule at the end of a chain.
func (e *encoder) rule(chain *nftables.Chain, m netplan.Match) error {
	ex := conditions(m)
	from, err := e.srcAny(m)
	if err != nil {
		return err
	}
	act, err := e.action(m)
	if err != nil {
		return err
	}
	act = append(from, act...)
	e.conn.AddRule(&nftables.Rule{Table: e.table, Chain: chain, Exprs: append(ex, act...), UserData: tagData(tagOf(m))})
	return nil
}

func conditions(m netplan.Match) []expr.Any {
	var ex []expr.Any
	if m.Family != 0 {
		f := byte(unix.NFPROTO_IPV4)
		if m.Family == 6 {
			f = unix.NFPROTO_IPV6
		}
		ex = append(ex, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1}, cmpEq(false, []byte{f}))
	}
	for _, v := range []struct {
		key  expr.MetaKey
		name string
		not  bool
	}{
		{expr.MetaKeyIIFNAME, m.In, false},
		{expr.MetaKeyIIFNAME, m.NotIn, true},
		{expr.MetaKeyOIFNAME, m.Out, false},
		{expr.MetaKeyOIFNAME, m.NotOut, true},
	} {
		if v.name != "" {
			ex = append(ex, &expr.Meta{Key: v.key, Register: reg1}, cmpEq(v.not, name16(v.name)))
		}
	}
	ex = append(ex, prefixMatch(m.Src, true, false)...)
	ex = append(ex, prefixMatch(m.NotSrc, true, true)...)
	ex = append(ex, prefixMatch(m.Dst, false, false)...)
	if m.DstLocal {
		ex = append(ex, &expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true},
			cmpEq(false, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)))
	}
	if m.New {
		ex = append(ex, ctBit(expr.CtKeySTATE, expr.CtStateBitNEW, true)...)
	}
	if m.NotTranslated {
		ex = append(ex, ctBit(expr.CtKeySTATUS, 1<<5, false)...) // IPS_DST_NAT
	}
	if m.Marked {
		ex = append(ex, &expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg1}, cmpEq(false, []byte{0}),
			&expr.Ct{Key: expr.CtKeyMARK, Register: reg1}, cmpEq(false, binaryutil.NativeEndian.PutUint32(netplan.ConnMark)))
	}
	if m.Proto != 0 && m.Verb != netplan.Balance {
		ex = append(ex, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, cmpEq(false, []byte{byte(m.Proto)}))
	}
	if m.Port != 0 {
		ex = append(ex, &expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			cmpEq(false, binary.BigEndian.AppendUint16(nil, m.Port)))
	}
	if m.Published {
		ex = append(ex, portKey()...)
		ex = append(ex, &expr.Lookup{SourceRegister: reg1, SetName: netplan.PortSet})
	}
	if m.Rate != 0 {
		ex = append(ex, &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(m.Rate), Unit: expr.LimitTimeSecond, Burst: uint32(m.Rate)})
	}
	return ex
}

// ctBit matches connections in whose key a bit is set, or is not.
func ctBit(key expr.CtKey, bit uint32, set bool) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bit), Xor: make([]byte, 4),
		},
		cmpEq(set, make([]byte, 4)),
	}
}

func prefixMatch(p netip.Prefix, src, not bool) []expr.Any {
	if !p.IsValid() {
		return nil
	}
	addr := p.Masked().Addr().AsSlice()
	offset := uint32(16)
	switch {
	case len(addr) == 4 && src:
		offset = 12
	case len(addr) == 16 && src:
		offset = 8
	case len(addr) == 16:
		offset = 24
	}
	mask := make([]byte, len(addr))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	n := uint32(len(addr))
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: n, Mask: mask, Xor: make([]byte, n)},
		cmpEq(not, addr),
	}
}

// portKey loads protocol . destination port into the first two registers.
func portKey() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r32n},
		&expr.Payload{DestRegister: r32n + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// srcAny matches one of several source addresses.
func (e *encoder) srcAny(m netplan.Match) ([]expr.Any, error) {
	if len(m.SrcAny) == 0 {
		return nil, nil
	}
	set := &nftables.Set{Table: e.table, Anonymous: true, Constant: true, KeyType: nftables.TypeIPAddr}
	offset, size := uint32(12), uint32(4)
	if m.Family == 6 {
		set.KeyType, offset, size = nftables.TypeIP6Addr, 8, 16
	}
	elements := make([]nftables.SetElement, len(m.SrcAny))
	for i, a := range m.SrcAny {
		elements[i] = nftables.SetElement{Key: a.AsSlice()}
	}
	if err := e.conn.AddSet(set, elements); err != nil {
		return nil, err
	}
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Lookup{SourceRegister: reg1, SetID: set.ID, SetName: set.Name},
	}, nil
}

func (e *encoder) action(m netplan.Match) ([]expr.Any, error) {
	if ex, ok := plain(m); ok {
		return ex, nil
	}
	switch m.Verb {
	case netplan.Dispatch:
		return append(portKey(), &expr.Lookup{SourceRegister: reg1, IsDestRegSet: true, SetName: netplan.PortMap}), nil
	case netplan.Balance:
		return e.balance(m)
	}
	return nil, fmt.Errorf("not for this table")
}

// plain are the actions that need no set.
func plain(m netplan.Match) ([]expr.Any, bool) {
	verdict := func(k expr.VerdictKind) ([]expr.Any, bool) { return []expr.Any{&expr.Verdict{Kind: k}}, true }
	reject := func(typ uint32, code uint8) ([]expr.Any, bool) {
		return []expr.Any{&expr.Reject{Type: typ, Code: code}}, true
	}
	switch m.Verb {
	case netplan.Accept:
		return verdict(expr.VerdictAccept)
	case netplan.Drop:
		return verdict(expr.VerdictDrop)
	case netplan.Return:
		return verdict(expr.VerdictReturn)
	case netplan.Jump:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: m.Target}}, true
	case netplan.Masquerade:
		return []expr.Any{&expr.Masq{}}, true
	case netplan.Mark:
		return []expr.Any{
			&expr.Immediate{Register: reg1, Data: binaryutil.NativeEndian.PutUint32(netplan.ConnMark)},
			&expr.Ct{Key: expr.CtKeyMARK, Register: reg1, SourceRegister: true},
		}, true
	case netplan.Reset:
		return reject(unix.NFT_REJECT_TCP_RST, 0)
	case netplan.Refuse:
		return reject(unix.NFT_REJECT_ICMPX_UNREACH, unix.NFT_REJECT_ICMPX_PORT_UNREACH)
	case netplan.Prohibit:
		return reject(unix.NFT_REJECT_ICMPX_UNREACH, unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED)
	}
	return nil, false
}

// balance counts and translates the destination to the backend of that number.
func (e *encoder) balance(m netplan.Match) ([]expr.Any, error) {
	data, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1, RegProtoMin: r32n + 1, Specified: true}
	if m.Family == 6 {
		data, err = nftables.ConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
		nat.Family, nat.RegProtoMin = unix.NFPROTO_IPV6, r32n+4
	}
	if err != nil {
		return nil, err
	}
	key := nftables.TypeInteger
	key.Bytes = 4
	set := &nftables.Set{Table: e.table, Anonymous: true, Constant: true, IsMap: true, KeyType: key, DataType: data}
	elements := make([]nftables.SetElement, len(m.To))
	for i, a := range m.To {
		val := binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port())
		// The number lies in the register as the machine writes it.
		elements[i] = nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: append(val, 0, 0)}
	}
	if err := e.conn.AddSet(set, elements); err != nil {
		return nil, err
	}
	return []expr.Any{
		// The translation to a port needs a protocol that has ports.
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, cmpEq(false, []byte{byte(m.Proto)}),
		&expr.Numgen{Register: reg1, Modulus: uint32(len(m.To)), Type: unix.NFT_NG_INCREMENTAL},
		&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetID: set.ID, SetName: set.Name},
		nat,
	}, nil
}

// Keys and elements of the named set and map.

func keyBytes(k netplan.PortKey) []byte {
	b := []byte{byte(k.Proto), 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, k.Number)
	return append(b, 0, 0)
}

func keyFrom(b []byte) (netplan.PortKey, bool) {
	if len(b) < 6 {
		return netplan.PortKey{}, false
	}
	return netplan.PortKey{Proto: netplan.Proto(b[0]), Number: binary.BigEndian.Uint16(b[4:])}, true
}

func (e *encoder) sets() (set, pub *nftables.Set, err error) {
	key, err := nftables.ConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	if err != nil {
		return nil, nil, err
	}
	set = &nftables.Set{Table: e.table, Name: netplan.PortSet, KeyType: key, Concatenation: true}
	pub = &nftables.Set{Table: e.table, Name: netplan.PortMap, KeyType: key, Concatenation: true, IsMap: true, DataType: nftables.TypeVerdict}
	return set, pub, nil
}

func elements(keys []netplan.PortKey) (set, pub []nftables.SetElement) {
	for _, k := range keys {
		set = append(set, nftables.SetElement{Key: keyBytes(k)})
		pub = append(pub, nftables.SetElement{
			Key: keyBytes(k), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: k.Chain()},
		})
	}
	return set, pub
}
