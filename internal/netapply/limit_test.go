package netapply

import (
	"context"
	"net/netip"
	"testing"

	"github.com/skep-swarm/skep/internal/netplan"
)

// What is refused leaves nothing behind, which each pass after it would trip over.
func TestTooManyRemotes(t *testing.T) {
	l := newLab(t)
	a, _ := l.ends()
	o := overlayOf(7, "10.0.0.0/8")
	o.Remotes = far(clientIP4, "10.0.0.2", "10.0.0.3")
	a.overlay(o)
	var many []netplan.Remote
	for addr := netip.MustParseAddr("10.1.0.0"); len(many) < netplan.MaxRemotes; addr = addr.Next() {
		many = append(many, netplan.Remote{Addr4: addr, VTEP: netip.MustParseAddr(clientIP4)})
	}
	ctx, gone := context.Background(), netip.MustParseAddr("10.0.0.2")
	if err := a.net.SetRemotes(ctx, 7, many, []netip.Addr{gone}); err == nil {
		t.Error("more than fit were taken")
	}
	if got := a.net.overlays[7].full().Remotes; len(got) != 2 {
		t.Errorf("a refused call left %d tasks, want the 2 of before", len(got))
	}
	if _, err := a.net.mend(ctx, dirt{all: true}, dirt{}); err != nil {
		t.Errorf("a pass after it: %v", err)
	}
	must(t, a.net.SetRemotes(ctx, 7, many[:1], []netip.Addr{gone}))
	if got := a.net.overlays[7].full().Remotes; len(got) != 2 {
		t.Errorf("one came and one went: %d tasks", len(got))
	}
}

// Where no more fits, one may still take the place of another.
func TestFullTables(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	ctx := context.Background()
	o := overlayOf(7, "10.0.0.0/8")
	for addr := netip.MustParseAddr("10.1.0.0"); len(o.VIPs) < netplan.MaxVIPs; addr = addr.Next() {
		o.VIPs = append(o.VIPs, netplan.VIP{Addr: addr})
	}
	e.overlay(o)
	if err := e.net.SetVIPs(ctx, 7, []netplan.VIP{vipOf("10.2.0.1", "")}, nil); err == nil {
		t.Error("more virtual addresses than fit were taken")
	}
	must(t, e.net.SetVIPs(ctx, 7, []netplan.VIP{vipOf("10.2.0.1", "")}, []netip.Addr{o.VIPs[0].Addr}))

	in := netplan.Input{Node: e.node, Overlays: []netplan.Overlay{overlayOf(7, "10.0.0.0/8")}}
	for number := uint16(1); len(in.Ports) < netplan.MaxPorts; number++ {
		in.Ports = append(in.Ports, port(netplan.TCP, number))
	}
	_, err := e.net.Sync(ctx, in)
	must(t, err)
	other := []netplan.Port{port(netplan.UDP, 80)}
	if err := e.net.SetPorts(ctx, other, nil); err == nil {
		t.Error("more ports than fit were taken")
	}
	must(t, e.net.SetPorts(ctx, other, []netplan.PortKey{in.Ports[0].PortKey}))
}
