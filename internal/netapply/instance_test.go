package netapply

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/skep-swarm/skep/internal/netplan"
)

func TestTwoInstancesOnOneHost(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	l.serve(ns0, "a", 8080)
	l.setPorts(port(netplan.TCP, 80, t0))
	one := l.dump()

	other, in := l.instance("def456", 2)
	routes, err := HostRoutes(l.host)
	must(t, err)
	if in.Node.Pool4, err = netplan.ChoosePool(routes, netplan.DefaultPools(), in.Node.HostLink()); err != nil || in.Node.Pool4 == l.in.Node.Pool4 {
		t.Fatalf("pool of the second instance: %v, %v", in.Node.Pool4, err)
	}
	block, _ := netplan.Block4(in.Node.Pool4, 1)
	in.Node.Blocks4 = []netip.Prefix{block}
	_, err = other.Sync(context.Background(), in)
	must(t, err)
	b := taskOf(in.Node, 0)
	path, err := other.AddTask(context.Background(), b)
	must(t, err)
	nsb, err := openNS(path)
	must(t, err)
	defer syscall.Close(nsb)
	l.serve(nsb, "b", 8080)
	must(t, other.SetPorts(context.Background(), []netplan.Port{port(netplan.TCP, 81, b)}, nil))

	l.wantAnswer(l.client, "tcp", hostIP4+":80", "a "+clientIP4)
	l.wantAnswer(l.client, "tcp", hostIP4+":81", "b "+clientIP4)
	// Across instances, through the host's published ports.
	if got, err := l.ask(ns0, "tcp", hostIP4+":81"); err != nil || !strings.HasPrefix(got, "b ") {
		t.Errorf("a task of one instance calls the other: %q, %v", got, err)
	}
	if n := l.syncWith(withTasks(l, 1, port(netplan.TCP, 80, t0))); n != 0 {
		t.Errorf("a second instance disturbed the first: %d requests to mend it", n)
	}
	must(t, other.Destroy(context.Background(), "def456"))
	if now := l.dump(); now != one {
		t.Errorf("the second instance left something:\n%s\nwas\n%s", now, one)
	}
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "a "+clientIP4)
}

func (l *lab) syncWith(in netplan.Input) int {
	l.t.Helper()
	n, err := l.net.Sync(context.Background(), in)
	must(l.t, err)
	return n
}

func TestDestroyLeavesNothing(t *testing.T) {
	l := newLab(t)
	l.sh(l.host, "nft add table ip filter")
	l.sh(l.host, "nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'")
	// Forwarding stays on; that it does is no part of this comparison.
	l.sh(l.host, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	before := l.dump()
	l.sync()
	t0, _ := l.addTask(0)
	l.addTask(1)
	l.setPorts(port(netplan.TCP, 80, t0))
	must(t, l.net.Destroy(context.Background(), "abc123"))
	if after := l.dump(); after != before {
		t.Errorf("left behind:\n%s\nwas\n%s", after, before)
	}
	if _, err := os.Stat(l.net.cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace folder is still there: %v", err)
	}
	// Destroying nothing is no error, and the network can be set up again.
	must(t, l.net.Destroy(context.Background(), "abc123"))
	if _, err := l.net.AddTask(context.Background(), t0); !errors.Is(err, ErrNotReady) {
		t.Errorf("AddTask after Destroy: %v", err)
	}
	l.sync()
	_, ns0 := l.addTask(0)
	l.serve(ns0, "a", 8080)
	l.setPorts(port(netplan.TCP, 80, t0))
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "a "+clientIP4)
}
