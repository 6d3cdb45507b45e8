package lab

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
)

func askPlace(ctx context.Context, p *Place, from netip.Addr, address string) (string, error) {
	return heard(p.Dial(ctx, "tcp", from, address))
}

func TestPlaces(t *testing.T) {
	l := newLab(t)
	a, b := addHost(t, l, "a"), addHost(t, l, "b")
	serve(t, a, "tcp", "0.0.0.0:80")
	output(t, b, "ip", "address", "add", "198.18.0.240/24", "dev", "eth0")
	place, err := b.Place()
	if err != nil {
		t.Fatal(err)
	}
	defer place.Close()
	target := a.Addr4().String() + ":80"
	for _, from := range []netip.Addr{b.Addr4(), netip.MustParseAddr("198.18.0.240")} {
		if got, err := askPlace(t.Context(), place, from, target); err != nil || !strings.HasPrefix(got, "hello from a to "+from.String()) {
			t.Errorf("from %v: %q, %v", from, got, err)
		}
	}

	// A process in a namespace of its own has no way to a.
	cmd := b.Command(t.Context(), "unshare", "-n", "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	var pid int
	eventually(t, "a process in a network of its own", func() bool {
		out, err := b.Output(t.Context(), "pgrep", "-f", "^sleep 1000$")
		if err != nil {
			return false
		}
		pid, err = strconv.Atoi(strings.TrimSpace(out))
		return err == nil
	})
	alone, err := b.PlaceOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	if got, err := askPlace(t.Context(), alone, netip.Addr{}, target); err == nil {
		t.Errorf("from a network without links: %q", got)
	}
}

func TestPlaceRefusesTheMachine(t *testing.T) {
	b := addHost(t, newLab(t), "b")
	if p, err := b.PlaceOf(1 << 22); err == nil {
		p.Close()
		t.Error("a process that is not there has a network")
	}
	if err := b.isOf("/proc/self/ns/net"); err == nil {
		t.Error("the machine's own network passed for the host's")
	}
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ours := &Place{ns: own}
	defer ours.Close()
	if err := ours.notOurs(); err == nil {
		t.Error("the machine's own network passed for another")
	}
	if err := b.Crash(); err != nil {
		t.Fatal(err)
	}
	if p, err := b.PlaceOf(1); err == nil {
		p.Close()
		t.Error("a host that is down has a network")
	}
}
