package netapply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// A narrower wire beyond the host: its errors must reach the task.
func TestPathMTU(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	l.setPorts(port(netplan.TCP, 80, t0))
	// A router with a narrow wire stands behind the client's machine.
	far := l.namespace("far")
	l.sh(l.client, "ip link add eth1 type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), far)
	l.sh(l.client, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	for _, v := range []struct {
		ns           int
		dev, a4, a6  string
		via4, via6   string
		toNet4, net6 string
	}{
		{l.client, "eth1", "198.51.100.1/24", "2001:db8:1::1/64", "", "", "", ""},
		{far, "eth0", "198.51.100.2/24", "2001:db8:1::2/64", "198.51.100.1", "2001:db8:1::1", "192.0.2.0/24", "2001:db8::/64"},
	} {
		l.sh(v.ns, "sysctl -qw net.ipv6.conf.%s.accept_dad=0; ip link set %s mtu 1300 up; ip addr add %s dev %s; ip addr add %s dev %s nodad", v.dev, v.dev, v.a4, v.dev, v.a6, v.dev)
		if v.via4 != "" {
			l.sh(v.ns, "ip route add %s via %s; ip route add %s via %s", v.toNet4, v.via4, v.net6, v.via6)
		}
	}
	l.sh(l.host, "ip route add 198.51.100.0/24 via %s; ip route add 2001:db8:1::/64 via %s", clientIP4, clientIP6)

	// The task sends much to whoever connects: full packets, too large to pass.
	const size = 300_000
	var ln net.Listener
	must(t, inNS(ns0, func() (err error) { ln, err = net.Listen("tcp", ":8080"); return err }))
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = c.Write(make([]byte, size))
				_ = c.Close()
			}()
		}
	}()
	for _, addr := range []string{hostIP4 + ":80", "[" + hostIP6 + "]:80"} {
		c, err := l.dial(far, "tcp", addr)
		must(t, err)
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := io.Copy(io.Discard, c); n != size || err != nil {
			t.Errorf("%s: got %d of %d bytes, %v", addr, n, size, err)
		}
	}
	// TCP agreed on the segment size beforehand; a datagram did not.
	udp, err := l.dial(ns0, "udp", "198.51.100.2:9")
	must(t, err)
	raw, err := udp.(*net.UDPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}))
	must(t, err)
	within(t, 2*time.Second, "a task hears that a datagram is too large", func() bool {
		_, err := udp.Write(make([]byte, 1400))
		return errors.Is(err, unix.EMSGSIZE)
	})
}

func TestAnotherProcessIsNotAdopted(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, _ := l.addTask(0)
	// The number of the task's process now belongs to one in the host's namespace.
	var proc *exec.Cmd
	must(t, inNS(l.host, func() error {
		proc = exec.Command("sleep", "60")
		return proc.Start()
	}))
	t.Cleanup(func() { _, _ = proc.Process.Kill(), proc.Wait() })
	before := l.sh(l.host, "ip -o link; ip -o addr")
	must(t, dropNS(l.net.Path(t0)))
	t0.PID = proc.Process.Pid
	path, err := l.net.AddTask(context.Background(), t0)
	must(t, err)
	if sameNS(path, fmt.Sprintf("/proc/self/fd/%d", l.host)) {
		t.Error("the host's namespace was taken for a task's")
	}
	if after := l.sh(l.host, "ip -o link; ip -o addr"); after != before {
		t.Errorf("the host's namespace was changed:\n%s\nwas\n%s", after, before)
	}
}

func TestRouterAdvertisementsStay(t *testing.T) {
	l := newLab(t)
	l.sh(l.host, "sysctl -qw net.ipv6.conf.eth0.accept_ra=1 net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.forwarding=0")
	l.sync()
	if got := strings.TrimSpace(l.sh(l.host, "sysctl -n net.ipv6.conf.eth0.accept_ra")); got != "2" {
		t.Errorf("accept_ra of the host's interface is %s, want 2: it loses its default route", got)
	}
	if got := strings.TrimSpace(l.sh(l.host, "sysctl -n net.ipv6.conf.all.forwarding")); got != "1" {
		t.Errorf("IPv6 forwarding is %s", got)
	}
}

