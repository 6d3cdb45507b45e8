package netapply

import (
	"errors"
	"syscall"
	"testing"

	"github.com/skep-swarm/skep/internal/netplan"
)

func TestPublishedPort(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	l.serve(ns0, "a", 8080)
	l.setPorts(port(netplan.TCP, 80, t0), port(netplan.UDP, 80, t0))
	link4, _ := l.in.Node.LinkAddrs(false)
	link6, _ := l.in.Node.LinkAddrs(true)
	for _, network := range []string{"tcp", "udp"} {
		l.wantAnswer(l.client, network, hostIP4+":80", "a "+clientIP4)
		l.wantAnswer(l.client, network, "["+hostIP6+"]:80", "a "+clientIP6)
		// On the host itself: its own addresses keep the source, localhost cannot.
		l.wantAnswer(l.host, network, hostIP4+":80", "a "+hostIP4)
		l.wantAnswer(l.host, network, "["+hostIP6+"]:80", "a "+hostIP6)
		l.wantAnswer(l.host, network, "127.0.0.1:80", "a "+link4.String())
		// A task that calls its own node, answered by itself.
		l.wantAnswer(ns0, network, hostIP4+":80", "a "+link4.String())
		l.wantAnswer(ns0, network, "["+hostIP6+"]:80", "a "+link6.String())
	}
}

func TestEgressAndIsolation(t *testing.T) {
	l := newLab(t)
	l.sync()
	t0, ns0 := l.addTask(0)
	_, ns1 := l.addTask(1)
	l.serve(l.client, "out", 9000)
	l.serve(ns0, "a", 8080)
	for _, network := range []string{"tcp", "udp"} {
		l.wantAnswer(ns1, network, clientIP4+":9000", "out "+hostIP4)
		l.wantAnswer(ns1, network, "["+clientIP6+"]:9000", "out "+hostIP6)
	}
	for _, to := range []string{t0.Addr4.String() + ":8080", "[" + t0.Addr6.String() + "]:8080"} {
		if got, err := l.tryAsk(ns1, to); err == nil {
			t.Errorf("a task reached another over the gateway network: %q", got)
		}
		// The host itself may.
		if _, err := l.ask(l.host, "tcp", to); err != nil {
			t.Errorf("the host cannot reach its own task at %s: %v", to, err)
		}
	}
}

func TestRefusesWithoutBackends(t *testing.T) {
	l := newLab(t)
	l.sync()
	l.setPorts(port(netplan.TCP, 80), port(netplan.UDP, 80))
	for _, v := range []struct {
		ns   int
		addr string
	}{{l.client, hostIP4 + ":80"}, {l.client, "[" + hostIP6 + "]:80"}, {l.host, "127.0.0.1:80"}, {l.host, hostIP4 + ":80"}} {
		for _, network := range []string{"tcp", "udp"} {
			if _, err := l.ask(v.ns, network, v.addr); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s %s: got %v, want connection refused", network, v.addr, err)
			}
		}
	}
}
