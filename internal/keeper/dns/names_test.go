package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

func deadline(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// twoNets are networks front and demo_back, with the same service names in both.
func twoNets() []Table {
	row := func(svc, num uint64, a4, a6 string, serving bool, names ...string) TaskRow {
		return TaskRow{Key: TaskKey{svc, num}, Names: names, Addr4: addr(a4), Addr6: addr(a6), Serving: serving}
	}
	return []Table{
		{Network: 1, Complete: true, Name: "front", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("fd00:1::/64")},
			Services: []ServiceRow{
				{Service: 1, Names: []string{"demo_web", "web", "both"}, VIP: true, Addr4: addr("10.0.1.2"), Addr6: addr("fd00:1::2")},
				{Service: 2, Names: []string{"demo_rr", "rr", "both"}},
				{Service: 3, Names: []string{"demo_none", "none"}},
			},
			Tasks: []TaskRow{
				row(1, 1, "10.0.1.11", "fd00:1::11", true, "demo_web.1.AbC", "aaaabbbbcccc", "host-one"),
				row(1, 2, "10.0.1.12", "", false, "demo_web.2.def", "ddddeeeeffff", "host-two"),
				row(2, 1, "10.0.1.21", "", true, "demo_rr.1.x", "111122223333"),
				row(2, 2, "10.0.1.22", "", true, "demo_rr.2.y", "444455556666"),
				row(2, 3, "10.0.1.23", "", false, "demo_rr.3.z", "777788889999"),
			}},
		{Network: 2, Complete: true, Name: "demo_back", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24")},
			Services: []ServiceRow{
				{Service: 4, Names: []string{"other_web", "web"}, VIP: true, Addr4: addr("10.0.2.2")},
				{Service: 5, Names: []string{"db"}, VIP: true, Addr4: addr("10.0.2.3")},
			},
			Tasks: []TaskRow{row(4, 1, "10.0.2.11", "", true, "other_web.1.q", "abcabcabcabc")}},
	}
}

func TestNames(t *testing.T) {
	s := newServer(t)
	set(t, s, twoNets()...)
	startUpstream(t, "127.0.0.53", rcode(dnsmessage.RCodeNameError))
	conf := resolvConf(t, "127.0.0.53")
	k := open(t, s, TaskNames{ID: "a", Networks: []uint64{1, 2}, Self: TaskKey{1, 2}, ResolvConf: conf})
	for _, c := range []struct {
		name string
		typ  dnsmessage.Type
		want string
	}{
		{"web.", dnsmessage.TypeA, "10.0.1.2"},
		{"WeB.", dnsmessage.TypeA, "10.0.1.2"},
		{"web.", dnsmessage.TypeAAAA, "fd00:1::2"},
		{"demo_web.", dnsmessage.TypeA, "10.0.1.2"},
		{"web.front.", dnsmessage.TypeA, "10.0.1.2"},
		{"web.demo_back.", dnsmessage.TypeA, "10.0.2.2"},
		{"WEB.Demo_Back.", dnsmessage.TypeA, "10.0.2.2"},
		{"db.", dnsmessage.TypeA, "10.0.2.3"},
		{"db.", dnsmessage.TypeAAAA, "nothing"},
		{"db.front.", dnsmessage.TypeA, "NameError"},
		{"rr.", dnsmessage.TypeA, "10.0.1.21 10.0.1.22"},
		{"none.", dnsmessage.TypeA, "nothing"},
		{"tasks.none.", dnsmessage.TypeA, "nothing"},
		{"tasks.web.", dnsmessage.TypeA, "10.0.1.11"},
		{"tasks.web.", dnsmessage.TypeAAAA, "fd00:1::11"},
		{"tasks.demo_rr.", dnsmessage.TypeA, "10.0.1.21 10.0.1.22"},
		{"tasks.rr.front.", dnsmessage.TypeA, "10.0.1.21 10.0.1.22"},
		{"both.", dnsmessage.TypeA, "10.0.1.2 10.0.1.21 10.0.1.22"},
		{"tasks.both.", dnsmessage.TypeA, "10.0.1.11 10.0.1.21 10.0.1.22"},
		{"demo_web.1.abc.", dnsmessage.TypeA, "10.0.1.11"},
		{"aaaabbbbcccc.", dnsmessage.TypeA, "10.0.1.11"},
		{"host-one.front.", dnsmessage.TypeA, "10.0.1.11"},
		{"host-one.", dnsmessage.TypeMX, "nothing"},
		{"host-two.", dnsmessage.TypeA, "10.0.1.12"}, // itself, not yet serving
		{"demo_rr.3.z.", dnsmessage.TypeA, "NameError"},
		{"web.", dnsmessage.TypeMX, "nothing"},
		{"web.", dnsmessage.TypeTXT, "nothing"},
		{"web.", dnsmessage.TypeALL, "nothing"},
		{"web.", dnsmessage.TypePTR, "nothing"},
		{"2.1.0.10.in-addr.arpa.", dnsmessage.TypePTR, "demo_web.front."},
		{"11.1.0.10.in-addr.arpa.", dnsmessage.TypePTR, "demo_web.1.abc.front."},
		{"23.1.0.10.in-addr.arpa.", dnsmessage.TypePTR, "demo_rr.3.z.front."},
		{"11.2.0.10.in-addr.arpa.", dnsmessage.TypePTR, "other_web.1.q.demo_back."},
		{"99.1.0.10.in-addr.arpa.", dnsmessage.TypePTR, "NameError"},
		{"1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.", dnsmessage.TypePTR, "NameError"},
		{strings.Repeat("0.", 0) + "1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.", dnsmessage.TypePTR, "demo_web.1.abc.front."},
	} {
		if got := k.ask(c.name, c.typ); got != c.want {
			t.Errorf("%s %s is %q, want %q", c.name, c.typ, got, c.want)
		}
		if got := say(unpack(t, k.tcp(question(t, c.name, c.typ, 1232)))); got != c.want {
			t.Errorf("by TCP, %s %s is %q, want %q", c.name, c.typ, got, c.want)
		}
	}
}

