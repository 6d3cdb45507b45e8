package netapply

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// far says where the tasks of the lab's other node are.
func far(vtep string, addrs ...string) (out []netplan.Remote) {
	for _, s := range addrs {
		out = append(out, netplan.Remote{Addr4: netip.MustParseAddr(s), VTEP: netip.MustParseAddr(vtep)})
	}
	return out
}

// wantPart checks that an error is about one network alone, or one task.
func wantPart(t *testing.T, err error, network uint64, task, text string) {
	t.Helper()
	parts, rest := netplan.Parts(err)
	if len(parts) != 1 || rest != nil || parts[0].Network != network || parts[0].Task != task || !strings.Contains(parts[0].Error(), text) {
		t.Errorf("got %v, want one of network %d, task %q, with %q", err, network, task, text)
	}
}

// A network whose number another program has is cut off from other nodes. Nothing else suffers: neither other networks
// nor its own tasks on this node, and it is made as soon as the other program is gone.
func TestForeignVXLAN(t *testing.T) {
	l := newLab(t)
	a, b := l.ends()
	ctx := context.Background()
	in := netplan.Input{Node: a.node}
	for num, subnet := range map[uint64]string{7: "10.0.1.", 8: "10.0.2."} {
		o := overlayOf(num, subnet+"0/24")
		o.Remotes = far(hostIP4, subnet+"10", subnet+"11")
		b.overlay(o)
		o.Remotes = far(clientIP4, subnet+"20")
		o.VIPs = []netplan.VIP{vipOf(subnet+"2", subnet+"10")}
		in.Overlays = append(in.Overlays, o)
	}
	_, nsB := b.join(0, on(7, "10.0.1.20"), on(8, "10.0.2.20"))
	l.serve(nsB, "b", 8080)
	l.sh(l.host, "ip link add foreign type vxlan id 4103 dstport 4789 local %s dev eth0 && ip link set foreign up", hostIP4)

	_, err := a.net.Sync(ctx, in)
	wantPart(t, err, 7, "", "another program of this host uses VXLAN network 4103 on UDP port 4789")
	if !errors.Is(err, syscall.EEXIST) {
		t.Errorf("the kernel's own word is lost: %v", err)
	}
	_, ns0 := a.join(0, on(7, "10.0.1.10"), on(8, "10.0.2.10"))
	t1, ns1 := a.join(1, on(7, "10.0.1.11"), on(8, "10.0.2.11"))
	l.serve(ns0, "a0", 8080)
	l.serve(ns1, "a1", 8080)
	l.setPorts(port(netplan.TCP, 80, t1))
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "a1 "+clientIP4)
	l.wantAnswer(ns1, "tcp", "10.0.2.20:8080", "b 10.0.2.11")
	l.wantAnswer(ns1, "tcp", "10.0.1.2:8080", "a0 10.0.1.11")
	if got, err := l.tryAsk(ns1, "10.0.1.20:8080"); err == nil {
		t.Errorf("over a device that is not there: %q", got)
	}
	// What is asked for next is done where it can be.
	must(t, a.net.SetVIPs(ctx, 7, []netplan.VIP{vipOf("10.0.1.2", "10.0.1.11")}, nil))
	l.wantAnswer(ns0, "tcp", "10.0.1.2:8080", "a1 10.0.1.10")
	for i := range in.Overlays {
		if o := &in.Overlays[i]; o.Num == 7 {
			o.VIPs = []netplan.VIP{vipOf("10.0.1.3", "10.0.1.10")}
			wantPart(t, a.net.SetOverlay(ctx, *o), 7, "", "another program")
		}
	}
	l.wantAnswer(ns1, "tcp", "10.0.1.3:8080", "a0 10.0.1.11")
	if got, err := l.tryAsk(ns1, "10.0.1.2:8080"); err == nil {
		t.Errorf("a virtual address that was taken away: %q", got)
	}
	wantPart(t, a.net.SetRemotes(ctx, 7, far(clientIP4, "10.0.1.21"), nil), 7, "", "another program")
	must(t, a.net.SetRemotes(ctx, 8, far(clientIP4, "10.0.2.21"), nil))
	// It is waited for what goes by itself once only.
	in.Tasks = []netplan.Task{taskOf(a.node, 0), taskOf(a.node, 1)}
	in.Tasks[0].Nets = []netplan.Attachment{on(7, "10.0.1.10"), on(8, "10.0.2.10")}
	in.Tasks[1].Nets = []netplan.Attachment{on(7, "10.0.1.11"), on(8, "10.0.2.11")}
	if _, err = a.net.Sync(ctx, in); !a.net.overlays[7].space.clash {
		t.Errorf("a pass waits for the other program each time: %v", err)
	}

	// Repairs go on, and do not wait for the network that cannot be mended.
	repairs := l.run()
	l.sh(l.host, "nft delete table inet skep-abc123")
	within(t, 5*time.Second, "first repair", func() bool { return repairs.Load() > 0 })
	begun, before := time.Now(), repairs.Load()
	for range 5 {
		l.sh(ns1, "ip link delete eth1")
		within(t, 5*time.Second, "repair", func() bool { _, err := l.tryAsk(ns1, "10.0.2.20:8080"); return err == nil })
	}
	l.sh(l.open(a.net.sandboxPath(7)), "ip link delete dev br")
	within(t, 5*time.Second, "repair of the part that is", func() bool { _, err := l.tryAsk(ns1, "10.0.1.10:8080"); return err == nil })
	if n, most := repairs.Load()-before, 12+4*time.Since(begun)/time.Second; n > int64(most) {
		t.Errorf("%d repairs of six losses: what cannot be mended is tried without a rest", n)
	}
	l.sh(l.host, "ip link delete foreign")
	within(t, 20*time.Second, "the network is made", func() bool { _, err := l.tryAsk(ns1, "10.0.1.20:8080"); return err == nil })
	if n, err := a.net.Sync(ctx, in); n != 0 || err != nil {
		t.Errorf("a full pass after that wrote %d requests, %v", n, err)
	}
}

