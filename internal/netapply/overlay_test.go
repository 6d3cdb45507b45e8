package netapply

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// An end is one node of a test: its network, its settings and its host's namespace.
type end struct {
	*lab
	net  *Network
	node netplan.Node
	ns   int
}

// ends are the lab's host and client as two nodes on one wire.
func (l *lab) ends() (a, b end) {
	l.in.Node.VTEP = netip.MustParseAddr(hostIP4)
	l.sync()
	a = end{l, l.net, l.in.Node, l.host}
	n, err := New(Config{Dir: filepath.Join(l.dir, "run-b"), HostNS: l.client})
	must(l.t, err)
	l.t.Cleanup(func() {
		must(l.t, n.Destroy(context.Background(), "bbbbbb"))
		must(l.t, n.Close())
	})
	node := l.in.Node
	node.Instance, node.VTEP = "bbbbbb", netip.MustParseAddr(clientIP4)
	node.Blocks4 = nil
	block, _ := netplan.Block4(node.Pool4, 2)
	node.Blocks4, node.Block6 = []netip.Prefix{block}, netplan.Block6(node.Pool6, 2)
	_, err = n.Sync(context.Background(), netplan.Input{Node: node})
	must(l.t, err)
	return a, end{l, n, node, l.client}
}

func overlayOf(num uint64, subnet string) netplan.Overlay {
	o := netplan.Overlay{Num: num, VNI: uint32(4096 + num)}
	for _, s := range strings.Fields(subnet) {
		o.Subnets = append(o.Subnets, netip.MustParsePrefix(s))
	}
	return o
}

func on(num uint64, list string) netplan.Attachment {
	f := strings.Fields(list)
	a := netplan.Attachment{Network: num, Addr4: netip.MustParseAddr(f[0])}
	if len(f) > 1 {
		a.Addr6 = netip.MustParseAddr(f[1])
	}
	return a
}

func vipOf(addr, backends string) netplan.VIP {
	v := netplan.VIP{Addr: netip.MustParseAddr(addr)}
	for _, s := range strings.Fields(backends) {
		v.Backends = append(v.Backends, netip.MustParseAddr(s))
	}
	return v
}

// join adds the i-th task of a node with its networks and returns its namespace.
func (e end) join(i int, nets ...netplan.Attachment) (netplan.Task, int) {
	e.t.Helper()
	t := taskOf(e.node, i)
	t.Nets = nets
	path, err := e.net.AddTask(context.Background(), t)
	must(e.t, err)
	fd, err := openNS(path)
	must(e.t, err)
	e.t.Cleanup(func() { _ = unix.Close(fd) })
	return t, fd
}

func (e end) overlay(o netplan.Overlay) {
	e.t.Helper()
	must(e.t, e.net.SetOverlay(context.Background(), o))
}

func (e end) vips(num uint64, set ...netplan.VIP) {
	e.t.Helper()
	must(e.t, e.net.SetVIPs(context.Background(), num, set, nil))
}

// alone is the lab's host as the only node.
func (l *lab) alone() end {
	l.sync()
	return end{l, l.net, l.in.Node, l.host}
}

