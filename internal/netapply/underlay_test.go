package netapply

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/netplan"
)

// wantMTU waits until the interfaces of a task, on both ends, and the host link have an MTU, and that of a network 50 less.
func (l *lab) wantMTU(task netplan.Task, ns, mtu int) {
	l.t.Helper()
	for _, v := range []struct {
		ns   int
		name string
		mtu  int
	}{
		{l.host, "skep-abc123", mtu}, {l.gateway(), netplan.Bridge, mtu}, {l.gateway(), "t" + task.Name(), mtu}, {ns, "gw", mtu},
		{ns, "eth0", mtu - 50},
	} {
		within(l.t, 5*time.Second, fmt.Sprintf("interface %s with an MTU of %d", v.name, v.mtu), func() bool {
			return strings.Contains(l.sh(v.ns, "ip -o link show dev %s", v.name), fmt.Sprintf(" mtu %d ", v.mtu))
		})
	}
}

// The tasks' interfaces follow the host's way out, while they run, also when it comes late.
func TestFollowsUnderlay(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	e.overlay(overlayOf(7, "10.0.1.0/24"))
	t0, ns0 := e.join(0, on(7, "10.0.1.10"))
	l.serve(l.client, "out", 9000)
	l.wantMTU(t0, ns0, 1500) // there is no way out yet
	var told sync.Map
	l.net.cfg.OnRepair = func(what string, _ error) {
		_, mtu, _ := strings.Cut(what, ", which follow the host's MTU of ")
		told.Store(mtu, true)
	}
	repairs := l.run()
	within(t, 5*time.Second, "Run listens", func() bool {
		l.sh(l.host, "nft delete table inet skep-abc123 2>/dev/null || true")
		return repairs.Load() > 0
	})
	last := 1500
	for _, v := range []struct {
		change string
		mtu    int
	}{
		{"ip link set eth0 mtu 1420; ip route add default via " + clientIP4, 1420}, // it came late
		{"ip link set eth0 mtu 9000", 9000},
		{"ip link add vpn type veth peer name vpn1 && ip link set vpn mtu 1400 up && ip link set vpn1 up && ip -6 route add default dev vpn metric 5", 9000},
		{"ip route delete default", 1400}, // that of IPv6 is left
		{"ip link delete vpn; ip route add default via " + clientIP4, 9000},
		{"ip route delete default", 9000},                                          // what was known stays
		{"ip link set eth0 mtu 1000; ip route add default via " + clientIP4, 1280}, // no less for IPv6
		{"ip link set eth0 mtu 1500", 1500},
	} {
		l.sh(l.host, "%s", v.change)
		if v.mtu == last { // Run has heard it, or will: it changes nothing
			_, err := e.net.mend(context.Background(), dirt{all: true}, dirt{})
			must(t, err)
		}
		l.wantMTU(t0, ns0, v.mtu)
		last = v.mtu
		within(t, 5*time.Second, "word of it", func() bool { _, ok := told.Load(strconv.Itoa(v.mtu)); return ok })
		l.wantAnswer(ns0, "tcp", clientIP4+":9000", "out "+hostIP4)
	}
	// A task that comes later has it from the start, and nothing is left to mend.
	l.sh(l.host, "ip link set eth0 mtu 1440")
	l.wantMTU(t0, ns0, 1440)
	t1, ns1 := e.join(1, on(7, "10.0.1.11"))
	l.wantMTU(t1, ns1, 1440)
	in := netplan.Input{Node: e.node, Tasks: []netplan.Task{t0, t1}, Overlays: []netplan.Overlay{overlayOf(7, "10.0.1.0/24")}}
	if n, err := e.net.Sync(context.Background(), in); n != 0 || err != nil {
		t.Errorf("a full pass after that wrote %d requests, %v", n, err)
	}
	// Whoever names an MTU has that one.
	in.Node.MTU = 1300
	_, err := e.net.Sync(context.Background(), in)
	must(t, err)
	l.wantMTU(t0, ns0, 1300)
	l.sh(l.host, "ip link set eth0 mtu 1500")
	if _, err := e.net.mend(context.Background(), dirt{all: true, out: true}, dirt{}); err != nil {
		t.Error(err)
	}
	l.wantMTU(t0, ns0, 1300)
}
