package netapply

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// What the kernel says is in a namespace.

type kernelLink struct {
	index, mtu, master int
	name, kind         string
	mac                netplan.MAC
	up, port, isolated bool // port: not learning, not flooded
	peerNS             int  // the number of the other end's namespace, or -1

	vni       uint32 // and what else a VXLAN device is made with
	vtep      netip.Addr
	vxlanPort uint16
}

type kernelAddr struct {
	index  int
	prefix netip.Prefix
}

type kernelRoute struct {
	oif, table, metric int // table 0 is main
	prefix             netip.Prefix
	via, src           netip.Addr
	proto              uint8
}

type kernelNeighbour struct {
	index int
	addr  netip.Addr
	mac   netplan.MAC
	self  bool // of the device's own forwarding table: addr is another node's
}

const (
	extSkipStats  = 8  // RTEXT_FILTER_SKIP_STATS
	ifaceSlaveKey = 5  // IFLA_INFO_SLAVE_DATA
	ndaMaster     = 9  // NDA_MASTER
	ndaIfindex    = 8  // NDA_IFINDEX
	routeCacheLen = 12 // size of rtmsg
)

// links reads all interfaces, or the one called name.
func (s *space) links(name string) (map[string]kernelLink, error) {
	b, flags := &batch{}, uint16(dumpFlag)
	if name != "" {
		flags = 0
	}
	b.begin(unix.RTM_GETLINK, flags, ifinfo(0, false), "read links", unix.ENODEV)
	b.u32(unix.IFLA_EXT_MASK, extSkipStats)
	if name != "" {
		b.str(unix.IFLA_IFNAME, name)
	}
	out := map[string]kernelLink{}
	err := s.rt.dump(unix.RTM_NEWLINK, b, func(body []byte) {
		l := parseLink(body)
		out[l.name] = l
	})
	return out, err
}

func parseLink(body []byte) kernelLink {
	if len(body) < 16 {
		return kernelLink{}
	}
	l := kernelLink{index: int(native.Uint32(body[4:])), up: native.Uint32(body[8:])&unix.IFF_UP != 0, peerNS: -1}
	var isolated, learning, flood uint8
	var data []byte
	attrs(body[16:], func(t uint16, v []byte) {
		switch t {
		case unix.IFLA_IFNAME:
			l.name = strings.TrimRight(string(v), "\x00")
		case unix.IFLA_MTU:
			l.mtu = int(native.Uint32(v))
		case unix.IFLA_MASTER:
			l.master = int(native.Uint32(v))
		case unix.IFLA_LINK_NETNSID:
			l.peerNS = int(int32(native.Uint32(v)))
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], v)
		case unix.IFLA_LINKINFO:
			attrs(v, func(t uint16, v []byte) {
				switch t {
				case unix.IFLA_INFO_KIND:
					l.kind = strings.TrimRight(string(v), "\x00")
				case unix.IFLA_INFO_DATA:
					data = v
				case ifaceSlaveKey:
					learning, flood = 1, 1
					attrs(v, func(t uint16, v []byte) {
						switch t {
						case brportIsolated:
							isolated = v[0]
						case brportLearning:
							learning = v[0]
						case brportFlood:
							flood = v[0]
						}
					})
				}
			})
		}
	})
	l.port, l.isolated = learning == 0 && flood == 0, isolated == 1
	if l.kind == "vxlan" {
		l.parseVXLAN(data)
	}
	return l
}

func (l *kernelLink) parseVXLAN(data []byte) {
	attrs(data, func(t uint16, v []byte) {
		switch t {
		case unix.IFLA_VXLAN_ID:
			l.vni = native.Uint32(v)
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			l.vtep, _ = netip.AddrFromSlice(v)
		case unix.IFLA_VXLAN_PORT:
			l.vxlanPort = binary.BigEndian.Uint16(v)
		}
	})
}

// addrs reads the addresses of one interface, or of all when index is 0,
// link-local ones excepted.
func (s *space) addrs(index int) ([]kernelAddr, error) {
	b := &batch{}
	h := make([]byte, 8)
	native.PutUint32(h[4:], uint32(index))
	b.begin(unix.RTM_GETADDR, dumpFlag, h, "read addresses")
	var out []kernelAddr
	err := s.rt.dump(unix.RTM_NEWADDR, b, func(body []byte) {
		if len(body) < 8 || index != 0 && int(native.Uint32(body[4:])) != index {
			return
		}
		var local, addr netip.Addr
		attrs(body[8:], func(t uint16, v []byte) {
			a, _ := netip.AddrFromSlice(v)
			switch t {
			case unix.IFA_LOCAL:
				local = a
			case unix.IFA_ADDRESS:
				addr = a
			}
		})
		if local.IsValid() {
			addr = local
		}
		if addr.IsValid() && !addr.IsLinkLocalUnicast() {
			out = append(out, kernelAddr{int(native.Uint32(body[4:])), netip.PrefixFrom(addr, int(body[1]))})
		}
	})
	return out, err
}

