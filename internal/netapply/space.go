package netapply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// A space is a handle on one network namespace. Its methods may be called
// concurrently.
type space struct {
	name string
	fd   int
	rt   *rtSocket
	// clash says that another program had the number of the network's VXLAN device the last time. Of a network's sandbox,
	// and guarded as its overlay's values are (overlay.change, or Network.state for writing).
	clash bool
	// noVXLAN says that a VXLAN device is being made here, or was refused.
	noVXLAN atomic.Bool
}

// openSpace takes over fd.
func openSpace(name string, fd int) (*space, error) {
	s := &space{name: name, fd: fd}
	err := inNS(fd, func() (err error) {
		s.rt, err = openRT()
		return err
	})
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open namespace %s: %w", name, err)
	}
	return s, nil
}

func (s *space) close() {
	if s == nil {
		return
	}
	if s.rt != nil {
		s.rt.close()
	}
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
		s.fd = -1
	}
}

// A resolver finds the namespaces that the other ends of veth pairs go to. The
// space stays open until the change that needed it is done.
type resolver func(name string) (*space, error)

// Requests that a plan is made of. None of them asks the kernel anything.

const (
	create   = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	replace  = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	dumpFlag = unix.NLM_F_DUMP

	ifaFlags       = 8     // IFA_FLAGS
	ifaNoDAD       = 0x02  // IFA_F_NODAD
	ifaPermanent   = 0x80  // IFA_F_PERMANENT
	ifaNoRoute     = 0x200 // IFA_F_NOPREFIXROUTE
	ntfSelf        = 0x02  // NTF_SELF
	vethInfoPeer   = 1     // VETH_INFO_PEER
	brportLearning = 8     // IFLA_BRPORT_LEARNING
	brportFlood    = 9     // IFLA_BRPORT_UNICAST_FLOOD
	brportIsolated = 33    // IFLA_BRPORT_ISOLATED
	ntfMaster      = 0x04  // NTF_MASTER
	protoSkep      = 0x73  // rtm_protocol of our routes
)

func ifinfo(index int, up bool) []byte {
	b := make([]byte, 16)
	native.PutUint32(b[4:], uint32(index))
	if up {
		native.PutUint32(b[8:], unix.IFF_UP)
		native.PutUint32(b[12:], unix.IFF_UP)
	}
	return b
}

// addLink asks for a new interface. peerFD is the namespace of a veth's other
// end.
func (b *batch) addLink(l netplan.Link, index, peerFD int) {
	b.begin(unix.RTM_NEWLINK, create, ifinfo(index, true), "make link "+l.Name)
	b.str(unix.IFLA_IFNAME, l.Name)
	// A bridge whose MTU was set when it was made, and not after, takes another one when its last port goes.
	if l.Kind != "bridge" {
		b.u32(unix.IFLA_MTU, l.MTU)
	}
	b.attr(unix.IFLA_ADDRESS, l.MAC[:])
	if l.Kind == "vxlan" {
		b.u32(unix.IFLA_NET_NS_FD, peerFD)
	}
	info := b.nest(unix.IFLA_LINKINFO)
	b.attr(unix.IFLA_INFO_KIND, []byte(l.Kind))
	switch l.Kind {
	case "bridge":
		data := b.nest(unix.IFLA_INFO_DATA)
		b.u8(unix.IFLA_BR_MCAST_SNOOPING, 0)
		data()
	case "vxlan":
		b.vxlan(l)
	case "veth":
		data := b.nest(unix.IFLA_INFO_DATA)
		peer := b.nest(vethInfoPeer)
		pi := 0
		if index != 0 {
			pi = l.PeerIndex
		}
		b.buf = append(b.buf, ifinfo(pi, false)...)
		b.str(unix.IFLA_IFNAME, l.Peer)
		b.u32(unix.IFLA_MTU, l.MTU)
		b.attr(unix.IFLA_ADDRESS, l.PeerMAC[:])
		b.u32(unix.IFLA_NET_NS_FD, peerFD)
		peer()
		data()
	}
	info()
}

