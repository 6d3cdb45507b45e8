package netplan

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// A HostRoute is a destination that a host already uses: a route, or the
// prefix of one of its addresses.
type HostRoute struct {
	Dst  netip.Prefix
	Link string
}

// DefaultPools are the gateway pools tried when none is configured.
func DefaultPools() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{
		"10.255.0.0/16", "10.254.0.0/16", "10.252.0.0/16", "10.251.0.0/16", "10.250.0.0/16",
		"172.30.0.0/16", "172.29.0.0/16", "172.28.0.0/16", "192.168.0.0/16",
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// linkPools hold the IPv4 host links of all instances on all hosts; each
// instance takes a /30 by its name, from the second where the first is in use
// as a whole.
var linkPools = []netip.Prefix{netip.MustParsePrefix("10.253.0.0/16"), netip.MustParsePrefix("172.27.0.0/16")}

// A ClashError says which of a host's destinations stand in the way.
type ClashError struct {
	Wanted []netip.Prefix
	With   []HostRoute
}

func (e *ClashError) Error() string {
	var w []string
	for i, r := range e.With {
		w = append(w, fmt.Sprintf("%v with %v on %s", e.Wanted[i], r.Dst, r.Link))
	}
	return "no address pool is free on this host: " + strings.Join(w, ", ") + "; give another pool"
}

// ChoosePool returns the first candidate that overlaps none of the routes.
// Default routes and routes over links whose name is in own do not count. The
// error is a *ClashError.
func ChoosePool(routes []HostRoute, candidates []netip.Prefix, own ...string) (netip.Prefix, error) {
	clash := &ClashError{}
	for _, c := range candidates {
		r, taken := overlap(routes, c, own)
		if !taken {
			return c.Masked(), nil
		}
		clash.Wanted, clash.With = append(clash.Wanted, c), append(clash.With, r)
	}
	return netip.Prefix{}, clash
}

// ChooseLink4 returns the /30 of an instance's host link: the first free one
// of 10.253.0.0/16 or 172.27.0.0/16, beginning at a place that the instance's
// name gives.
func ChooseLink4(routes []HostRoute, instance string, own ...string) (netip.Prefix, error) {
	sum := sha256.Sum256([]byte(instance))
	start := int(binary.BigEndian.Uint16(sum[:]) >> 2)
	var tried []netip.Prefix
	for _, pool := range linkPools {
		base := pool.Addr().As4()
		for i := range 64 {
			n := (start + i) % (1 << 14)
			a := netip.AddrFrom4([4]byte{base[0], base[1], byte(n >> 6), byte(n << 2)})
			tried = append(tried, netip.PrefixFrom(a, 30))
		}
	}
	return ChoosePool(routes, tried, own...)
}

// Link6 is the /126 of an instance's host link, in a locally assigned prefix
// that the instance's name gives.
func Link6(instance string) netip.Prefix {
	sum := sha256.Sum256([]byte("skep host link " + instance))
	a := [16]byte{0xfd}
	copy(a[1:8], sum[:7])
	return netip.PrefixFrom(netip.AddrFrom16(a), 126)
}

// Pool6 is the locally assigned /48 of a cluster.
func Pool6(clusterID string) netip.Prefix {
	sum := sha256.Sum256([]byte("skep gateway pool " + clusterID))
	a := [16]byte{0xfd}
	copy(a[1:6], sum[:5])
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}

// Block6 is the /64 of the node whose number is n, 0 to 65535, in a /48.
func Block6(pool netip.Prefix, n uint16) netip.Prefix {
	a := pool.Masked().Addr().As16()
	binary.BigEndian.PutUint16(a[6:], n)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// Block4 is the /24 numbered n of a pool; it reports false when the pool has
// no such part.
func Block4(pool netip.Prefix, n int) (netip.Prefix, bool) {
	if pool.Bits() > 24 || n < 0 || n >= 1<<(24-pool.Bits()) {
		return netip.Prefix{}, false
	}
	a := pool.Masked().Addr().As4()
	v := binary.BigEndian.Uint32(a[:]) + uint32(n)<<8
	binary.BigEndian.PutUint32(a[:], v)
	return netip.PrefixFrom(netip.AddrFrom4(a), 24), true
}

// Addr6 is a task's IPv6 address: the node's /64 with the task's IPv4 address
// as its last four bytes, so that one allocation serves both.
func Addr6(block netip.Prefix, addr4 netip.Addr) netip.Addr {
	a, b := block.Masked().Addr().As16(), addr4.As4()
	copy(a[12:], b[:])
	return netip.AddrFrom16(a)
}

func overlap(routes []HostRoute, p netip.Prefix, own []string) (HostRoute, bool) {
next:
	for _, r := range routes {
		if r.Dst.Bits() == 0 || !r.Dst.Overlaps(p) {
			continue
		}
		for _, o := range own {
			if r.Link == o {
				continue next
			}
		}
		return r, true
	}
	return HostRoute{}, false
}