func TestOverlayAcrossHosts(t *testing.T) {
	l := newLab(t)
	a, b := l.ends()
	o := overlayOf(7, "10.0.1.0/24 fd00:1::/64")
	a.overlay(o)
	b.overlay(o)
	_, nsA := a.join(0, on(7, "10.0.1.10 fd00:1::10"))
	_, nsA2 := a.join(1, on(7, "10.0.1.11 fd00:1::11"))
	l.serve(nsA, "a", 8080)
	l.wantAnswer(nsA2, "tcp", "10.0.1.10:8080", "a 10.0.1.11")
	l.wantAnswer(nsA2, "udp", "[fd00:1::10]:8080", "a fd00:1::11")
	if out := l.sh(l.host, "ss -lun"); strings.Contains(out, ":4789") {
		t.Errorf("a node that has a network alone listens for VXLAN:\n%s", out)
	}
	// Another node comes, and its tasks are entered one by one.
	_, nsB := b.join(0, on(7, "10.0.1.20 fd00:1::20"))
	_, nsB2 := b.join(1, on(7, "10.0.1.21 fd00:1::21"))
	l.serve(nsB, "b", 8080)
	l.serve(nsB2, "b2", 8080)
	ctx := context.Background()
	far := func(e end, vtep string, lists ...string) {
		t.Helper()
		for _, s := range lists {
			at := on(7, s)
			must(t, e.net.SetRemotes(ctx, 7, []netplan.Remote{{Addr4: at.Addr4, Addr6: at.Addr6, VTEP: netip.MustParseAddr(vtep)}}, nil))
		}
	}
	far(a, clientIP4, "10.0.1.20 fd00:1::20", "10.0.1.21 fd00:1::21")
	far(b, hostIP4, "10.0.1.10 fd00:1::10", "10.0.1.11 fd00:1::11")
	for _, network := range []string{"tcp", "udp"} {
		l.wantAnswer(nsA, network, "10.0.1.20:8080", "b 10.0.1.10")
		l.wantAnswer(nsA2, network, "10.0.1.21:8080", "b2 10.0.1.11")
		l.wantAnswer(nsA, network, "[fd00:1::20]:8080", "b fd00:1::10")
		l.wantAnswer(nsB, network, "10.0.1.10:8080", "a 10.0.1.20")
		l.wantAnswer(nsB, network, "[fd00:1::10]:8080", "a fd00:1::20")
	}
	if out := l.sh(l.host, "ss -lun"); !strings.Contains(out, ":4789") {
		t.Errorf("the VXLAN socket is not in the host's namespace:\n%s", out)
	}
	// By virtual address, whichever node the backend is on.
	a.vips(7, vipOf("10.0.1.2", "10.0.1.20"), vipOf("fd00:1::2", "fd00:1::20"))
	b.vips(7, vipOf("10.0.1.2", "10.0.1.10"))
	for _, network := range []string{"tcp", "udp"} {
		l.wantAnswer(nsA, network, "10.0.1.2:8080", "b 10.0.1.10")
		l.wantAnswer(nsA, network, "[fd00:1::2]:8080", "b fd00:1::10")
		l.wantAnswer(nsB2, network, "10.0.1.2:8080", "a 10.0.1.21")
	}
	// What is as it should be is not written again.
	in := netplan.Input{Node: a.node, Overlays: []netplan.Overlay{a.net.overlays[7].full()}}
	for i, s := range []string{"10.0.1.10 fd00:1::10", "10.0.1.11 fd00:1::11"} {
		task := taskOf(a.node, i)
		task.Nets = []netplan.Attachment{on(7, s)}
		in.Tasks = append(in.Tasks, task)
	}
	if n, err := a.net.Sync(ctx, in); n != 0 || err != nil {
		t.Errorf("a full pass wrote %d requests, %v", n, err)
	}
	// A task that has gone elsewhere is reached there, and one that has gone is reached no more.
	must(t, a.net.SetRemotes(ctx, 7, nil, []netip.Addr{netip.MustParseAddr("10.0.1.20")}))
	if got, err := l.tryAsk(nsA, "10.0.1.20:8080"); err == nil {
		t.Errorf("a task that was taken away still answers: %q", got)
	}
	l.wantAnswer(nsA, "tcp", "10.0.1.21:8080", "b2 10.0.1.10")
	must(t, a.net.SetRemotes(ctx, 7, nil, []netip.Addr{netip.MustParseAddr("10.0.1.21")}))
	if out := l.sh(l.host, "ss -lun"); strings.Contains(out, ":4789") {
		t.Errorf("the VXLAN device outlives the last remote task:\n%s", out)
	}
}

func TestSameSubnetApart(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	var ns [2]int
	for i, num := range []uint64{7, 8} {
		e.overlay(overlayOf(num, "10.0.1.0/24"))
		_, ns[i] = e.join(2*i, on(num, "10.0.1.10"))
		_, srv := e.join(2*i+1, on(num, "10.0.1.11"))
		l.serve(srv, fmt.Sprint("net", num), 8080)
	}
	for i, want := range []string{"net7 10.0.1.10", "net8 10.0.1.10"} {
		l.wantAnswer(ns[i], "tcp", "10.0.1.11:8080", want)
	}
	task := taskOf(e.node, 9)
	task.Nets = []netplan.Attachment{on(7, "10.0.1.12"), on(8, "10.0.1.12")}
	if _, err := e.net.AddTask(context.Background(), task); err == nil || !strings.Contains(err.Error(), "both have") {
		t.Errorf("a task in two networks with one subnet: got %v", err)
	}
}

