package netapply

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/netplan"
)

func TestVIP(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	o := overlayOf(7, "10.0.1.0/24 fd00:1::/64")
	o.VIPs = []netplan.VIP{vipOf("10.0.1.2", "10.0.1.10 10.0.1.11"), vipOf("fd00:1::2", "fd00:1::10"), vipOf("10.0.1.3", "")}
	e.overlay(o)
	_, ns0 := e.join(0, on(7, "10.0.1.10 fd00:1::10"))
	_, ns1 := e.join(1, on(7, "10.0.1.11 fd00:1::11"))
	_, ns2 := e.join(2, on(7, "10.0.1.12 fd00:1::12"))
	l.serve(ns0, "a", 8080)
	l.serve(ns1, "b", 8080)
	for _, network := range []string{"tcp", "udp"} {
		got := map[string]int{}
		for range 60 {
			s, err := l.ask(ns2, network, "10.0.1.2:8080")
			must(t, err)
			got[s]++
		}
		if got["a 10.0.1.12"] != 30 || got["b 10.0.1.12"] != 30 {
			t.Errorf("%s: answers %v, want half from each", network, got)
		}
		l.wantAnswer(ns2, network, "[fd00:1::2]:8080", "a fd00:1::12")
		// Its own virtual address, and itself behind it.
		e.vips(7, vipOf("10.0.1.4", "10.0.1.10"))
		l.wantAnswer(ns0, network, "10.0.1.4:8080", "a 10.0.1.10")
		l.wantAnswer(ns0, network, "[fd00:1::2]:8080", "a fd00:1::10")
		if _, err := l.ask(ns2, network, "10.0.1.3:8080"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s to an address without backends: got %v, want refused", network, err)
		}
		e.vips(7, vipOf("10.0.1.3", "10.0.1.11"))
		l.wantAnswer(ns2, network, "10.0.1.3:8080", "b 10.0.1.12")
		e.vips(7, vipOf("10.0.1.3", ""))
		must(t, e.net.SetVIPs(context.Background(), 7, nil, []netip.Addr{netip.MustParseAddr("10.0.1.4"), netip.MustParseAddr("10.0.1.99")}))
		if s, err := l.dialFor(ns0, "tcp", "10.0.1.4:8080", 200*time.Millisecond); err == nil {
			t.Errorf("an address that was taken away answers: %v", s)
		}
	}
	for _, v := range []struct {
		ns int
		to string
	}{{ns2, "10.0.1.2"}, {ns0, "10.0.1.2"}, {ns2, "fd00:1::2"}, {ns0, "fd00:1::2"}} {
		if err := l.ping(v.ns, v.to); err != nil {
			t.Errorf("ping %s: %v", v.to, err)
		}
	}
	if err := l.ping(ns2, "10.0.1.3"); err == nil {
		t.Error("an address without backends answers pings")
	}
}

// ping sends one echo request and waits for its answer, which must come from the address that was asked.
func (l *lab) ping(ns int, to string) error {
	network, request, answer := "ip4:icmp", byte(8), byte(0)
	if strings.Contains(to, ":") {
		network, request, answer = "ip6:ipv6-icmp", 128, 129
	}
	c, err := l.dial(ns, network, to)
	if err != nil {
		return err
	}
	defer c.Close()
	msg := []byte{request, 0, 0, 0, 0x12, 0x34, 0, 1}
	sum := ^(uint16(request)<<8 + 0x1234 + 1) // the kernel computes it for IPv6
	msg[2], msg[3] = byte(sum>>8), byte(sum)
	if _, err := c.Write(msg); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 256)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		got := buf[:n]
		if network == "ip4:icmp" {
			got = got[min(20, n):] // the IPv4 header
		}
		if len(got) >= 8 && got[0] == answer && got[4] == 0x12 && got[5] == 0x34 {
			return nil
		}
	}
}

func TestRemovedVIPBackend(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	e.overlay(overlayOf(7, "10.0.1.0/24 fd00:1::/64"))
	_, ns0 := e.join(0, on(7, "10.0.1.10 fd00:1::10"))
	_, ns1 := e.join(1, on(7, "10.0.1.11 fd00:1::11"))
	_, ns2 := e.join(2, on(7, "10.0.1.12 fd00:1::12"))
	l.serve(ns0, "a", 8080)
	l.serve(ns1, "b", 8080)
	// A flow from before there was the address is not remembered either.
	early, err := l.dial(ns2, "udp", "10.0.1.2:8080")
	must(t, err)
	_, _ = early.Write([]byte("who\n"))
	e.vips(7, vipOf("10.0.1.2", "10.0.1.10"), vipOf("fd00:1::2", "fd00:1::10"))
	if got, err := ask(early); err != nil || got != "a 10.0.1.12" {
		t.Errorf("a socket from before the address: %q, %v", got, err)
	}
	for _, v := range []struct{ vip, own, first, second string }{
		{"10.0.1.2", "10.0.1.12", "10.0.1.10", "10.0.1.11"}, {"fd00:1::2", "fd00:1::12", "fd00:1::10", "fd00:1::11"},
	} {
		to := netip.AddrPortFrom(netip.MustParseAddr(v.vip), 8080).String()
		tcp, err := l.dial(ns2, "tcp", to)
		must(t, err)
		udp, err := l.dial(ns2, "udp", to)
		must(t, err)
		for range 2 {
			if got, err := ask(udp); err != nil || got != "a "+v.own {
				t.Fatalf("UDP before: %q, %v", got, err)
			}
		}
		if got, err := ask(tcp); err != nil || got != "a "+v.own {
			t.Fatalf("TCP before: %q, %v", got, err)
		}
		e.vips(7, vipOf(v.vip, v.first+" "+v.second))
		if got, err := ask(udp); err != nil || got != "a "+v.own {
			t.Errorf("UDP after a further backend: %q, %v", got, err)
		}
		e.vips(7, vipOf(v.vip, v.second))
		for range 20 {
			l.wantAnswer(ns2, "tcp", to, "b "+v.own)
		}
		if got, err := ask(udp); err != nil || got != "b "+v.own {
			t.Errorf("a UDP socket goes on to the removed backend: %q, %v", got, err)
		}
		if got, err := ask(tcp); err != nil || got != "a "+v.own {
			t.Errorf("a TCP connection does not drain: %q, %v", got, err)
		}
		e.vips(7, vipOf(v.vip, ""))
		if got, err := ask(udp); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Log(l.sh(ns2, "grep udp /proc/net/nf_conntrack || true; nft list chain inet skep-abc123 vip-10.0.1.2"), l.sh(ns1, "grep udp /proc/net/nf_conntrack||true"))
			t.Errorf("UDP without backends: %q, %v", got, err)
		}
	}
}
