package netapply

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-swarm/skep/internal/netplan"
)

func TestBalance(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	t1, ns1 := l.addTask(1)
	l.serve(ns0, "a", 8080)
	l.serve(ns1, "b", 8080)
	l.setPorts(port(netplan.TCP, 80, t0, t1), port(netplan.UDP, 80, t0, t1))
	for _, addr := range []string{hostIP4 + ":80", "[" + hostIP6 + "]:80"} {
		client := clientIP4
		if strings.HasPrefix(addr, "[") {
			client = clientIP6
		}
		for _, network := range []string{"tcp", "udp"} {
			seen := map[string]int{}
			for range 60 {
				got, err := l.ask(l.client, network, addr)
				must(t, err)
				seen[got]++
			}
			// A UDP client that happens to get the port of one before it is taken for the same.
			if a, b := seen["a "+client], seen["b "+client]; a+b != 60 || max(a, b) > 30 && network == "tcp" || max(a, b) > 35 {
				t.Errorf("%s %s: backends %v, want half from each", network, addr, seen)
			}
		}
	}
}

func TestRemovedBackend(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	t1, ns1 := l.addTask(1)
	l.serve(ns0, "a", 8080)
	l.serve(ns1, "b", 8080)
	l.setPorts(port(netplan.TCP, 80, t0, t1), port(netplan.UDP, 80, t0, t1))
	// One open TCP connection and one connected UDP socket to the backend that goes.
	open := func(network string) func() (string, error) {
		for {
			c, err := l.dial(l.client, network, hostIP4+":80")
			must(t, err)
			got, err := ask(c)
			must(t, err)
			if got == "a "+clientIP4 {
				return func() (string, error) { return ask(c) }
			}
		}
	}
	askTCP := open("tcp")
	askUDP := open("udp")
	l.setPorts(port(netplan.TCP, 80, t1), port(netplan.UDP, 80, t1))
	if got, err := askTCP(); err != nil || got != "a "+clientIP4 {
		t.Errorf("an open TCP connection does not drain: %q, %v", got, err)
	}
	if got, err := askUDP(); err != nil || got != "b "+clientIP4 {
		t.Errorf("a connected UDP socket stays with a removed backend: %q, %v", got, err)
	}
	for range 40 {
		l.wantAnswer(l.client, "tcp", hostIP4+":80", "b "+clientIP4)
		l.wantAnswer(l.client, "udp", hostIP4+":80", "b "+clientIP4)
	}
	// The last one goes: TCP drains still, new ones are refused, UDP is cut.
	l.setPorts(port(netplan.TCP, 80), port(netplan.UDP, 80))
	if got, err := askTCP(); err != nil || got != "a "+clientIP4 {
		t.Errorf("an open TCP connection does not drain without backends: %q, %v", got, err)
	}
	if _, err := l.ask(l.client, "tcp", hostIP4+":80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("no backends: %v, want connection refused", err)
	}
	if got, err := askUDP(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("no UDP backends: %q, %v, want connection refused", got, err)
	}
	// And comes back for the very same socket.
	l.setPorts(port(netplan.UDP, 80, t0))
	if got, err := askUDP(); err != nil || got != "a "+clientIP4 {
		t.Errorf("a UDP socket after the port has a backend again: %q, %v", got, err)
	}
	// Withdrawn: the host answers for itself again.
	must(t, l.net.SetPorts(context.Background(), nil, []netplan.PortKey{{Proto: netplan.TCP, Number: 80}, {Proto: netplan.UDP, Number: 80}, {Proto: netplan.TCP, Number: 99}}))
	l.serve(l.host, "host", 80)
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "host "+clientIP4)
	l.wantAnswer(l.client, "udp", hostIP4+":80", "host "+clientIP4)
}

func TestHostMode(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	l.serve(ns0, "a", 8080)
	p := port(netplan.TCP, 8081, t0)
	p.Mode = netplan.Host
	l.setPorts(p)
	l.wantAnswer(l.client, "tcp", hostIP4+":8081", "a "+clientIP4)
	p.Backends4 = append(p.Backends4, netip.MustParseAddrPort("10.255.9.9:80"))
	if err := l.net.SetPorts(context.Background(), []netplan.Port{p}, nil); err == nil {
		t.Error("a host mode port took a backend of another node")
	}
}