func TestInternalNetwork(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	inner := overlayOf(7, "10.0.1.0/24 fd00:1::/64")
	inner.Internal = true
	e.overlay(inner)
	e.overlay(overlayOf(8, "10.0.2.0/24"))
	sealed, ns0 := e.join(0, on(7, "10.0.1.10 fd00:1::10"))
	both, ns1 := e.join(1, on(7, "10.0.1.11 fd00:1::11"), on(8, "10.0.2.11"))
	l.serve(ns0, "sealed", 8080)
	l.serve(ns1, "both", 8080)
	l.serve(l.client, "out", 9000)
	l.wantAnswer(ns1, "tcp", "10.0.1.10:8080", "sealed 10.0.1.11")
	l.wantAnswer(ns0, "tcp", "10.0.1.11:8080", "both 10.0.1.10")
	l.wantAnswer(ns1, "tcp", clientIP4+":9000", "out "+hostIP4)
	link4, _ := l.in.Node.LinkAddrs(false)
	for _, to := range []string{clientIP4, "[" + clientIP6 + "]", hostIP4, link4.String()} {
		start := time.Now()
		_, err := l.dial(ns0, "tcp", to+":9000")
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("from an internal network to %s: got %v, want refused", to, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("the refusal for %s took %v", to, took)
		}
		if got, err := l.ask(ns0, "udp", to+":9000"); !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.EACCES) {
			t.Errorf("from an internal network to %s by UDP: got %q, %v, want no route", to, got, err)
		}
	}
	// Its published ports are there for others all the same, over both protocols.
	l.setPorts(port(netplan.TCP, 80, sealed), port(netplan.UDP, 80, sealed), port(netplan.TCP, 81, both))
	for _, network := range []string{"tcp", "udp"} {
		l.wantAnswer(l.client, network, hostIP4+":80", "sealed "+clientIP4)
		l.wantAnswer(l.client, network, "["+hostIP6+"]:80", "sealed "+clientIP6)
	}
	l.wantAnswer(l.client, "tcp", hostIP4+":81", "both "+clientIP4)
	// Who gets its address next is not sealed.
	must(t, e.net.RemoveTask(context.Background(), sealed.ID))
	free := taskOf(e.node, 5)
	free.Addr4, free.Addr6 = sealed.Addr4, sealed.Addr6
	path, err := e.net.AddTask(context.Background(), free)
	must(t, err)
	fd, err := openNS(path)
	must(t, err)
	defer unix.Close(fd)
	l.wantAnswer(fd, "tcp", clientIP4+":9000", "out "+hostIP4)
}

// A client whose address lies in an overlay's subnet is answered where it asked.
func TestRepliesLeaveByGateway(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	e.overlay(overlayOf(7, "192.0.2.0/24 2001:db8::/64"))
	t0, ns0 := e.join(0, on(7, "192.0.2.77 2001:db8::77"))
	l.serve(ns0, "a", 8080)
	l.setPorts(port(netplan.TCP, 80, t0))
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "a "+clientIP4)
	l.wantAnswer(l.client, "tcp", "["+hostIP6+"]:80", "a "+clientIP6)
}

func TestDNSPorts(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	task := taskOf(e.node, 0)
	path, err := e.net.AddTask(context.Background(), task)
	must(t, err)
	ns, err := openNS(path)
	must(t, err)
	defer unix.Close(ns)
	l.serve(ns, "own", 53) // a task's own server
	l.serveAt(ns, "resolver", "127.0.0.11:40053")
	l.serveAt(ns, "other", "127.0.0.11:40054")
	set := func(p netplan.DNSPorts) { must(t, e.net.SetDNS(context.Background(), task.ID, p)) }
	set(netplan.DNSPorts{UDP: 40053, TCP: 40053})
	for _, network := range []string{"tcp", "udp"} {
		l.wantAnswer(ns, network, "127.0.0.11:53", "resolver 127.0.0.1")
		l.wantAnswer(ns, network, task.Addr4.String()+":53", "own "+task.Addr4.String())
	}
	set(netplan.DNSPorts{UDP: 40054, TCP: 40053})
	l.wantAnswer(ns, "udp", "127.0.0.11:53", "other 127.0.0.1")
	l.wantAnswer(ns, "tcp", "127.0.0.11:53", "resolver 127.0.0.1")
	set(netplan.DNSPorts{})
	l.wantAnswer(ns, "tcp", "127.0.0.11:53", "own 127.0.0.1") // with nobody else, whoever listens on every address
}