// TestScopes asks from tasks of different networks, and of the same ones in another order.
func TestScopes(t *testing.T) {
	s := newServer(t)
	set(t, s, twoNets()...)
	startUpstream(t, "127.0.0.53", rcode(dnsmessage.RCodeNameError))
	conf := resolvConf(t, "127.0.0.53")
	for _, c := range []struct {
		nets []uint64
		want [3]string // web, db, rr
	}{
		{[]uint64{1}, [3]string{"10.0.1.2", "NameError", "10.0.1.21 10.0.1.22"}},
		{[]uint64{2}, [3]string{"10.0.2.2", "10.0.2.3", "NameError"}},
		{[]uint64{2, 1}, [3]string{"10.0.2.2", "10.0.2.3", "10.0.1.21 10.0.1.22"}},
		{nil, [3]string{"NameError", "NameError", "NameError"}},
		{[]uint64{3}, [3]string{"ServerFailure", "ServerFailure", "ServerFailure"}}, // its table has not come yet
	} {
		k := open(t, s, TaskNames{ID: fmt.Sprint("t", c.nets), Networks: c.nets, ResolvConf: conf})
		for i, name := range []string{"web.", "db.", "rr."} {
			if got := k.ask(name, dnsmessage.TypeA); got != c.want[i] {
				t.Errorf("in networks %v, %s is %q, want %q", c.nets, name, got, c.want[i])
			}
		}
	}
}