// vxlan says what a VXLAN device is like: it learns nothing, and answers for remote tasks from its neighbour entries.
func (b *batch) vxlan(l netplan.Link) {
	data := b.nest(unix.IFLA_INFO_DATA)
	defer data()
	b.u32(unix.IFLA_VXLAN_ID, int(l.VNI))
	local := uint16(unix.IFLA_VXLAN_LOCAL)
	if l.VTEP.Is6() {
		local = unix.IFLA_VXLAN_LOCAL6
	}
	b.ip(local, l.VTEP)
	b.attr(unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, l.VXLANPort))
	b.u8(unix.IFLA_VXLAN_LEARNING, 0)
	b.u8(unix.IFLA_VXLAN_PROXY, 1)
}

// setLink asks for an interface that exists to be as planned, and up.
func (b *batch) setLink(l netplan.Link, index, master int) {
	b.begin(unix.RTM_NEWLINK, 0, ifinfo(index, true), "set link "+l.Name)
	if l.MTU != 0 {
		b.u32(unix.IFLA_MTU, l.MTU)
		b.attr(unix.IFLA_ADDRESS, l.MAC[:])
	}
	if l.Master != "" {
		b.u32(unix.IFLA_MASTER, master)
	}
}

// setPort asks for the bridge port settings. The kernel reads them only for
// an interface that is in the bridge already.
func (b *batch) setPort(l netplan.Link, index int) {
	b.begin(unix.RTM_NEWLINK, 0, ifinfo(index, true), "set bridge port "+l.Name)
	info := b.nest(unix.IFLA_LINKINFO)
	b.attr(unix.IFLA_INFO_SLAVE_KIND, []byte("bridge"))
	data := b.nest(unix.IFLA_INFO_SLAVE_DATA)
	b.u8(brportLearning, 0)
	b.u8(brportFlood, 0)
	b.u8(brportIsolated, uint8(1-b2i(l.Shared)))
	data()
	info()
}

// awaitLink asks for an interface, only because the kernel (from 6.8 on) first
// finishes what it had put off when the link came up. Before that it drops
// what is sent, and a connection begun in these milliseconds waits a second.
func (b *batch) awaitLink(index int, name string) {
	b.begin(unix.RTM_GETLINK, 0, ifinfo(index, false), "read link "+name, unix.ENODEV)
	b.u32(unix.IFLA_EXT_MASK, extSkipStats)
}

