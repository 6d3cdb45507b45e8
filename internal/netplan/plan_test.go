package netplan

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func testNode(instance string, v6 bool) Node {
	pool := netip.MustParsePrefix("10.255.0.0/16")
	block, _ := Block4(pool, 1)
	n := Node{
		Instance: instance, Link4: netip.MustParsePrefix("10.253.7.4/30"), Pool4: pool, Blocks4: []netip.Prefix{block},
	}
	if v6 {
		n.Link6, n.Pool6 = Link6(instance), Pool6("cluster")
		n.Block6 = Block6(n.Pool6, 1)
	}
	return n
}

func testTask(n Node, i int) Task {
	sum := sha256.Sum256(fmt.Append(nil, i))
	a := n.Blocks4[0].Addr().As4()
	a[3] = byte(i + 2)
	t := Task{ID: hex.EncodeToString(sum[:]), Addr4: netip.AddrFrom4(a)}
	if n.IPv6() {
		t.Addr6 = Addr6(n.Block6, t.Addr4)
	}
	return t
}

func testPort(proto Proto, number uint16, tasks ...Task) Port {
	p := Port{PortKey: PortKey{proto, number}}
	for _, t := range tasks {
		p.Backends4 = append(p.Backends4, netip.AddrPortFrom(t.Addr4, 8080))
		if t.Addr6.IsValid() {
			p.Backends6 = append(p.Backends6, netip.AddrPortFrom(t.Addr6, 8080))
		}
	}
	return p
}

func TestPlanGolden(t *testing.T) {
	both, only4 := testNode("abc123", true), testNode("def456", false)
	two := only4
	second, _ := Block4(two.Pool4, 9)
	two.Blocks4, two.MTU = append(two.Blocks4, second), 1450
	far := testTask(two, 2)
	far.Addr4 = netip.MustParseAddr("10.255.9.7")
	for _, v := range []struct {
		name string
		in   Input
	}{
		{"empty", Input{Node: both}},
		{"two-tasks", Input{
			Node: both, Tasks: []Task{testTask(both, 0), testTask(both, 1)},
			Ports: []Port{testPort(TCP, 80, testTask(both, 1), testTask(both, 0)), testPort(UDP, 53, testTask(both, 0)), testPort(TCP, 9)},
		}},
		{"ipv4-two-blocks", Input{Node: two, Tasks: []Task{testTask(two, 0), far}, Ports: []Port{testPort(TCP, 80, far)}}},
	} {
		t.Run(v.name, func(t *testing.T) {
			p, err := Make(v.in)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", v.name+".golden")
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
		})
	}
}