func TestUnpublishedPortsAreClosed(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	l.serve(ns0, "a", 8080)
	// A neighbour that routes to the pool through the host.
	l.sh(l.client, "ip route add %s via %s", l.in.Node.Pool4, hostIP4)
	if got, err := l.tryAsk(l.client, t0.Addr4.String()+":8080"); err == nil {
		t.Errorf("a machine beside the host reached a port that is not published: %q", got)
	}
	// A task that aims at the host's loopback by its gateway.
	l.serve(l.host, "loop", 7070)
	l.sh(ns0, "ip route add table local 127.0.0.7/32 via %s dev gw; sysctl -qw net.ipv4.conf.gw.route_localnet=1", l.in.Node.Blocks4[0].Addr().Next())
	if got, err := l.tryAsk(ns0, "127.0.0.7:7070"); err == nil {
		t.Errorf("a task reached the host's loopback: %q", got)
	}
}

func TestSyncPrunes(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	t1, _ := l.addTask(1)
	l.serve(ns0, "a", 8080)
	l.setPorts(port(netplan.TCP, 80, t0), port(netplan.TCP, 81, t1), port(netplan.UDP, 81, t1))
	link := l.in.Node.HostLink()
	l.sh(l.host, "nft add chain inet %s stray", link)
	if n := l.syncWith(withTasks(l, 1, port(netplan.TCP, 80, t0))); n == 0 {
		t.Error("nothing was pruned")
	}
	if _, err := os.Stat(l.net.Path(t1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace file of a task that is gone: %v", err)
	}
	within(t, 3*time.Second, "the port of a task that is gone", func() bool {
		_, err := l.try(l.gateway(), "ip link show t"+t1.Name())
		return err != nil
	})
	rules := l.sh(l.host, "nft list table inet %s", link)
	for _, s := range []string{"tcp-81", "udp-81", "stray"} {
		if strings.Contains(rules, s) {
			t.Errorf("%s is still there:\n%s", s, rules)
		}
	}
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "a "+clientIP4)
	if n := l.syncWith(withTasks(l, 1, port(netplan.TCP, 80, t0))); n != 0 {
		t.Errorf("a second pass wrote %d requests", n)
	}
}

func TestForwardDropElsewhere(t *testing.T) {
	for _, v := range []struct{ name, setup string }{
		{"iptables policy", "nft add table %[1]s filter; nft 'add chain %[1]s filter FORWARD { type filter hook forward priority 0; policy drop; }'"},
		{"closing reject", "nft add table inet fire; nft 'add chain inet fire fwd_x { type filter hook forward priority 10; policy accept; }'; nft add rule inet fire fwd_x ct state established accept; nft add rule inet fire fwd_x counter reject"},
	} {
		t.Run(v.name, func(t *testing.T) {
			l := newLab(t)
			for _, fam := range []string{"ip", "ip6"} {
				if strings.Contains(v.setup, "%") {
					l.sh(l.host, v.setup, fam)
				} else if fam == "ip" {
					l.sh(l.host, "%s", v.setup)
				}
			}
			l.sync()
			t0, ns0 := l.addTask(0)
			l.serve(ns0, "a", 8080)
			l.serve(l.client, "out", 9000)
			l.setPorts(port(netplan.TCP, 80, t0))
			check := func() bool {
				a, err := l.ask(l.client, "tcp", hostIP4+":80")
				b, err6 := l.ask(l.client, "tcp", "["+hostIP6+"]:80")
				c, err2 := l.ask(ns0, "tcp", clientIP4+":9000")
				return err == nil && err6 == nil && err2 == nil && a != "" && b != "" && c != ""
			}
			if !check() {
				t.Fatal("a drop in another table's forward chain breaks the gateway network:\n" + l.sh(l.host, "nft list ruleset"))
			}
			if n := l.syncWith(withTasks(l, 1, port(netplan.TCP, 80, t0))); n != 0 {
				t.Errorf("a second pass wrote %d requests", n)
			}
			repairs := l.run()
			l.sh(l.host, "nft flush chain inet %s post", l.in.Node.HostLink())
			within(t, 5*time.Second, "first repair", func() bool { return repairs.Load() > 0 })
			if strings.Contains(v.setup, "policy drop") {
				before := repairs.Load()
				l.sh(l.host, "nft flush chain ip filter FORWARD; nft flush chain ip6 filter FORWARD")
				within(t, 3*time.Second, "accepts inserted again", func() bool { return repairs.Load() > before })
			}
			within(t, 3*time.Second, "answers", check)
		})
	}
}

func TestAdminChain(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	l.serve(ns0, "a", 8080)
	l.setPorts(port(netplan.TCP, 80, t0))
	link := l.in.Node.HostLink()
	l.sh(l.host, "nft add rule inet %s skep-user ip saddr %s meta l4proto tcp ct original proto-dst 80 reject", link, clientIP4)
	if _, err := l.ask(l.client, "tcp", hostIP4+":80"); err == nil {
		t.Error("a rule of the administrator's chain has no effect")
	}
	l.wantAnswer(l.host, "tcp", hostIP4+":80", "a "+hostIP4)
	l.sh(l.host, "nft flush chain inet %s forward", link)
	l.setPorts(port(netplan.TCP, 81, t0))
	if n := l.syncWith(withTasks(l, 1, port(netplan.TCP, 80, t0))); n == 0 {
		t.Error("the forward chain was not mended")
	}
	if rules := l.sh(l.host, "nft list chain inet %s skep-user", link); !strings.Contains(rules, "reject") {
		t.Errorf("the administrator's rule is lost:\n%s", rules)
	}
}