func (b *batch) delLink(index int, name string) {
	b.begin(unix.RTM_DELLINK, 0, ifinfo(index, false), "delete link "+name, unix.ENODEV)
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (b *batch) addr(a netplan.Addr, index int, del bool) {
	typ, flags, what := uint16(unix.RTM_NEWADDR), uint16(create), "add"
	allow := []syscall.Errno{unix.EEXIST}
	if del {
		typ, flags, what, allow = unix.RTM_DELADDR, 0, "delete", []syscall.Errno{unix.EADDRNOTAVAIL, unix.ENODEV}
	}
	ip := a.Prefix.Addr()
	h := []byte{family(ip), uint8(a.Prefix.Bits()), 0, 0, 0, 0, 0, 0}
	native.PutUint32(h[4:], uint32(index))
	b.begin(typ, flags, h, fmt.Sprintf("%s address %v on %s", what, a.Prefix, a.Link), allow...)
	b.ip(unix.IFA_LOCAL, ip)
	b.ip(unix.IFA_ADDRESS, ip)
	set := 0
	if ip.Is6() {
		set = ifaNoDAD | ifaPermanent
	}
	if a.NoRoute {
		set |= ifaNoRoute
	}
	if !del && set != 0 {
		b.u32(ifaFlags, set)
	}
}

func (b *batch) route(r netplan.Route, index int, del bool) {
	typ, flags, what, allow := uint16(unix.RTM_NEWROUTE), uint16(replace), "add", []syscall.Errno(nil)
	if del {
		typ, flags, what, allow = unix.RTM_DELROUTE, 0, "delete", []syscall.Errno{unix.ESRCH}
	} else if r.Metric == 0 {
		flags = create // never take a route over that another program made
	}
	table := r.Table
	if table == 0 {
		table = unix.RT_TABLE_MAIN
	}
	scope := uint8(unix.RT_SCOPE_UNIVERSE)
	h := []byte{
		family(r.Dst.Addr()), uint8(r.Dst.Bits()), 0, 0, uint8(min(table, 252)),
		protoSkep, scope, unix.RTN_UNICAST, 0, 0, 0, 0,
	}
	if r.Via.IsValid() {
		// The next hop is the other end of a cable of ours. Without this the kernel
		// looks for a route to it, which someone may have deleted.
		native.PutUint32(h[8:], unix.RTNH_F_ONLINK)
	}
	b.begin(typ, flags, h, fmt.Sprintf("%s route %v", what, r), allow...)
	if r.Dst.Bits() > 0 {
		b.ip(unix.RTA_DST, r.Dst.Addr())
	}
	b.u32(unix.RTA_TABLE, table)
	b.u32(unix.RTA_OIF, index)
	if r.Via.IsValid() {
		b.ip(unix.RTA_GATEWAY, r.Via)
	}
	if r.Src.IsValid() {
		b.ip(unix.RTA_PREFSRC, r.Src)
	}
	if r.Metric != 0 {
		b.u32(unix.RTA_PRIORITY, r.Metric)
	}
}

func (b *batch) rule(r netplan.Rule, del bool) {
	typ, flags, what, allow := uint16(unix.RTM_NEWRULE), uint16(create), "add", unix.EEXIST
	if del {
		typ, flags, what, allow = unix.RTM_DELRULE, 0, "delete", unix.ENOENT
	}
	h := []byte{family(r.From.Addr()), 0, uint8(r.From.Bits()), 0, uint8(min(r.Table, 252)), 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0}
	b.begin(typ, flags, h, fmt.Sprintf("%s rule from %v", what, r.From), allow)
	b.ip(unix.FRA_SRC, r.From.Addr())
	b.u32(unix.FRA_PRIORITY, r.Pref)
	b.u32(unix.FRA_TABLE, r.Table)
}

func (b *batch) neighbour(n netplan.Neighbour, index int, del bool) {
	typ, flags, what, allow := uint16(unix.RTM_NEWNEIGH), uint16(replace), "add", []syscall.Errno(nil)
	if del {
		typ, flags, what, allow = unix.RTM_DELNEIGH, 0, "delete", []syscall.Errno{unix.ENOENT}
	}
	h := make([]byte, 12)
	native.PutUint32(h[4:], uint32(index))
	switch {
	case n.Addr.IsValid():
		h[0] = family(n.Addr)
		native.PutUint16(h[8:], unix.NUD_PERMANENT)
	case n.VTEP.IsValid():
		h[0] = unix.AF_BRIDGE
		native.PutUint16(h[8:], unix.NUD_PERMANENT)
		h[10] = ntfSelf
	default:
		h[0] = unix.AF_BRIDGE
		native.PutUint16(h[8:], unix.NUD_NOARP)
		h[10] = ntfMaster
	}
	b.begin(typ, flags, h, fmt.Sprintf("%s neighbour %v", what, n), allow...)
	if n.Addr.IsValid() {
		b.ip(unix.NDA_DST, n.Addr)
	} else if n.VTEP.IsValid() {
		b.ip(unix.NDA_DST, n.VTEP)
	}
	if !del || !n.Addr.IsValid() {
		b.attr(unix.NDA_LLADDR, n.MAC[:])
	}
}

// fresh fills a namespace in which nothing is yet, in one system call. Every
// link's index must be given in the plan, lo's excepted.
func (s *space) fresh(p netplan.Space, resolve resolver) error {
	b := &batch{buf: make([]byte, 0, 2048)}
	index := map[string]int{"lo": 1}
	for _, l := range p.Links {
		switch l.Kind {
		case "lo":
			b.setLink(l, 1, 0)
		case "veth":
			peer, err := resolve(l.PeerIn)
			if err != nil {
				return fmt.Errorf("find namespace of %s: %w", l.Peer, err)
			}
			b.addLink(l, l.Index, peer.fd)
			index[l.Name] = l.Index
		default:
			return fmt.Errorf("link %s: cannot make a %s in a new namespace", l.Name, l.Kind)
		}
	}
	for _, a := range p.Addrs {
		b.addr(a, index[a.Link], false)
	}
	for _, n := range p.Neighbours {
		b.neighbour(n, index[n.Link], false)
	}
	for _, r := range p.Routes {
		b.route(r, index[r.Link], false)
	}
	for _, r := range p.Rules {
		b.rule(r, false)
	}
	return s.rt.run(b)
}

// errPeerMissing says that a veth end is not there, because the namespace it
// is made from has not been filled yet.
var errPeerMissing = errors.New("the other end of the link is missing")