func TestValidate(t *testing.T) {
	good := func() Input {
		n := testNode("abc123", true)
		return Input{Node: n, Tasks: []Task{testTask(n, 0), testTask(n, 1)}, Ports: []Port{testPort(TCP, 80, testTask(n, 0))}}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct {
		want string
		do   func(in *Input)
	}{
		{"instance", func(in *Input) { in.Node.Instance = "ABC123" }},
		{"host link", func(in *Input) { in.Node.Link4 = netip.MustParsePrefix("10.253.0.0/24") }},
		{"lies in the pool", func(in *Input) { in.Node.Link4 = netip.MustParsePrefix("10.255.255.0/30") }},
		{"IPv4 pool", func(in *Input) { in.Node.Pool4 = netip.Prefix{} }},
		{"no IPv4 block", func(in *Input) { in.Node.Blocks4 = nil }},
		{"part of the pool", func(in *Input) { in.Node.Blocks4[0] = netip.MustParsePrefix("10.1.1.0/24") }},
		{"overlap", func(in *Input) { in.Node.Blocks4 = append(in.Node.Blocks4, netip.MustParsePrefix("10.255.1.128/25")) }},
		{"IPv6 block", func(in *Input) { in.Node.Block6 = netip.MustParsePrefix("fd00::/64") }},
		{"MTU", func(in *Input) { in.Node.MTU = 100 }},
		{"given twice", func(in *Input) { in.Tasks[1].Addr4 = in.Tasks[0].Addr4 }},
		{"given twice", func(in *Input) { in.Tasks[1].ID = in.Tasks[0].ID }},
		{"hex", func(in *Input) { in.Tasks[0].ID = "../../etc/passwd" }},
		{"hex", func(in *Input) { in.Tasks[0].ID = "" }},
		{"in none", func(in *Input) { in.Tasks[0].Addr4 = netip.MustParseAddr("10.255.2.2") }},
		{"in none", func(in *Input) { in.Tasks[0].Addr4 = netip.Addr{} }},
		{"reserved", func(in *Input) { in.Tasks[0].Addr4 = netip.MustParseAddr("10.255.1.255") }},
		{"reserved", func(in *Input) { in.Tasks[0].Addr4 = netip.MustParseAddr("10.255.1.1") }},
		{"IPv6 address", func(in *Input) { in.Tasks[0].Addr6 = netip.Addr{} }},
		{"not free", func(in *Input) { in.Tasks[0].Addr6 = in.Node.Block6.Addr().Next() }},
		{"only tcp and udp", func(in *Input) { in.Ports[0].Proto = 132 }},
		{"1 to 65535", func(in *Input) { in.Ports[0].Number = 0 }},
		{"has no port", func(in *Input) { in.Ports[0].Backends4[0] = netip.AddrPortFrom(in.Tasks[0].Addr4, 0) }},
		{"not IPv4", func(in *Input) { in.Ports[0].Backends4 = in.Ports[0].Backends6 }},
		{"not IPv6", func(in *Input) { in.Ports[0].Backends6 = in.Ports[0].Backends4 }},
		{"published twice", func(in *Input) { in.Ports = append(in.Ports, in.Ports[0]) }},
		{"not on this node", func(in *Input) {
			in.Ports[0].Mode = Host
			in.Ports[0].Backends4[0] = netip.MustParseAddrPort("10.255.2.2:80")
		}},
		{"at most", func(in *Input) { in.Tasks = make([]Task, MaxTasks+1) }},
	} {
		in := good()
		v.do(&in)
		_, err := Make(in)
		if err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("got error %v, want one with %q", err, v.want)
		}
	}
}

// drawInput is any valid input.
func drawInput(t *rapid.T) Input {
	n := testNode(rapid.StringMatching("[0-9a-f]{6}").Draw(t, "instance"), rapid.Bool().Draw(t, "ipv6"))
	in := Input{Node: n}
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, 200), 0, 12, rapid.ID).Draw(t, "tasks") {
		in.Tasks = append(in.Tasks, testTask(n, i))
	}
	for _, k := range rapid.SliceOfNDistinct(rapid.Uint16Range(1, 65535), 0, 6, rapid.ID).Draw(t, "ports") {
		proto := rapid.SampledFrom([]Proto{TCP, UDP}).Draw(t, "proto")
		var behind []Task
		if len(in.Tasks) > 0 {
			behind = rapid.SliceOfN(rapid.SampledFrom(in.Tasks), 0, 5).Draw(t, "behind")
		}
		in.Ports = append(in.Ports, testPort(proto, k, behind...))
	}
	return in
}

func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		p, err := Make(in)
		if err != nil {
			t.Fatal(err)
		}
		// The order of the input says nothing.
		other := in
		other.Tasks = rapid.Permutation(in.Tasks).Draw(t, "other tasks")
		other.Ports = rapid.Permutation(in.Ports).Draw(t, "other ports")
		q, err := Make(other)
		if err != nil || !reflect.DeepEqual(p.Host, q.Host) || !reflect.DeepEqual(p.Tasks, q.Tasks) {
			t.Fatalf("another order of the input gives another plan: %v\n%s\n%s", err, p, q)
		}
		checkSpaces(t, p)
		checkPorts(t, in, p)
		// Nothing in the host's namespace is without the instance's name.
		for _, l := range p.Host.Links {
			if !strings.HasSuffix(l.Name, in.Node.Instance) {
				t.Fatalf("host link %s does not carry the instance's name", l.Name)
			}
		}
		if !strings.HasSuffix(p.Host.Table.Name, in.Node.Instance) {
			t.Fatalf("table %s does not carry the instance's name", p.Host.Table.Name)
		}
	})
}

