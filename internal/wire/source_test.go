package wire

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
)

// TestSilentSourceIsBounded: clients of one address that never speak take a bounded number of the places.
func TestSilentSourceIsBounded(t *testing.T) {
	m := &Mux{conns: make(chan struct{}, 1000), early: map[net.Conn]struct{}{}, from: map[netip.Addr]int{}}
	conn := func(addr string) net.Conn {
		return addrConn{addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))}
	}
	for i := range maxPerSource {
		if !m.admit(conn(fmt.Sprintf("192.0.2.1:%d", 1000+i))) {
			t.Fatalf("client %d was refused", i)
		}
	}
	if m.admit(conn("192.0.2.1:9")) || m.admit(conn("[::ffff:192.0.2.1]:9")) {
		t.Error("one address has more places than it may")
	}
	if !m.admit(conn("192.0.2.2:9")) {
		t.Error("another address is held up")
	}
	for i := range maxPerSource {
		if !m.admit(conn(fmt.Sprintf("[2001:db8::%x]:9", i+1))) {
			t.Fatalf("IPv6 client %d was refused", i)
		}
	}
	if m.admit(conn("[2001:db8::ffff]:9")) {
		t.Error("one IPv6 network has more places than it may")
	}
}

// addrConn is a connection of which only the remote address is of interest.
type addrConn struct {
	net.Conn
	addr net.Addr
}

func (c addrConn) RemoteAddr() net.Addr { return c.addr }
