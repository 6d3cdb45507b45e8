package netapply

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// stack is a network with two tasks and a virtual address, and the input that it is.
func (e end) stack() (netplan.Input, [2]int) {
	e.t.Helper()
	o := overlayOf(7, "10.0.1.0/24 fd00:1::/64")
	o.VIPs = []netplan.VIP{vipOf("10.0.1.2", "10.0.1.10"), vipOf("10.0.1.3", "10.0.1.10 10.0.1.11"), vipOf("fd00:1::2", "fd00:1::10")}
	e.overlay(o)
	in := netplan.Input{Node: e.node, Overlays: []netplan.Overlay{o}}
	var ns [2]int
	for i, s := range []string{"10.0.1.10 fd00:1::10", "10.0.1.11 fd00:1::11"} {
		var t netplan.Task
		t, ns[i] = e.join(i, on(7, s))
		in.Tasks = append(in.Tasks, t)
	}
	e.serve(ns[0], "a", 8080)
	return in, ns
}

func (l *lab) open(path string) int {
	l.t.Helper()
	fd, err := openNS(path)
	must(l.t, err)
	l.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func TestRepairOverlay(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	in, ns := e.stack()
	repairs := l.run()
	l.sh(l.host, "nft delete table inet skep-abc123")
	within(t, 5*time.Second, "first repair", func() bool { return repairs.Load() > 0 })
	box := l.open(e.net.sandboxPath(7))
	port := "t" + in.Tasks[1].Name()
	for _, v := range []struct {
		name string
		ns   int
		cmd  string
	}{
		{"task's ruleset flushed", ns[1], "nft flush ruleset"},
		{"task's chain flushed", ns[1], "nft flush chain inet skep-abc123 vip-10.0.1.2"},
		{"task's map emptied", ns[1], "nft flush map inet skep-abc123 vip4"},
		{"task's address taken from the map", ns[1], "nft delete element inet skep-abc123 vip6 '{ fd00:1::2 }'"},
		{"task's veth deleted", ns[1], "ip link delete eth0"},
		{"task's veth down", ns[1], "ip link set eth0 down"},
		{"task's addresses deleted", ns[1], "ip addr flush dev eth0"},
		{"task's routes deleted", ns[1], "ip route flush dev eth0; ip -6 route flush dev eth0"},
		{"bridge deleted", box, "ip link delete dev br"},
		{"bridge down", box, "ip link set dev br down"},
		{"port deleted", box, "ip link delete " + port},
		{"port taken out", box, "ip link set " + port + " nomaster"},
		{"forwarding entry deleted", box, "bridge fdb del 02:73:0a:00:01:0b dev " + port + " master static"},
	} {
		t.Run(v.name, func(t *testing.T) {
			before := repairs.Load()
			l.sh(v.ns, "%s", v.cmd)
			took := within(t, 3*time.Second, "repair", func() bool { return repairs.Load() > before })
			within(t, 3*time.Second, "answer", func() bool {
				for _, to := range []string{"10.0.1.2:8080", "[fd00:1::2]:8080", "10.0.1.10:8080"} {
					if _, err := l.ask(ns[1], "tcp", to); err != nil {
						t.Log("no answer yet:", err)
						return false
					}
				}
				return true
			})
			t.Logf("mended after %v", took)
			if n, err := e.net.Sync(context.Background(), in); n != 0 || err != nil {
				t.Errorf("a full pass after the repair wrote %d requests, %v", n, err)
			}
		})
	}
	t.Run("sandbox file removed", func(t *testing.T) {
		must(t, unix.Unmount(e.net.sandboxPath(7), unix.MNT_DETACH))
		must(t, os.Remove(e.net.sandboxPath(7)))
		within(t, 3*time.Second, "file bound again", func() bool { return isNS(e.net.sandboxPath(7)) })
		l.wantAnswer(ns[1], "tcp", "10.0.1.2:8080", "a 10.0.1.11")
	})
	t.Run("nothing of ours is a repair", func(t *testing.T) {
		before := repairs.Load()
		for i := range 20 {
			e.vips(7, vipOf("10.0.1.9", fmt.Sprint("10.0.1.", 10+i%2)))
		}
		task, _ := e.join(5, on(7, "10.0.1.15 fd00:1::15"))
		must(t, e.net.RemoveTask(context.Background(), task.ID))
		// What another does is heard after what was done before.
		l.sh(l.host, "nft flush chain inet skep-abc123 post")
		within(t, 3*time.Second, "repair", func() bool { return repairs.Load() > before })
		if n := repairs.Load() - before; n != 1 {
			t.Errorf("%d repairs, want the one of what another did", n)
		}
	})
}

func TestOverlayRestartAndTeardown(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	in, ns := e.stack()
	conn, err := l.dial(ns[1], "tcp", "10.0.1.2:8080")
	must(t, err)
	before := l.sh(ns[1], "nft -a list ruleset; ip -o link; ip route; ip -6 route")

	again, err := New(Config{Dir: e.net.cfg.Dir, HostNS: l.host})
	must(t, err)
	t.Cleanup(func() { must(t, again.Close()) })
	n, err := again.Sync(context.Background(), in)
	must(t, err)
	if n != 0 {
		t.Errorf("a daemon that starts again wrote %d requests", n)
	}
	if now := l.sh(ns[1], "nft -a list ruleset; ip -o link; ip route; ip -6 route"); now != before {
		t.Errorf("the task's namespace changed:\n%s\n%s", before, now)
	}
	if got, err := ask(conn); err != nil || got != "a 10.0.1.11" {
		t.Errorf("a connection over the restart: %q, %v", got, err)
	}
	must(t, again.SetVIPs(context.Background(), 7, []netplan.VIP{vipOf("10.0.1.2", "10.0.1.11")}, nil))
	l.serve(ns[1], "b", 8080)
	l.wantAnswer(ns[0], "tcp", "10.0.1.2:8080", "b 10.0.1.10")

	// What a daemon finds that it was told nothing of goes.
	in.Overlays[0].VIPs = nil
	in.Tasks = in.Tasks[:1]
	if _, err = again.Sync(context.Background(), in); err != nil {
		t.Fatal(err)
	}
	if out := l.sh(ns[0], "nft list ruleset"); strings.Contains(out, "10.0.1.2") {
		t.Errorf("virtual addresses that nobody asked for are here:\n%s", out)
	}
	if isNS(filepath.Join(e.net.cfg.Dir, taskOf(e.node, 1).Name())) {
		t.Error("the namespace of a task that nobody asked for is here")
	}
	in.Tasks, in.Overlays = nil, nil
	if _, err = again.Sync(context.Background(), in); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(e.net.cfg.Dir)
	must(t, err)
	if len(files) != 1 || files[0].Name() != netplan.GatewayName {
		t.Errorf("namespace files left: %v", files)
	}
}

// The last task that leaves takes nothing of the sandbox along: the kernel gives a bridge without ports another MTU, unless it was
// set after the bridge was made.
func TestLastTaskLeaves(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	o := overlayOf(7, "10.0.1.0/24")
	e.overlay(o)
	task, ns := e.join(0, on(7, "10.0.1.10"))
	box, gw := l.open(e.net.sandboxPath(7)), l.gateway()
	// As the kernel does it, only sooner: the namespace that the test holds open keeps the port.
	must(t, e.net.RemoveTask(context.Background(), task.ID))
	l.sh(ns, "ip link delete eth0; ip link delete gw")
	within(t, 5*time.Second, "no port is left", func() bool { return l.sh(box, "bridge link")+l.sh(gw, "bridge link") == "" })
	n, err := e.net.Sync(context.Background(), netplan.Input{Node: e.node, Overlays: []netplan.Overlay{o}})
	if n != 0 || err != nil {
		t.Errorf("a full pass after the last task wrote %d requests, %v: %s", n, err, l.sh(box, "ip link show br"))
	}
}

// A network's number is used again as soon as the network is gone, while the kernel still takes it down.
func TestVNIReuse(t *testing.T) {
	l := newLab(t)
	a, _ := l.ends()
	for i := range 10 {
		o := overlayOf(uint64(100+i), "10.0.1.0/24")
		o.VNI = 5000
		o.Remotes = []netplan.Remote{{Addr4: netip.MustParseAddr("10.0.1.20"), VTEP: netip.MustParseAddr(clientIP4)}}
		a.overlay(o)
		task, _ := a.join(0, on(o.Num, "10.0.1.10"))
		if err := a.net.RemoveOverlay(context.Background(), o.Num); err == nil {
			t.Fatal("a network with a task was removed")
		}
		must(t, a.net.RemoveTask(context.Background(), task.ID))
		must(t, a.net.RemoveOverlay(context.Background(), o.Num))
		must(t, a.net.RemoveOverlay(context.Background(), o.Num))
	}
	// Without a word, as after a daemon that ended in between.
	for i := range 5 {
		o := overlayOf(uint64(200+i), "10.0.1.0/24")
		o.VNI = 5000
		o.Remotes = []netplan.Remote{{Addr4: netip.MustParseAddr("10.0.1.20"), VTEP: netip.MustParseAddr(clientIP4)}}
		if _, err := a.net.Sync(context.Background(), netplan.Input{Node: a.node, Overlays: []netplan.Overlay{o}}); err != nil {
			t.Fatal(err)
		}
	}
}
