package netplan

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func at(network uint64, list ...string) Attachment {
	a := Attachment{Network: network, Addr4: netip.MustParseAddr(list[0])}
	if len(list) > 1 {
		a.Addr6 = netip.MustParseAddr(list[1])
	}
	return a
}

func vip(addr string, backends ...string) VIP {
	return VIP{Addr: netip.MustParseAddr(addr), Backends: addrs(backends...)}
}

// overlayInput is a node with a front and an inner network that has other nodes, and two tasks.
func overlayInput() Input {
	n := testNode("abc123", true)
	n.VTEP = netip.MustParseAddr("192.0.2.1")
	web, db := testTask(n, 0), testTask(n, 1)
	web.Nets = []Attachment{at(7, "10.0.1.5", "fd00:1::5"), at(9, "10.0.2.5")}
	web.DNS = DNSPorts{UDP: 40053, TCP: 40054}
	db.Nets = []Attachment{at(9, "10.0.2.6")}
	return Input{Node: n, Tasks: []Task{web, db}, Overlays: []Overlay{
		{Num: 9, VNI: 4098, Subnets: prefixes("10.0.2.0/24", "10.0.3.0/24"), Internal: true, MTU: 1400,
			Remotes: []Remote{{Addr4: netip.MustParseAddr("10.0.2.9"), VTEP: netip.MustParseAddr("192.0.2.2")}},
			VIPs:    []VIP{vip("10.0.2.2", "10.0.2.6", "10.0.2.9")}},
		{Num: 7, VNI: 4097, Subnets: prefixes("10.0.1.0/24", "fd00:1::/64"),
			VIPs: []VIP{vip("10.0.1.2", "10.0.1.5"), vip("10.0.1.3"), vip("fd00:1::2", "fd00:1::7", "fd00:1::5", "fd00:1::7")}},
	}}
}

func TestOverlayGolden(t *testing.T) {
	p, err := Make(overlayInput())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", "overlays.golden")
	if *update {
		if err := os.WriteFile(file, []byte(p.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), p.String()); d != "" {
		t.Errorf("plan differs from %s (-want +got):\n%s", file, d)
	}
}

func TestValidateOverlays(t *testing.T) {
	if err := overlayInput().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct {
		want string
		do   func(in *Input)
	}{
		{"VNI", func(in *Input) { in.Overlays[0].VNI = 0 }},
		{"VNI", func(in *Input) { in.Overlays[0].VNI = 1 << 24 }},
		{"same VNI", func(in *Input) { in.Overlays[0].VNI = 4097 }},
		{"given twice", func(in *Input) { in.Overlays = append(in.Overlays, in.Overlays[0]) }},
		{"no IPv4 subnet", func(in *Input) { in.Overlays[1].Subnets = prefixes("fd00:1::/64") }},
		{"overlap", func(in *Input) { in.Overlays[0].Subnets = prefixes("10.0.2.0/24", "10.0.2.0/25") }},
		{"subnet", func(in *Input) { in.Overlays[0].Subnets = prefixes("0.0.0.0/0") }},
		{"MTU", func(in *Input) { in.Overlays[0].MTU = 68 }},
		{"MTU", func(in *Input) { in.Overlays[1].MTU = 1279 }},
		{"in none of", func(in *Input) { in.Overlays[0].VIPs[0].Addr = netip.MustParseAddr("10.0.1.2") }},
		{"in none of", func(in *Input) { in.Overlays[0].VIPs[0].Addr = netip.Addr{} }},
		{"same family", func(in *Input) { in.Overlays[1].VIPs[0].Backends = addrs("fd00:1::5") }},
		{"another address", func(in *Input) { in.Overlays[1].VIPs[0].Backends = addrs("10.0.1.2") }},
		{"backend", func(in *Input) { in.Overlays[1].VIPs[0].Backends = addrs("10.9.9.9") }},
		{"given twice", func(in *Input) { in.Overlays[1].VIPs[1].Addr = in.Overlays[1].VIPs[0].Addr }},
		{"given twice", func(in *Input) { in.Overlays[0].Remotes = append(in.Overlays[0].Remotes, in.Overlays[0].Remotes[0]) }},
		{"cannot send there", func(in *Input) { in.Node.VTEP = netip.Addr{} }},
		{"cannot send there", func(in *Input) { in.Overlays[0].Remotes[0].VTEP = netip.MustParseAddr("fd00::1") }},
		{"no address for a task", func(in *Input) { in.Overlays[0].Remotes[0].Addr4 = netip.MustParseAddr("10.0.2.255") }},
		{"no address for a task", func(in *Input) { in.Tasks[0].Nets[0].Addr4 = netip.MustParseAddr("10.0.1.0") }},
		{"no IPv6 address", func(in *Input) { in.Tasks[0].Nets[0].Addr6 = netip.MustParseAddr("fd00:9::1") }},
		{"not known", func(in *Input) { in.Tasks[0].Nets[0].Network = 8 }},
		{"both have", func(in *Input) { in.Overlays[0].Subnets = prefixes("10.0.2.0/24", "10.0.1.128/25") }},
		{"address 10.0.2.6", func(in *Input) { in.Tasks[0].Nets[1] = at(9, "10.0.2.6") }},
		{"address 10.0.2.9", func(in *Input) { in.Tasks[0].Nets[1] = at(9, "10.0.2.9") }},
		{"at most", func(in *Input) { in.Tasks[0].Nets = make([]Attachment, MaxAttachments+1) }},
		{"at most", func(in *Input) { in.Overlays[0].VIPs = make([]VIP, MaxVIPs+1) }},
	} {
		in := overlayInput()
		v.do(&in)
		if _, err := Make(in); err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("got error %v, want one with %q", err, v.want)
		}
	}
}

// A further node with tasks of a network only adds entries to the network's sandbox.
func TestRemoteIsOnlyAdded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := overlayInput()
		p, err := Make(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(10, 200), 1, 20, rapid.ID).Draw(t, "remotes") {
			in.Overlays[0].Remotes = append(in.Overlays[0].Remotes, Remote{
				Addr4: netip.AddrFrom4([4]byte{10, 0, 3, byte(i)}), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}),
			})
		}
		q, err := Make(in)
		if err != nil {
			t.Fatal(err)
		}
		for i := range p.Overlays {
			a, b := p.Overlays[i], q.Overlays[i]
			for _, v := range a.Neighbours {
				if !slices.Contains(b.Neighbours, v) {
					t.Fatalf("a further node took %v away", v)
				}
			}
			a.Neighbours, b.Neighbours = nil, nil
			if !reflect.DeepEqual(a, b) {
				t.Fatalf("a further node changed more than entries:\n%s\n%s", a, b)
			}
		}
		p.Overlays, q.Overlays = nil, nil
		if !reflect.DeepEqual(p, q) {
			t.Fatal("a further node changed other namespaces")
		}
	})
}
