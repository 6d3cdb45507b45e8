package netapply

import (
	"context"
	"errors"
	"testing"

	"github.com/skep-swarm/skep/internal/netplan"
)

// cutShort is a full pass that ends after it has begun.
func (e end) cutShort(in netplan.Input) {
	e.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := e.net.Sync(ctx, in); !errors.Is(err, context.Canceled) {
		e.t.Fatalf("a pass that is cut short: %v", err)
	}
}

// afterwards are the two ways in which a pass that was cut short is made up for: by who asked for it, and by Run.
func (e end) afterwards(in netplan.Input) map[string]func() {
	return map[string]func(){
		"Sync": func() {
			_, err := e.net.Sync(context.Background(), in)
			must(e.t, err)
		},
		"Run": func() {
			_, err := e.net.mend(context.Background(), dirt{all: true}, dirt{})
			must(e.t, err)
		},
	}
}

// A UDP flow of a published port whose backend went with a pass that failed is cut over by the next one.
func TestFailedPassOwesPorts(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	t0, ns0 := l.addTask(0)
	t1, ns1 := l.addTask(1)
	l.serve(ns0, "a", 8080)
	l.serve(ns1, "b", 8080)
	in := withTasks(l, 2, port(netplan.UDP, 80, t1))
	for name, again := range e.afterwards(in) {
		t.Run(name, func(t *testing.T) {
			l.setPorts(port(netplan.UDP, 80, t0))
			c, err := l.dial(l.client, "udp", hostIP4+":80")
			must(t, err)
			if got, err := ask(c); err != nil || got != "a "+clientIP4 {
				t.Fatalf("before: %q, %v", got, err)
			}
			e.cutShort(in)
			if got, err := ask(c); err != nil || got != "a "+clientIP4 {
				t.Fatalf("the rules are the old ones: %q, %v", got, err)
			}
			// Another port's change does not settle it: this one's rules are still the old.
			must(t, l.net.SetPorts(context.Background(), []netplan.Port{port(netplan.UDP, 81, t0)}, nil))
			if got, err := ask(c); err != nil || got != "a "+clientIP4 {
				t.Fatalf("the rules are the old ones: %q, %v", got, err)
			}
			again()
			if got, err := ask(c); err != nil || got != "b "+clientIP4 {
				t.Errorf("a UDP socket stays with a removed backend: %q, %v", got, err)
			}
		})
	}
}

// The same for a virtual address, in the tasks' namespaces.
func TestFailedPassOwesVIPs(t *testing.T) {
	l := newLab(t)
	e := l.alone()
	in, ns := e.stack()
	l.serve(ns[1], "b", 8080)
	t2, ns2 := e.join(2, on(7, "10.0.1.12 fd00:1::12"))
	in.Tasks = append(in.Tasks, t2)
	in.Overlays[0].VIPs = []netplan.VIP{vipOf("10.0.1.2", "10.0.1.11")}
	for name, again := range e.afterwards(in) {
		t.Run(name, func(t *testing.T) {
			e.vips(7, vipOf("10.0.1.2", "10.0.1.10"))
			c, err := l.dial(ns2, "udp", "10.0.1.2:8080")
			must(t, err)
			if got, err := ask(c); err != nil || got != "a 10.0.1.12" {
				t.Fatalf("before: %q, %v", got, err)
			}
			e.cutShort(in)
			if got, err := ask(c); err != nil || got != "a 10.0.1.12" {
				t.Fatalf("the rules are the old ones: %q, %v", got, err)
			}
			again()
			if got, err := ask(c); err != nil || got != "b 10.0.1.12" {
				t.Errorf("a UDP socket stays with a removed backend: %q, %v", got, err)
			}
		})
	}
}
