package dns

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func TestParseReverse(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.2.1.in-addr.arpa":   "1.2.3.4",
		"3.2.1.in-addr.arpa":     "invalid IP",
		"256.3.2.1.in-addr.arpa": "invalid IP",
		"+4.3.2.1.in-addr.arpa":  "invalid IP",
		"b.a.9.8.7.6.5.4.3.2.1.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa": "2001:db8::123:4567:89ab",
		"x.a.9.8.7.6.5.4.3.2.1.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa": "invalid IP",
		"a.9.8.7.6.5.4.3.2.1.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa":   "invalid IP",
		"in-addr.arpa": "invalid IP",
		"":             "invalid IP",
	} {
		if a, ok := parseReverse(name); a.String() != want || ok != a.IsValid() {
			t.Errorf("%s is %v, %v", name, a, ok)
		}
	}
}

func TestReadServers(t *testing.T) {
	for text, want := range map[string]string{
		"nameserver 1.1.1.1\nnameserver ::1\n# nameserver 2.2.2.2\n": "[1.1.1.1:53 [::1]:53]",
		"nameserver fe80::1%eth0 # home\nsearch x\n":                 "[[fe80::1%eth0]:53]",
		"search x\nnameserver nonsense\n":                            "[127.0.0.1:53]",
		strings.Repeat("nameserver 9.9.9.9\n", 9):                    "[" + strings.Repeat("9.9.9.9:53 ", 5) + "9.9.9.9:53]",
	} {
		var out []string
		for _, s := range readServers([]byte(text)) {
			out = append(out, s.String())
		}
		if got := "[" + strings.Join(out, " ") + "]"; got != want {
			t.Errorf("%q names %s, want %s", text, got, want)
		}
	}
}

// FuzzQuery answers anything from tables; what is read must be what another reader of DNS reads, and what is written be well formed.
func FuzzQuery(f *testing.F) {
	f.Add(question(f, "web.", dnsmessage.TypeA, 0))
	f.Add(question(f, "tasks.web.front.", dnsmessage.TypeAAAA, 1232))
	f.Add(question(f, "2.1.0.10.in-addr.arpa.", dnsmessage.TypePTR, 4096))
	f.Add(question(f, "a.b.c.", dnsmessage.TypeMX, 512))
	f.Add([]byte{})
	s := New()
	for _, tab := range twoNets() {
		if err := s.Set(&tab); err != nil {
			f.Fatal(err)
		}
	}
	c := &client{cfg: TaskNames{Inside: true}, nets: []*network{s.nets[1], s.nets[2]}}
	w := &desk{}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := readQuery(b)
		if err == nil {
			checkRead(t, b, &q)
		}
		limit := q.size
		reply, ok := s.reply(c, &q, err, limit, w)
		if !ok {
			t.Fatal("a task in internal networks only was to ask outside")
		}
		if (reply == nil) != (err == errNoQuery) {
			t.Fatalf("%v, and the reply is %x", err, reply)
		}
		if reply == nil {
			return
		}
		if len(reply) > max(limit, len(b)) || !bytes.Equal(reply[:2], b[:2]) {
			t.Fatalf("the reply is %d bytes long, the limit %d", len(reply), limit)
		}
		var m dnsmessage.Message
		if err := m.Unpack(reply); err != nil && err.Error() != "unpacking header: id" && !odd(&q, err) {
			t.Fatalf("the reply %x: %v", reply, err)
		}
	})
}

// odd reports whether the other reader refuses names that the protocol allows: it writes them with dots.
func odd(q *query, err error) bool {
	return bytes.ContainsRune(q.name, '.') && strings.Contains(err.Error(), "invalid")
}

// checkRead compares with what the oracle reads.
func checkRead(t *testing.T, b []byte, q *query) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		t.Fatal(err)
	}
	oq, err := p.Question()
	if err != nil {
		if odd(q, err) {
			return
		}
		t.Fatalf("read, and the oracle says %v", err)
	}
	name, plain := q.text(new([maxName]byte))
	if h.ID != q.id || uint16(oq.Type) != q.typ || uint16(oq.Class) != q.class {
		t.Fatalf("read %+v, and the oracle %v", q, oq.GoString())
	}
	if want := strings.TrimSuffix(lowerASCII(oq.Name.String()), "."); plain && string(name) != want {
		t.Fatalf("the name is %q, and the oracle reads %q", name, want)
	}
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// FuzzReply takes anything for a resolver's reply: it is kept, aged and cut without going wrong, and stays well formed.
func FuzzReply(f *testing.F) {
	var m dnsmessage.Message
	if err := m.Unpack(question(f, "web.example.", dnsmessage.TypeA, 1232)); err != nil {
		f.Fatal(err)
	}
	f.Add(addresses(m, 60, "1.2.3.4", "1.2.3.5", "1.2.3.6"), uint16(60))
	f.Add(addresses(m, 60), uint16(600))
	f.Add(question(f, "x.", dnsmessage.TypeA, 0), uint16(12))
	f.Fuzz(func(t *testing.T, b []byte, limit uint16) {
		if len(b) < headerLen {
			return
		}
		keep := keepFor(b)
		if keep < 0 || keep > maxKeep {
			t.Fatalf("kept for %v", keep)
		}
		aged := append([]byte(nil), b...)
		age(aged, 10e9)
		if len(aged) != len(b) {
			t.Fatal("ageing changed the length")
		}
		var whole dnsmessage.Message
		good := whole.Unpack(b) == nil && len(whole.Questions) == 1
		lim := max(int(limit), minUDP)
		out := fit(append([]byte(nil), b...), lim)
		if len(out) > lim && len(out) != 0 {
			t.Fatalf("%d bytes, and the limit is %d", len(out), lim)
		}
		if !good {
			return
		}
		var cut dnsmessage.Message
		if err := cut.Unpack(out); err != nil {
			t.Fatalf("cut to %x: %v", out, err)
		}
		if len(cut.Answers) < len(whole.Answers) && !cut.Truncated {
			t.Fatal("answers are missing without a word")
		}
	})
}

func TestAppendName(t *testing.T) {
	for name, want := range map[string]string{
		"a.bc":                   "\x01a\x02bc\x00",
		"":                       "\x00",
		"a..b":                   "",
		strings.Repeat("x", 64):  "",
		strings.Repeat("x.", 10): strings.Repeat("\x01x", 10) + "\x00",
		strings.Repeat("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.", 9): "",
	} {
		b, ok := appendName(nil, name)
		if string(b) != want || ok != (want != "") {
			t.Errorf("%q becomes %q, %v", name, b, ok)
		}
	}
}