func TestHundredTasksAtOnce(t *testing.T) {
	l := newLab(t)
	l.sync()
	var g errgroup.Group
	start := time.Now()
	for i := range 100 {
		g.Go(func() error {
			path, err := l.net.AddTask(context.Background(), l.task(i))
			if err == nil && !isNS(path) {
				err = fmt.Errorf("%s is no namespace", path)
			}
			return err
		})
	}
	must(t, g.Wait())
	t.Logf("100 tasks added in %v", time.Since(start))
	var tasks []netplan.Task
	for i := range 100 {
		tasks = append(tasks, l.task(i))
	}
	p := port(netplan.TCP, 80, tasks...)
	l.setPorts(p)
	for _, i := range []int{0, 50, 99} {
		_, ns := l.addTask(i)
		l.serve(ns, "a", 8080)
		must(t, l.net.SetPorts(context.Background(), []netplan.Port{port(netplan.TCP, 81, l.task(i))}, nil))
		l.wantAnswer(l.client, "tcp", hostIP4+":81", "a "+clientIP4)
	}
	if n := l.syncWith(withTasks(l, 100, p, port(netplan.TCP, 81, l.task(99)))); n != 0 {
		t.Errorf("a full pass wrote %d requests", n)
	}
	start = time.Now()
	for i := range 100 {
		g.Go(func() error { return l.net.RemoveTask(context.Background(), l.task(i).ID) })
	}
	must(t, g.Wait())
	t.Logf("100 tasks removed in %v", time.Since(start))
	must(t, l.net.RemoveTask(context.Background(), l.task(0).ID))
	within(t, 10*time.Second, "the kernel took the ports away", func() bool {
		// The test itself holds three of the namespaces.
		return strings.Count(l.sh(l.gateway(), "ip -o link"), "master br-gw") <= 3
	})
	l.syncWith(withTasks(l, 0, p, port(netplan.TCP, 81, l.task(99))))
	if n := l.syncWith(withTasks(l, 0, p, port(netplan.TCP, 81, l.task(99)))); n != 0 {
		t.Errorf("a full pass after all were removed wrote %d requests", n)
	}
	files, err := os.ReadDir(l.net.cfg.Dir)
	must(t, err)
	if len(files) != 1 {
		t.Errorf("namespace files left: %v", files)
	}
}

func TestAddressUsedAgain(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	l.serve(ns0, "old", 8080)
	l.setPorts(port(netplan.TCP, 80, t0))
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "old "+clientIP4)
	must(t, l.net.RemoveTask(context.Background(), t0.ID))
	next := t0
	next.ID = l.task(1).ID
	if _, err := l.net.AddTask(context.Background(), netplan.Task{ID: "zz", Addr4: t0.Addr4, Addr6: t0.Addr6}); err == nil {
		t.Error("an ID that is no hex was taken")
	}
	path, err := l.net.AddTask(context.Background(), next)
	must(t, err)
	ns, err := openNS(path)
	must(t, err)
	defer syscall.Close(ns)
	l.serve(ns, "new", 8080)
	l.wantAnswer(l.client, "tcp", hostIP4+":80", "new "+clientIP4)
	if _, err := l.net.AddTask(context.Background(), t0); err == nil {
		t.Error("an address was given to two tasks")
	}
}

func TestConcurrentUse(t *testing.T) {
	l := newLab(t)
	l.sync()
	l.run()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 10 {
				task := l.task(w*10 + i)
				if _, err := l.net.AddTask(context.Background(), task); err != nil {
					t.Error(err)
				}
				key := uint16(1000 + w)
				if err := l.net.SetPorts(context.Background(), []netplan.Port{port(netplan.TCP, key, task)}, nil); err != nil {
					t.Error(err)
				}
				if i%3 == 0 {
					_, _ = l.try(l.host, "nft flush ruleset")
				}
				if err := l.net.RemoveTask(context.Background(), task.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var ports []netplan.Port
	for w := range 4 {
		ports = append(ports, port(netplan.TCP, uint16(1000+w), l.task(w*10+9)))
	}
	l.syncWith(withTasks(l, 0, ports...))
	if n := l.syncWith(withTasks(l, 0, ports...)); n != 0 {
		t.Errorf("a second pass wrote %d requests", n)
	}
}