func TestChanges(t *testing.T) {
	s := newServer(t)
	set(t, s, twoNets()...)
	k := open(t, s, TaskNames{Networks: []uint64{1}, Inside: true})
	check := func(name, want string) {
		t.Helper()
		if got := k.ask(name, dnsmessage.TypeA); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	check("rr.", "10.0.1.21 10.0.1.22")
	set(t, s, Table{Network: 1, Tasks: []TaskRow{{Key: TaskKey{2, 2}, Names: []string{"demo_rr.2.y"}, Addr4: addr("10.0.1.22")}}})
	check("rr.", "10.0.1.21")
	check("444455556666.", "ServerFailure")
	set(t, s, Table{Network: 1, TasksRemoved: []TaskKey{{2, 1}, {9, 9}}})
	check("rr.", "nothing")
	set(t, s, Table{Network: 1, Services: []ServiceRow{{Service: 2, Names: []string{"demo_rr", "new"}, VIP: true, Addr4: addr("10.0.1.9")}}})
	check("rr.", "ServerFailure")
	check("new.", "10.0.1.9")
	check("both.", "10.0.1.2")
	set(t, s, Table{Network: 1, ServicesRemoved: []uint64{1, 2}})
	check("web.", "ServerFailure")
	check("host-one.", "10.0.1.11")
	// A table in parts takes effect with its last.
	parts := twoNets()[0]
	var n int
	whole := Table{Network: 1, Complete: true, Draft: 7, Name: "front", Services: parts.Services, Tasks: parts.Tasks}
	for i := range 2000 {
		whole.Tasks = append(whole.Tasks, TaskRow{Key: TaskKey{3, uint64(i)}, Names: []string{fmt.Sprint("n", i)}, Addr4: addr("10.0.1.99")})
	}
	err := whole.Split(func(p *Table) error {
		check("web.", "ServerFailure")
		n++
		return s.Set(p)
	})
	if err != nil || n < 3 {
		t.Fatalf("%d parts, %v", n, err)
	}
	check("rr.", "10.0.1.21 10.0.1.22")
	set(t, s, Table{Network: 1, Gone: true})
	check("rr.", "ServerFailure")
	if err := s.Set(&Table{Network: 1, Tasks: parts.Tasks}); err == nil {
		t.Error("changes to a table that is not known were taken")
	}
	if got := s.Networks(); !slices.Equal(got, []uint64{2}) {
		t.Errorf("networks %v are known", got)
	}
}

// TestLong has a name with more addresses than a datagram holds.
func TestLong(t *testing.T) {
	s := newServer(t)
	tab := Table{Network: 1, Complete: true, Name: "n", Services: []ServiceRow{{Service: 1, Names: []string{"many"}}}}
	for i := range 1000 {
		tab.Tasks = append(tab.Tasks, TaskRow{Key: TaskKey{1, uint64(i + 1)}, Names: []string{fmt.Sprint("many.", i)},
			Addr4: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Serving: true})
	}
	set(t, s, tab)
	k := open(t, s, TaskNames{Networks: []uint64{1}})
	for _, c := range []struct{ edns, limit, least int }{{0, 512, 29}, {1232, 1232, 70}, {4096, 4096, 250}, {65535, 4096, 250}, {100, 512, 28}} {
		raw := k.udp(question(t, "many.", dnsmessage.TypeA, c.edns))
		m := unpack(t, raw)
		if len(raw) > c.limit || !m.Truncated || len(m.Answers) < c.least {
			t.Errorf("with EDNS %d: %d bytes, truncated %v, %d answers", c.edns, len(raw), m.Truncated, len(m.Answers))
		}
		if got := len(m.Additionals); got != min(c.edns, 1) {
			t.Errorf("with EDNS %d: %d additional records", c.edns, got)
		}
	}
	first, second := say(unpack(t, k.tcp(question(t, "many.", dnsmessage.TypeA, 0)))), unpack(t, k.tcp(question(t, "many.", dnsmessage.TypeA, 4096)))
	if len(second.Answers) != 1000 || second.Truncated || say(second) != first {
		t.Errorf("by TCP: %d answers, truncated %v", len(second.Answers), second.Truncated)
	}
	if second.Answers[0].Header.TTL != ttl {
		t.Errorf("the TTL is %d", second.Answers[0].Header.TTL)
	}
}

// TestOrder wants every address in front now and then.
func TestOrder(t *testing.T) {
	s := newServer(t)
	set(t, s, twoNets()...)
	k := open(t, s, TaskNames{Networks: []uint64{1}})
	front := map[string]int{}
	for range 200 {
		m := unpack(t, k.udp(question(t, "both.", dnsmessage.TypeA, 0)))
		front[netip.AddrFrom4(m.Answers[0].Body.(*dnsmessage.AResource).A).String()]++
	}
	if len(front) != 3 {
		t.Errorf("in front were %v", front)
	}
}

// TestOdd sends what is no proper question.
func TestOdd(t *testing.T) {
	s := newServer(t)
	set(t, s, twoNets()...)
	k := open(t, s, TaskNames{Networks: []uint64{1}, Inside: true})
	good := question(t, "web.", dnsmessage.TypeA, 1232)
	edit := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	for _, c := range []struct {
		what string
		msg  []byte
		want dnsmessage.RCode
	}{
		{"an update", edit(func(b []byte) []byte { b[2] = 5 << 3; return b }), dnsmessage.RCodeNotImplemented},
		{"two questions", edit(func(b []byte) []byte { b[5] = 2; return b }), dnsmessage.RCodeFormatError},
		{"none", edit(func(b []byte) []byte { b[5] = 0; return b }), dnsmessage.RCodeFormatError},
		{"cut short", good[:20], dnsmessage.RCodeFormatError},
		{"more behind it", append(slices.Clone(good), 0), dnsmessage.RCodeFormatError},
		{"a compressed name", edit(func(b []byte) []byte { b[12] = 0xc0; return b }), dnsmessage.RCodeFormatError},
		{"class CHAOS", edit(func(b []byte) []byte { b[20] = 3; return b }), dnsmessage.RCodeRefused},
		{"only a header", good[:12], dnsmessage.RCodeFormatError},
	} {
		var p dnsmessage.Parser
		h, err := p.Start(k.udp(c.msg))
		if err != nil || h.RCode != c.want || h.ID != uint16(good[0])<<8|uint16(good[1]) || !h.Response {
			t.Errorf("%s is answered with %v, %v", c.what, h.GoString(), err)
		}
	}
	if raw := k.udp(edit(func(b []byte) []byte { b[len(b)-5] = 1; return b })); raw[len(raw)-6] != 1 { // EDNS version 1
		t.Errorf("BADVERS is %x", raw)
	}
	// What is not worth an answer gets none, and does no harm.
	f := k.dial(unix.SOCK_DGRAM)
	defer f.Close()
	for _, b := range [][]byte{{1}, make([]byte, 11), edit(func(b []byte) []byte { b[2] |= 0x80; return b }), make([]byte, maxQuery+1), make([]byte, 60000), {}} {
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Write(good); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := f.Read(buf)
	if err != nil || say(unpack(t, buf[:n])) != "10.0.1.2" {
		t.Errorf("the first answer is %x, %v", buf[:n], err)
	}
}
