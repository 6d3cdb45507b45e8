package netplan

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestChoosePool(t *testing.T) {
	route := func(dst, link string) HostRoute { return HostRoute{netip.MustParsePrefix(dst), link} }
	for _, v := range []struct {
		name   string
		routes []HostRoute
		want   string
	}{
		{"free", nil, "10.255.0.0/16"},
		{"default route", []HostRoute{route("0.0.0.0/0", "eth0")}, "10.255.0.0/16"},
		{"part of it in use", []HostRoute{route("10.255.7.0/24", "eth0")}, "10.254.0.0/16"},
		{"inside a larger one", []HostRoute{route("10.0.0.0/8", "vpn")}, "172.30.0.0/16"},
		{"our own", []HostRoute{route("10.255.0.0/16", "skep-abc123")}, "10.255.0.0/16"},
		{"another instance", []HostRoute{route("10.255.0.0/16", "skep-def456")}, "10.254.0.0/16"},
		{"IPv6", []HostRoute{route("fd00::/8", "eth0")}, "10.255.0.0/16"},
	} {
		got, err := ChoosePool(v.routes, DefaultPools(), "skep-abc123")
		if err != nil || got.String() != v.want {
			t.Errorf("%s: got %v, %v; want %s", v.name, got, err, v.want)
		}
	}
	_, err := ChoosePool([]HostRoute{route("10.9.0.0/16", "eth7")}, []netip.Prefix{netip.MustParsePrefix("10.9.0.0/20")})
	var clash *ClashError
	if !errors.As(err, &clash) || !strings.Contains(err.Error(), "10.9.0.0/20 with 10.9.0.0/16 on eth7") {
		t.Errorf("a clash: %v", err)
	}
}

func TestChooseLink(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.StringMatching("[0-9a-f]{6}").Draw(t, "a")
		b := rapid.StringMatching("[0-9a-f]{6}").Filter(func(s string) bool { return s != a }).Draw(t, "b")
		one, err := ChooseLink4(nil, a, "skep-"+a)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ChooseLink4([]HostRoute{{one, "skep-" + a}}, a, "skep-"+a)
		if err != nil || again != one {
			t.Fatalf("a restart chooses %v after %v: %v", again, one, err)
		}
		other, err := ChooseLink4([]HostRoute{{one, "skep-" + a}}, b, "skep-"+b)
		if err != nil || other.Overlaps(one) {
			t.Fatalf("instances %s and %s share the link %v: %v", a, b, other, err)
		}
		for _, p := range DefaultPools() {
			if p.Overlaps(one) {
				t.Fatalf("link %v lies in the pool %v", one, p)
			}
		}
		vpn := HostRoute{netip.MustParsePrefix("10.0.0.0/8"), "vpn"}
		if p, err := ChooseLink4([]HostRoute{vpn}, a); err != nil || p.Overlaps(vpn.Dst) || p.Bits() != 30 {
			t.Fatalf("link %v beside a route to all of 10.0.0.0/8: %v", p, err)
		}
		if Link6(a) == Link6(b) || Link6(a).Bits() != 126 {
			t.Fatalf("IPv6 links %v and %v", Link6(a), Link6(b))
		}
	})
}

func TestBlocks(t *testing.T) {
	pool := netip.MustParsePrefix("10.255.0.0/16")
	if b, ok := Block4(pool, 255); !ok || b.String() != "10.255.255.0/24" {
		t.Errorf("last block: %v, %v", b, ok)
	}
	for _, n := range []int{-1, 256} {
		if b, ok := Block4(pool, n); ok {
			t.Errorf("block %d of %v: %v", n, pool, b)
		}
	}
	p6 := Pool6("cluster one")
	if p6 == Pool6("cluster two") || p6.Bits() != 48 || p6.Addr().As16()[0] != 0xfd {
		t.Errorf("IPv6 pool %v", p6)
	}
	b6 := Block6(p6, 0x1234)
	if !p6.Contains(b6.Addr()) || b6.Bits() != 64 || b6 == Block6(p6, 0x1235) {
		t.Errorf("IPv6 block %v of %v", b6, p6)
	}
	a := Addr6(b6, netip.MustParseAddr("10.255.1.7"))
	if !b6.Contains(a) || a.As16()[12] != 10 || a.As16()[15] != 7 {
		t.Errorf("IPv6 address %v", a)
	}
}