func TestIPv4Only(t *testing.T) {
	l := newLab(t)
	l.in.Node.Block6, l.in.Node.Pool6, l.in.Node.Link6 = netip.Prefix{}, netip.Prefix{}, netip.Prefix{}
	l.sync()
	t0 := l.task4(0)
	path, err := l.net.AddTask(context.Background(), t0)
	must(t, err)
	ns, err := openNS(path)
	must(t, err)
	defer unix.Close(ns)
	l.serve(ns, "a", 8080)
	p := port(netplan.TCP, 80, t0)
	p.Backends6 = nil
	l.setPorts(p)
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "a "+clientIP4)
	in := l.in
	in.Tasks, in.Ports = []netplan.Task{t0}, []netplan.Port{p}
	if n := l.syncWith(in); n != 0 {
		t.Errorf("a second pass wrote %d requests", n)
	}
}

// task4 is the i-th task of a node without IPv6.
func (l *lab) task4(i int) netplan.Task {
	n := l.in.Node
	n.Block6 = netip.MustParsePrefix("fd00::/64")
	t := taskOf(n, i)
	t.Addr6 = netip.Addr{}
	return t
}

// A node that gets another block, and another MTU, keeps its tasks going.
func TestNodeChanges(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	l.serve(ns0, "a", 8080)
	l.setPorts(port(netplan.TCP, 80, t0))
	block, _ := netplan.Block4(l.in.Node.Pool4, 7)
	l.in.Node.Blocks4 = append(l.in.Node.Blocks4, block)
	l.in.Node.MTU = 1400
	if n := l.syncWith(withTasks(l, 1, port(netplan.TCP, 80, t0))); n == 0 {
		t.Error("nothing was written for another block and another MTU")
	}
	if got := l.sh(ns0, "ip -o link show gw"); !strings.Contains(got, "mtu 1400") {
		t.Errorf("the task's interface: %s", got)
	}
	t1 := l.task(1)
	t1.Addr4 = block.Addr().Next().Next()
	t1.Addr6 = netplan.Addr6(l.in.Node.Block6, t1.Addr4)
	path, err := l.net.AddTask(context.Background(), t1)
	must(t, err)
	ns1, err := openNS(path)
	must(t, err)
	defer unix.Close(ns1)
	l.serve(ns1, "b", 8080)
	l.setPorts(port(netplan.TCP, 81, t1))
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "a "+clientIP4)
	l.wantAnswer(l.client, "tcp", hostIP4+":81", "b "+clientIP4)
	l.serve(l.client, "out", 9000)
	l.wantAnswer(ns1, "tcp", clientIP4+":9000", "out "+hostIP4)
	if got, err := l.tryAsk(ns1, t0.Addr4.String()+":8080"); err == nil {
		t.Errorf("a task reached one of another block: %q", got)
	}
}

func TestRouteClash(t *testing.T) {
	l := newLab(t)
	l.sh(l.host, "ip route add %s via %s", l.in.Node.Blocks4[0], clientIP4)
	_, err := l.net.Sync(context.Background(), l.in)
	if err == nil || !strings.Contains(err.Error(), "choose another pool") {
		t.Errorf("a clash with the host's routes: %v", err)
	}
	if got := l.sh(l.host, "ip route show %s", l.in.Node.Blocks4[0]); !strings.Contains(got, clientIP4) {
		t.Errorf("the host's own route was taken over: %s", got)
	}
}

func TestDestroyWhileRunning(t *testing.T) {
	l := newLab(t)
	l.sync()
	repairs := l.run()
	l.sh(l.host, "nft flush ruleset")
	within(t, 5*time.Second, "first repair", func() bool { return repairs.Load() > 0 })
	gw := l.gateway()
	var ino unix.Stat_t
	must(t, unix.Fstat(gw, &ino))
	must(t, l.net.Destroy(context.Background(), "abc123"))
	if got := l.sh(l.host, "nft list ruleset; ip -o link show type veth"); strings.Contains(got, "skep-") {
		t.Errorf("left behind, or made again by Run:\n%s", got)
	}
	// A new life of the same instance is watched, too.
	l.sync()
	l.sh(l.host, "nft flush ruleset")
	within(t, 2*time.Second, "repair after a new Sync", func() bool {
		return strings.Contains(l.sh(l.host, "nft list ruleset"), "skep-abc123")
	})
}