// routes reads the unicast routes over one interface, or over all when index
// is 0, in every table but local.
func (s *space) routes(index int, v6 bool) ([]kernelRoute, error) {
	b := &batch{}
	h := make([]byte, routeCacheLen)
	h[0] = unix.AF_INET
	if v6 {
		h[0] = unix.AF_INET6
	}
	b.begin(unix.RTM_GETROUTE, dumpFlag, h, "read routes")
	if index != 0 {
		b.u32(unix.RTA_OIF, index)
	}
	var out []kernelRoute
	err := s.rt.dump(unix.RTM_NEWROUTE, b, func(body []byte) {
		if len(body) < 12 || body[7] != unix.RTN_UNICAST {
			return
		}
		// A cloned IPv6 route is the kernel's own cache.
		if r := parseRoute(body); native.Uint32(body[8:])&unix.RTM_F_CLONED == 0 && (index == 0 || r.oif == index) {
			out = append(out, r)
		}
	})
	return out, err
}

func parseRoute(body []byte) kernelRoute {
	r := kernelRoute{table: int(body[4]), proto: body[5]}
	ip := netip.IPv4Unspecified()
	if body[0] == unix.AF_INET6 {
		ip = netip.IPv6Unspecified()
	}
	attrs(body[12:], func(t uint16, v []byte) {
		a, _ := netip.AddrFromSlice(v)
		switch t {
		case unix.RTA_DST:
			ip = a
		case unix.RTA_GATEWAY:
			r.via = a
		case unix.RTA_PREFSRC:
			r.src = a
		case unix.RTA_OIF:
			r.oif = int(native.Uint32(v))
		case unix.RTA_TABLE:
			r.table = int(native.Uint32(v))
		case unix.RTA_PRIORITY:
			r.metric = int(native.Uint32(v))
		}
	})
	r.prefix = netip.PrefixFrom(ip, int(body[1]))
	if r.table == unix.RT_TABLE_MAIN {
		r.table = 0
	}
	return r
}

// rules reads the policy rules that select by source alone.
func (s *space) rules() ([]netplan.Rule, error) {
	var out []netplan.Rule
	for _, f := range []uint8{unix.AF_INET, unix.AF_INET6} {
		b := &batch{}
		h := make([]byte, 12)
		h[0] = f
		b.begin(unix.RTM_GETRULE, dumpFlag, h, "read policy rules", unix.EAFNOSUPPORT, unix.EOPNOTSUPP)
		err := s.rt.dump(unix.RTM_NEWRULE, b, func(body []byte) {
			if len(body) < 12 || body[0] != f {
				return
			}
			r := netplan.Rule{Table: int(body[4])}
			attrs(body[12:], func(t uint16, v []byte) {
				switch t {
				case unix.FRA_SRC:
					a, _ := netip.AddrFromSlice(v)
					r.From = netip.PrefixFrom(a, int(body[2]))
				case unix.FRA_PRIORITY:
					r.Pref = int(native.Uint32(v))
				case unix.FRA_TABLE:
					r.Table = int(native.Uint32(v))
				}
			})
			if r.From.IsValid() {
				out = append(out, r)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// neighbours reads the permanent neighbours of one interface.
func (s *space) neighbours(index int) ([]kernelNeighbour, error) {
	var out []kernelNeighbour
	for _, f := range []uint8{unix.AF_INET, unix.AF_INET6} {
		b := &batch{}
		h := make([]byte, 12)
		h[0] = f
		b.begin(unix.RTM_GETNEIGH, dumpFlag, h, "read neighbours", unix.EAFNOSUPPORT, unix.EOPNOTSUPP)
		b.u32(ndaIfindex, index)
		err := s.rt.dump(unix.RTM_NEWNEIGH, b, func(body []byte) {
			if n, ok := parseNeighbour(body, unix.NUD_PERMANENT); ok && n.index == index && n.addr.IsValid() {
				out = append(out, n)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// forwarding reads the static forwarding entries of the ports of one bridge.
func (s *space) forwarding(bridge int) ([]kernelNeighbour, error) {
	b := &batch{}
	h := make([]byte, 12)
	h[0] = unix.AF_BRIDGE
	b.begin(unix.RTM_GETNEIGH, dumpFlag, h, "read forwarding entries")
	b.u32(ndaMaster, bridge)
	var out []kernelNeighbour
	err := s.rt.dump(unix.RTM_NEWNEIGH, b, func(body []byte) {
		if n, ok := parseNeighbour(body, unix.NUD_NOARP); ok && !n.addr.IsValid() {
			out = append(out, n)
		}
	})
	return out, err
}

// nodes reads which nodes a VXLAN device sends to.
func (s *space) nodes(vxlan int) ([]kernelNeighbour, error) {
	b := &batch{}
	h := make([]byte, 12)
	h[0] = unix.AF_BRIDGE
	native.PutUint32(h[4:], uint32(vxlan))
	b.begin(unix.RTM_GETNEIGH, dumpFlag, h, "read forwarding entries of the VXLAN device")
	var out []kernelNeighbour
	err := s.rt.dump(unix.RTM_NEWNEIGH, b, func(body []byte) {
		if n, ok := parseNeighbour(body, unix.NUD_PERMANENT); ok && n.self && n.index == vxlan && n.addr.IsValid() {
			out = append(out, n)
		}
	})
	return out, err
}

func parseNeighbour(body []byte, state uint16) (kernelNeighbour, bool) {
	if len(body) < 12 || native.Uint16(body[8:]) != state {
		return kernelNeighbour{}, false
	}
	n := kernelNeighbour{index: int(native.Uint32(body[4:])), self: body[10]&ntfSelf != 0}
	attrs(body[12:], func(t uint16, v []byte) {
		switch t {
		case unix.NDA_DST:
			n.addr, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			copy(n.mac[:], v)
		}
	})
	return n, true
}