// What the kernel refuses for other reasons is said in words.
func TestRefusedVXLAN(t *testing.T) {
	l := newLab(t)
	a, _ := l.ends()
	o := overlayOf(8, "10.0.2.0/24")
	o.Remotes = far(clientIP4, "10.0.2.20")
	var fd int
	must(t, inNS(l.host, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: 4789})
		}
		return err
	}))
	wantPart(t, a.net.SetOverlay(context.Background(), o), 8, "", "another program of this host uses UDP port 4789")
	must(t, unix.Close(fd))
	must(t, a.net.SetOverlay(context.Background(), o))
}

// A task in whose namespace nothing can be written keeps the old virtual addresses in it; all others get the new.
func TestTaskThatRefuses(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	ctx := context.Background()
	in, ns := e.stack()
	l.serve(ns[1], "b", 8080)
	s, err := openNF(e.net.Path(in.Tasks[1]))
	must(t, err)
	defer s.close()
	own := vipEncoder{table: "skep-abc123"}
	own.message(unix.NFT_MSG_DELTABLE, 0, "delete table")
	own.str(unix.NFTA_TABLE_NAME, own.table)
	own.addTable()
	own.be32(unix.NFTA_TABLE_FLAGS, 2) // NFT_TABLE_F_OWNER: nobody else may touch it
	must(t, s.commit(own.seal(), 0))

	name := in.Tasks[1].Name()
	err = e.net.SetVIPs(ctx, 7, []netplan.VIP{vipOf("10.0.1.2", "10.0.1.11")}, nil)
	wantPart(t, err, 0, name, "operation not permitted")
	if parts, _ := netplan.Parts(err); len(parts) == 1 && (len(parts[0].Nets) != 1 || parts[0].Nets[0] != 7) {
		t.Errorf("of the networks %v, want 7", parts[0].Nets)
	}
	l.wantAnswer(ns[0], "tcp", "10.0.1.2:8080", "b 10.0.1.10")
	in.Overlays[0].VIPs[0] = vipOf("10.0.1.2", "10.0.1.11")
	_, err = e.net.Sync(ctx, in)
	wantPart(t, err, 0, name, "operation not permitted")
	l.sh(ns[0], "nft flush ruleset")
	_, err = e.net.Sync(ctx, in)
	wantPart(t, err, 0, name, "operation not permitted")
	l.wantAnswer(ns[0], "tcp", "10.0.1.2:8080", "b 10.0.1.10")
	// Tried again with the network, when nothing of it changes.
	s.close()
	must(t, e.net.SetOverlay(ctx, in.Overlays[0]))
	l.wantAnswer(ns[1], "tcp", "10.0.1.2:8080", "b 10.0.1.11")
	if n, err := e.net.Sync(ctx, in); n != 0 || err != nil {
		t.Errorf("a full pass after that wrote %d requests, %v", n, err)
	}
}