// The very first datagram after AddTask arrives: what the kernel puts off when
// a link comes up is done.
func TestReadyWhenAdded(t *testing.T) {
	l := newLab(t)
	var u unix.Utsname
	must(t, unix.Uname(&u))
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil || major < 6 || major == 6 && minor < 8 {
		t.Skip("needs Linux 6.8: older kernels finish a link's start in their own time")
	}
	l.sync()
	for i := range 20 {
		ti, ns := l.addTask(i % 3)
		l.serve(ns, "a", 8080)
		l.setPorts(port(netplan.UDP, 80, ti))
		l.wantAnswer(l.client, "udp", hostIP4+":80", "a "+clientIP4)
		must(t, l.net.RemoveTask(context.Background(), ti.ID))
	}
}

func TestHostRoutes(t *testing.T) {
	l := newLab(t)
	l.sh(l.host, "ip route add default via %s; ip route add 10.9.0.0/16 via %s", clientIP4, clientIP4)
	routes, err := HostRoutes(l.host)
	must(t, err)
	for _, want := range []string{"192.0.2.0/24", "2001:db8::/64", "10.9.0.0/16"} {
		if !slices.Contains(routes, netplan.HostRoute{Dst: netip.MustParsePrefix(want), Link: "eth0"}) {
			t.Errorf("%s is missing from %v", want, routes)
		}
	}
}

// A flow to the same port number elsewhere, and one that is rightly balanced,
// live through a restart.
func TestRestartKeepsUDPFlows(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	t1, ns1 := l.addTask(1)
	l.serve(ns0, "a", 8080)
	l.serve(ns1, "b", 8080)
	l.serve(l.client, "out", 80)
	l.setPorts(port(netplan.UDP, 80, t0, t1))
	out, err := l.dial(ns0, "udp", clientIP4+":80")
	must(t, err)
	in, err := l.dial(l.client, "udp", hostIP4+":80")
	must(t, err)
	_, err = ask(out)
	must(t, err)
	first, err := ask(in)
	must(t, err)
	before := l.sh(l.host, "conntrack -L -p udp 2>/dev/null | sed 's/^udp *17 [0-9]* //' | sort")
	again, err := New(Config{Dir: l.net.cfg.Dir, HostNS: l.host})
	must(t, err)
	t.Cleanup(func() { must(t, again.Close()) })
	_, err = again.Sync(context.Background(), withTasks(l, 2, port(netplan.UDP, 80, t0, t1)))
	must(t, err)
	if after := l.sh(l.host, "conntrack -L -p udp 2>/dev/null | sed 's/^udp *17 [0-9]* //' | sort"); after != before {
		t.Errorf("a restart changed the tracked flows:\n%s\nwas\n%s", after, before)
	}
	if got, err := ask(in); err != nil || got != first {
		t.Errorf("a flow moved from %q to %q, %v", first, got, err)
	}
	if got, err := ask(out); err != nil || got != "out "+hostIP4 {
		t.Errorf("an outgoing flow: %q, %v", got, err)
	}
}

// What a daemon that was killed half way left is completed.
func TestHalfMadeTask(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, t1, t2 := l.task(0), l.task(1), l.task(2)
	must(t, newNS(l.net.Path(t0), func() error { return nil })) // a namespace without a link
	must(t, touch(l.net.Path(t1)))                              // a file without a namespace
	l.sh(l.gateway(), "ip link add t%s type dummy 2>/dev/null || ip link add t%s type veth peer name x", t2.Name(), t2.Name())
	l.syncWith(withTasks(l, 3, port(netplan.TCP, 80, t0), port(netplan.TCP, 81, t1), port(netplan.TCP, 82, t2)))
	for i, ti := range []netplan.Task{t0, t1, t2} {
		fd, err := openNS(l.net.Path(ti))
		must(t, err)
		defer unix.Close(fd)
		l.serve(fd, "a", 8080)
		l.wantAnswer(l.client, "tcp", fmt.Sprintf("%s:%d", hostIP4, 80+i), "a "+clientIP4)
		l.wantAnswer(l.client, "tcp", fmt.Sprintf("[%s]:%d", hostIP6, 80+i), "a "+clientIP6)
	}
	if n := l.syncWith(withTasks(l, 3, port(netplan.TCP, 80, t0), port(netplan.TCP, 81, t1), port(netplan.TCP, 82, t2))); n != 0 {
		t.Errorf("a second pass wrote %d requests", n)
	}
}
