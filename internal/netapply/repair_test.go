package netapply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// run starts Run and returns a counter of its repairs, of which OnRepair hears, too, when there is one.
func (l *lab) run() *atomic.Int64 {
	l.t.Helper()
	var repairs atomic.Int64
	tell := l.net.cfg.OnRepair
	l.net.cfg.OnRepair = func(what string, err error) {
		repairs.Add(1)
		if tell != nil {
			tell(what, err)
		}
		if err != nil {
			l.t.Log("repair:", what, err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.net.Run(ctx) }()
	l.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			l.t.Error("run:", err)
		}
	})
	return &repairs
}

// dump is the kernel's state as the programs of the host print it, without
// counters and clocks.
func (l *lab) dump() string {
	l.t.Helper()
	// The kernel gives each link an IPv6 address of its own when it has time.
	within(l.t, 10*time.Second, "the links' own addresses", func() bool {
		count := func(cmd, what string) int { return strings.Count(l.sh(l.host, "%s", cmd), what) }
		links := count("ip -o link show up", "\n") - 1 // lo has none
		return count("ip -6 -o addr show -tentative", "scope link") == links && count("ip -6 route show table local", "local fe80::") == links
	})
	var b strings.Builder
	for _, v := range []struct {
		name string
		ns   int
	}{{"host", l.host}} {
		for _, c := range []string{
			"ip -o link", "ip -o addr", "ip -4 route show table all", "ip -6 route show table all",
			"ip rule", "ip -6 rule", "ip neigh show nud permanent", "nft list ruleset",
		} {
			fmt.Fprintf(&b, "%s: %s\n%s\n", v.name, c, l.sh(v.ns, "%s", c))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(l.t, err)
	// The lab's alone: a mount that another program made before the lab began goes from here too when its folder does.
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, l.dir) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func (l *lab) gateway() int {
	l.t.Helper()
	fd, err := openNS(l.net.gatewayPath())
	must(l.t, err)
	l.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func TestRepair(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	_, ns1 := l.addTask(1)
	l.serve(ns0, "a", 8080)
	l.setPorts(port(netplan.TCP, 80, t0))
	l.serve(l.client, "out", 9000)
	repairs := l.run()
	// Run is listening when it has mended something for the first time.
	l.sh(l.host, "nft delete table inet skep-abc123")
	within(t, 5*time.Second, "first repair", func() bool { return repairs.Load() > 0 })

	link := l.in.Node.HostLink()
	for _, v := range []struct{ name, in, cmd string }{
		{"ruleset flushed", "host", "nft flush ruleset"},
		{"one rule deleted", "host", "nft flush chain inet " + link + " post"},
		{"map emptied", "host", "nft flush map inet " + link + " pub"},
		{"port chain flushed", "host", "nft flush chain inet " + link + " tcp-80"},
		{"sandbox ruleset flushed", "gateway", "nft flush ruleset"},
		{"host link deleted", "host", "ip link delete " + link},
		{"host link down", "host", "ip link set " + link + " down"},
		{"host link address deleted", "host", "ip addr flush dev " + link},
		{"pool and block routes deleted", "host", "ip route flush dev " + link + " proto 115"},
		{"IPv6 routes deleted", "host", "ip -6 route flush dev " + link + " proto 115"},
		{"every route deleted, the kernel's own too", "host", "ip route flush dev " + link + "; ip -6 route flush dev " + link},
		{"forwarding turned off", "host", "sysctl -qw net.ipv4.ip_forward=0"},
		{"IPv6 forwarding turned off", "host", "sysctl -qw net.ipv6.conf.all.forwarding=0"},
		{"IPv6 turned off on the host link", "host", "sysctl -qw net.ipv6.conf." + link + ".disable_ipv6=1"},
		{"sandbox forwarding turned off", "gateway", "sysctl -qw net.ipv4.ip_forward=0"},
		{"sandbox default route deleted", "gateway", "ip route del default"},
		{"bridge deleted", "gateway", "ip link delete br-gw"},
		{"bridge port deleted", "gateway", "ip link delete t" + t0.Name()},
		{"bridge port taken out", "gateway", "ip link set t" + t0.Name() + " nomaster"},
		{"task's link deleted", "task", "ip link delete gw"},
		{"task's default route deleted", "task", "ip route del default"},
		{"task's rule deleted", "task", "ip rule del pref 1000"},
		{"task's address deleted", "task", "ip addr flush dev gw"},
	} {
		t.Run(v.name, func(t *testing.T) {
			ns := map[string]int{"host": l.host, "gateway": l.gateway(), "task": ns0}[v.in]
			before := repairs.Load()
			l.sh(ns, "%s", v.cmd)
			limit := 3 * time.Second // of a machine that has other work
			if v.name == "ruleset flushed" {
				limit = time.Second
			}
			took := within(t, limit, "repair", func() bool { return repairs.Load() > before })
			answers := within(t, 3*time.Second, "answer", func() bool {
				got, err := l.ask(l.client, "tcp", hostIP4+":80")
				got6, err6 := l.ask(l.client, "tcp", "["+hostIP6+"]:80")
				out, err2 := l.ask(ns0, "tcp", clientIP4+":9000")
				if e := errors.Join(err, err6, err2); e != nil {
					t.Log("no answer yet:", e)
				}
				return err == nil && err6 == nil && err2 == nil && got == "a "+clientIP4 && got6 == "a "+clientIP6 && out == "out "+hostIP4
			})
			t.Logf("mended after %v, answers %v later", took, answers)
			if n, err := l.net.Sync(context.Background(), withTasks(l, 2, port(netplan.TCP, 80, t0))); n != 0 || err != nil {
				t.Errorf("a full pass after the repair wrote %d requests, %v", n, err)
			}
		})
	}
	_ = ns1
}

func withTasks(l *lab, tasks int, ports ...netplan.Port) netplan.Input {
	in := l.in
	for i := range tasks {
		in.Tasks = append(in.Tasks, l.task(i))
	}
	in.Ports = ports
	return in
}

func TestNamespaceFilesAreBoundAgain(t *testing.T) {
	for _, known := range []string{"process", "nobody", "stranger"} {
		t.Run("known is the "+known, func(t *testing.T) { testBoundAgain(t, known) })
	}
}

func testBoundAgain(t *testing.T, known string) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	l.serve(ns0, "a", 8080)
	// Another daemon's task, with the same address: its link looks the same to the letter.
	other := l.namespace("other")
	mac := strings.TrimSpace(l.sh(ns0, "ip -o link show dev %s | sed 's/.*ether \\([^ ]*\\).*/\\1/'", netplan.TaskLink))
	l.sh(other, "ip link add %s address %s type veth peer name x", netplan.TaskLink, mac)
	stranger := l.sleeper(other)
	proc := l.sleeper(ns0)
	if pid := map[string]int{"process": proc, "stranger": stranger}[known]; pid != 0 {
		t0.PID = pid
		_, err := l.net.AddTask(context.Background(), t0)
		must(t, err)
	}
	l.setPorts(port(netplan.TCP, 80, t0))
	repairs := l.run()
	l.sh(l.host, "nft flush ruleset")
	within(t, 5*time.Second, "first repair", func() bool { return repairs.Load() > 0 })

	for _, path := range []string{l.net.Path(t0), l.net.gatewayPath()} {
		must(t, unix.Unmount(path, unix.MNT_DETACH))
		must(t, os.Remove(path))
		within(t, 3*time.Second, "namespace file bound again", func() bool { return isNS(path) })
	}
	if !sameNS(l.net.Path(t0), fmt.Sprintf("/proc/%d/ns/net", proc)) {
		t.Error("another namespace was bound than that of the task's process")
	}
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "a "+clientIP4)
}

// sleeper is a process that lives in a namespace.
func (l *lab) sleeper(ns int) (pid int) {
	l.t.Helper()
	var proc *exec.Cmd
	must(l.t, inNS(ns, func() error {
		proc = exec.Command("sleep", "60")
		proc.SysProcAttr = &syscall.SysProcAttr{}
		return proc.Start()
	}))
	l.t.Cleanup(func() { _, _ = proc.Process.Kill(), proc.Wait() })
	return proc.Process.Pid
}

func TestRestartChangesNothing(t *testing.T) {
	l := newLab(t)
	l.sync()
	var tasks []netplan.Task
	for i := range 5 {
		ti, ns := l.addTask(i)
		l.serve(ns, "a", 8080)
		tasks = append(tasks, ti)
	}
	p := port(netplan.TCP, 80, tasks...)
	l.setPorts(p, port(netplan.UDP, 53, tasks...))
	conn, err := l.dial(l.client, "tcp", hostIP4+":80")
	must(t, err)
	before := l.dump()
	heard := l.listen()

	again, err := New(Config{Dir: l.net.cfg.Dir, HostNS: l.host})
	must(t, err)
	t.Cleanup(func() { must(t, again.Close()) })
	n, err := again.Sync(context.Background(), withTasks(l, 5, p, port(netplan.UDP, 53, tasks...)))
	must(t, err)
	if n != 0 {
		t.Errorf("Sync on a kernel that is right wrote %d requests", n)
	}
	for _, i := range tasks {
		if _, err := again.AddTask(context.Background(), i); err != nil {
			t.Error(err)
		}
	}
	if after := l.dump(); after != before {
		t.Errorf("a restart changed the kernel:\n%s\nto\n%s", before, after)
	}
	if got := heard(); len(got) > 0 {
		t.Errorf("the kernel told of changes: %v", got)
	}
	if got, err := ask(conn); err != nil || got != "a "+clientIP4 {
		t.Errorf("the open connection: %q, %v", got, err)
	}
}

// listen records the changes that host and sandbox tell of.
func (l *lab) listen() func() []string {
	var monitors []*monitor
	type note struct{ s string }
	notes := make(chan note, 1000)
	done := make(chan struct{}, 4)
	for _, v := range []struct {
		ns, proto int
		groups    []int
	}{
		{l.host, unix.NETLINK_ROUTE, rtGroups},
		{l.host, unix.NETLINK_NETFILTER, []int{groupNFTables}},
		{l.gateway(), unix.NETLINK_ROUTE, rtGroups},
		{l.gateway(), unix.NETLINK_NETFILTER, []int{groupNFTables}},
	} {
		m, err := openMonitor(v.ns, v.proto, v.groups, true, nil)
		must(l.t, err)
		monitors = append(monitors, m)
		go func() {
			_ = m.run(func(e event) {
				// Neighbours age by themselves, and so do carriers of a test's links.
				if v.proto == unix.NETLINK_ROUTE && (e.typ == unix.RTM_NEWNEIGH || e.typ == unix.RTM_DELNEIGH) {
					return
				}
				notes <- note{fmt.Sprintf("protocol %d, message %#x, namespace %d", v.proto, e.typ, e.nsid)}
			})
			done <- struct{}{}
		}()
	}
	return func() []string {
		for _, m := range monitors {
			m.close()
		}
		for range monitors {
			<-done
		}
		close(notes)
		var out []string
		for n := range notes {
			out = append(out, n.s)
		}
		return out
	}
}

// A large node is mended within a second, too.
func TestRepairManyPorts(t *testing.T) {
	l := newLab(t)
	var tasks []netplan.Task
	for i := range 10 {
		tasks = append(tasks, l.task(i))
	}
	in := withTasks(l, 10)
	for i := range 200 {
		in.Ports = append(in.Ports, port(netplan.TCP, uint16(1000+i), tasks...))
	}
	l.syncWith(in)
	for _, ti := range tasks {
		fd, err := openNS(l.net.Path(ti))
		must(t, err)
		defer unix.Close(fd)
		l.serve(fd, "a", 8080)
	}
	repairs := l.run()
	l.sh(l.host, "nft flush ruleset")
	within(t, 5*time.Second, "first repair", func() bool { return repairs.Load() > 0 })
	n := repairs.Load()
	l.sh(l.host, "nft flush ruleset")
	took := within(t, 3*time.Second, "repair", func() bool { return repairs.Load() > n })
	l.wantAnswer(l.client, "tcp", hostIP4+":1199", "a "+clientIP4)
	t.Logf("200 ports with 10 backends of both families were back after %v", took)
	if c := l.syncWith(in); c != 0 {
		t.Errorf("a second pass wrote %d requests", c)
	}
}