// checkSpaces checks that a plan is sound in itself: every link that is named
// is planned, names fit, indexes and addresses are unique.
func checkSpaces(t *rapid.T, p Plan) {
	for _, s := range append([]Space{p.Host, p.Gateway}, p.Tasks...) {
		links, indexes, addrs := map[string]bool{}, map[int]bool{}, map[netip.Prefix]bool{}
		for _, l := range s.Links {
			if len(l.Name) > 15 || len(l.Peer) > 15 {
				t.Fatalf("link name %s or %s is longer than the kernel takes", l.Name, l.Peer)
			}
			if links[l.Name] || l.Index != 0 && indexes[l.Index] {
				t.Fatalf("link %s or its index %d twice", l.Name, l.Index)
			}
			links[l.Name], indexes[l.Index] = true, true
		}
		want := func(link string) {
			if !links[link] {
				t.Fatalf("namespace %s: link %q is not planned", s.Name, link)
			}
		}
		for _, l := range s.Links {
			if l.Master != "" {
				want(l.Master)
			}
		}
		for _, a := range s.Addrs {
			want(a.Link)
			if addrs[a.Prefix] {
				t.Fatalf("address %v twice", a.Prefix)
			}
			addrs[a.Prefix] = true
		}
		for _, r := range s.Routes {
			want(r.Link)
			if r.Dst != r.Dst.Masked() {
				t.Fatalf("route to %v has host bits", r.Dst)
			}
		}
		for _, n := range s.Neighbours {
			want(n.Link)
		}
	}
}

// checkPorts checks that every published port has exactly its backends.
func checkPorts(t *rapid.T, in Input, p Plan) {
	chains := map[string]Chain{}
	for _, c := range p.Host.Table.Chains {
		if _, ok := chains[c.Name]; ok {
			t.Fatalf("chain %s twice", c.Name)
		}
		chains[c.Name] = c
	}
	for _, port := range in.Ports {
		want, got := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
		for _, b := range append(append([]netip.AddrPort{}, port.Backends4...), port.Backends6...) {
			want[b] = true
		}
		for _, r := range chains[port.Chain()].Rules {
			for _, b := range r.To {
				if got[b] {
					t.Fatalf("backend %v twice", b)
				}
				got[b] = true
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("port %v has backends %v, want %v", port.PortKey, got, want)
		}
	}
	if len(p.Host.Table.Ports) != len(in.Ports) {
		t.Fatalf("%d ports in the map, want %d", len(p.Host.Table.Ports), len(in.Ports))
	}
}

// Adding a task changes nothing that is there already: the incremental path of
// the applier depends on it.
func TestTaskIsOnlyAdded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		p, _ := Make(in)
		more := in
		extra := testTask(in.Node, 230)
		more.Tasks = append(append([]Task{}, in.Tasks...), extra)
		q, err := Make(more)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(p.Host, q.Host) || !reflect.DeepEqual(p.Gateway.Table, q.Gateway.Table) {
			t.Fatal("a further task changed the host or the sandbox's rules")
		}
		have := strings.Split(q.Gateway.String(), "\n")
		for _, line := range strings.Split(p.Gateway.String(), "\n") {
			if !contains(have, line) {
				t.Fatalf("a further task took %q away", line)
			}
		}
		port := TaskPort(in.Node, extra)
		if got := len(q.Gateway.Links) - len(p.Gateway.Links); got != len(port.Links) {
			t.Fatalf("%d links more, want %d", got, len(port.Links))
		}
	})
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
