package dns

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// outsider is a task that asks the resolvers on the loopback addresses named.
func outsider(t testing.TB, s *Server, servers ...string) *task {
	return open(t, s, TaskNames{ResolvConf: resolvConf(t, servers...)})
}

func TestOutsideCached(t *testing.T) {
	s := newServer(t)
	u := startUpstream(t, "127.0.0.53", fixed("192.0.2.1", 30))
	k := outsider(t, s, "127.0.0.53")
	for _, name := range []string{"example.com.", "EXAMPLE.com.", "example.COM."} {
		m := unpack(t, k.udp(question(t, name, dnsmessage.TypeA, 0)))
		if say(m) != "192.0.2.1" || m.Questions[0].Name.String() != name || m.Authoritative {
			t.Errorf("%s: %s", name, m.GoString())
		}
	}
	if n := u.asked.Load(); n != 1 {
		t.Errorf("the resolver was asked %d times", n)
	}
	k.ask("example.com.", dnsmessage.TypeAAAA)
	k.udp(question(t, "example.com.", dnsmessage.TypeA, 1232))
	if n := u.asked.Load(); n != 3 {
		t.Errorf("the resolver was asked %d times: another type and EDNS are other questions", n)
	}
	// Another task shares what the host's resolvers said.
	other := open(t, s, TaskNames{ID: "other", ResolvConf: resolvConf(t, "127.0.0.53")})
	if got := other.ask("example.com.", dnsmessage.TypeA); got != "192.0.2.1" || u.asked.Load() != 3 {
		t.Errorf("the other task got %s, the resolver was asked %d times", got, u.asked.Load())
	}
}

// TestCacheTimes drives the cache's clock by hand.
func TestCacheTimes(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCache(func() time.Time { return now })
	pack := func(ttl uint32) []byte {
		var m dnsmessage.Message
		if err := m.Unpack(question(t, "x.org.", dnsmessage.TypeA, 0)); err != nil {
			t.Fatal(err)
		}
		return addresses(m, ttl, "192.0.2.1")
	}
	key := cacheKey{name: "x.org", typ: typeA}
	c.put(key, pack(20))
	now = now.Add(15 * time.Second)
	b, ok := c.get(key, nil)
	if !ok || unpack(t, b).Answers[0].Header.TTL != 5 {
		t.Errorf("after 15 of 20 s: %v, %x", ok, b)
	}
	now = now.Add(5 * time.Second)
	if _, ok := c.get(key, nil); ok {
		t.Error("an answer outlived its TTL")
	}
	c.put(key, pack(0))
	if _, ok := c.get(key, nil); ok {
		t.Error("an answer with TTL 0 was kept")
	}
	c.put(key, pack(1<<31))
	now = now.Add(maxKeep)
	if _, ok := c.get(key, nil); ok {
		t.Error("an answer was kept longer than the bound")
	}
	for i := range 3 * maxCached {
		c.put(cacheKey{name: fmt.Sprint(i)}, pack(60))
	}
	if len(c.byKey) > maxCached || c.bytes > maxCacheBytes || c.order.Len() != len(c.byKey) {
		t.Errorf("%d entries of %d bytes", len(c.byKey), c.bytes)
	}
	if _, ok := c.get(cacheKey{name: fmt.Sprint(3*maxCached - 1)}, nil); !ok {
		t.Error("the newest entry is gone")
	}
	c.forget(0)
	if len(c.byKey) != 0 || c.bytes != 0 || c.order.Len() != 0 {
		t.Errorf("after forgetting: %d entries of %d bytes", len(c.byKey), c.bytes)
	}
}

// TestNegative keeps "no such name" for as long as its SOA says.
func TestNegative(t *testing.T) {
	s := newServer(t)
	u := startUpstream(t, "127.0.0.53", func(m dnsmessage.Message, _ bool) []byte {
		m.Response, m.RCode = true, dnsmessage.RCodeNameError
		if m.Questions[0].Name.String() == "soa.test." {
			m.Authorities = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("test."), Class: dnsmessage.ClassINET, TTL: 60},
				Body:   &dnsmessage.SOAResource{NS: dnsmessage.MustNewName("ns.test."), MBox: dnsmessage.MustNewName("m.test."), MinTTL: 30}}}
		}
		out, err := m.Pack()
		if err != nil {
			panic(err)
		}
		return out
	})
	k := outsider(t, s, "127.0.0.53")
	for _, c := range []struct {
		name string
		want int32
	}{{"soa.test.", 1}, {"bare.test.", 3}} {
		u.asked.Store(0)
		for range 3 {
			if got := k.ask(c.name, dnsmessage.TypeA); got != "NameError" {
				t.Errorf("%s is %s", c.name, got)
			}
		}
		if n := u.asked.Load(); n != c.want {
			t.Errorf("%s was asked for %d times, want %d", c.name, n, c.want)
		}
	}
}

// TestFailover has resolvers that fail in every way in front of one that works.
func TestFailover(t *testing.T) {
	s := newServer(t)
	silent := startUpstream(t, "127.0.0.54", func(dnsmessage.Message, bool) []byte { return nil })
	startUpstream(t, "127.0.0.55", rcode(dnsmessage.RCodeServerFailure))
	startUpstream(t, "127.0.0.56", rcode(dnsmessage.RCodeRefused))
	startUpstream(t, "127.0.0.57", func(m dnsmessage.Message, _ bool) []byte {
		m.ID++ // somebody who guesses
		return addresses(m, 60, "192.0.2.66")
	})
	good := startUpstream(t, "127.0.0.58", fixed("192.0.2.1", 0))
	for i, c := range []struct {
		servers []string
		want    string
		least   time.Duration
	}{
		{[]string{"127.0.0.99", "127.0.0.58"}, "192.0.2.1", 0}, // nobody there: refused at once
		{[]string{"127.0.0.55", "127.0.0.56", "127.0.0.58"}, "192.0.2.1", 0},
		{[]string{"127.0.0.54", "127.0.0.58"}, "192.0.2.1", oneTry},
		{[]string{"127.0.0.57", "127.0.0.58"}, "192.0.2.1", oneTry},
		{[]string{"127.0.0.55"}, "ServerFailure", 0},
		{[]string{"127.0.0.99", "127.0.0.56"}, "Refused", 0},
		{[]string{"127.0.0.99"}, "ServerFailure", 0},
	} {
		k := open(t, s, TaskNames{ID: fmt.Sprint("t", i), ResolvConf: resolvConf(t, c.servers...)})
		s.fw.health.forget(0)
		began := time.Now()
		got := k.ask("example.com.", dnsmessage.TypeA)
		if took := time.Since(began); got != c.want || took < c.least || took > c.least+2*time.Second {
			t.Errorf("with %v: %s after %v, want %s after %v", c.servers, got, took, c.want, c.least)
		}
	}
	// What did not answer is asked last for a while.
	k := open(t, s, TaskNames{ID: "again", ResolvConf: resolvConf(t, "127.0.0.54", "127.0.0.58")})
	s.fw.health.forget(0)
	k.ask("a.example.com.", dnsmessage.TypeA)
	before := silent.asked.Load()
	began := time.Now()
	for i := range 10 {
		if got := k.ask(fmt.Sprintf("%d.example.com.", i), dnsmessage.TypeA); got != "192.0.2.1" {
			t.Errorf("question %d: %s", i, got)
		}
	}
	if took := time.Since(began); took > oneTry || silent.asked.Load() != before {
		t.Errorf("ten questions took %v, the dead resolver got %d of them", took, silent.asked.Load()-before)
	}
	if good.asked.Load() < 10 {
		t.Errorf("the good one was asked %d times", good.asked.Load())
	}
}

// TestDeadRevives drives the clock of the memory of dead resolvers.
func TestDeadRevives(t *testing.T) {
	now := time.Unix(1000, 0)
	h := &health{now: func() time.Time { return now }, dead: map[healthKey]time.Time{}}
	list := readServers([]byte("nameserver 1.1.1.1\nnameserver 2.2.2.2\n"))
	expect := func(what, first string, alive int) {
		t.Helper()
		order, n := h.order(0, list)
		if order[0].Addr().String() != first || n != alive || len(order) != 2 {
			t.Errorf("%s: %v, %d alive", what, order, n)
		}
	}
	expect("at first", "1.1.1.1", 2)
	h.failed(0, list[0])
	expect("a dead one", "2.2.2.2", 1)
	now = now.Add(deadFor)
	expect("whoever comes first tries it", "1.1.1.1", 2)
	expect("the next does not", "2.2.2.2", 1)
	h.answered(0, list[0])
	expect("it answered", "1.1.1.1", 2)
	h.failed(0, list[0])
	h.failed(0, list[1])
	expect("all dead", "1.1.1.1", 0)
}

// TestSilence answers before the client gives up, and holds nobody's place for longer when all are known to be dead.
func TestSilence(t *testing.T) {
	s := newServer(t)
	startUpstream(t, "127.0.0.54", func(dnsmessage.Message, bool) []byte { return nil })
	k := outsider(t, s, "127.0.0.54")
	for i, most := range []time.Duration{patience + 300*time.Millisecond, shortTry + 300*time.Millisecond} {
		began := time.Now()
		if got := k.ask(fmt.Sprintf("%d.test.", i), dnsmessage.TypeA); got != "ServerFailure" {
			t.Errorf("silence is told as %s", got)
		}
		if took := time.Since(began); took > most {
			t.Errorf("it took %v, want at most %v", took, most)
		}
	}
}

// TestBig has answers that do not fit: by UDP they are cut at a whole record, by TCP they are whole.
func TestBig(t *testing.T) {
	s := newServer(t)
	ips := make([]string, 2000)
	for i := range ips {
		ips[i] = fmt.Sprintf("10.9.%d.%d", i>>8, i&255)
	}
	u := startUpstream(t, "127.0.0.53", func(m dnsmessage.Message, tcp bool) []byte {
		if strings.HasPrefix(m.Questions[0].Name.String(), "middle.") {
			return addresses(m, 60, ips[:100]...)
		}
		if tcp {
			return addresses(m, 60, ips...)
		}
		m.Truncated = true
		return addresses(m, 60, ips[:20]...)
	})
	k := outsider(t, s, "127.0.0.53")
	m := unpack(t, k.udp(question(t, "big.test.", dnsmessage.TypeA, 0)))
	if !m.Truncated || len(m.Answers) != 20 {
		t.Errorf("by UDP: truncated %v, %d answers", m.Truncated, len(m.Answers))
	}
	m = unpack(t, k.tcp(question(t, "big.test.", dnsmessage.TypeA, 1232)))
	if m.Truncated || len(m.Answers) != 2000 || len(m.Additionals) != 1 || u.tcp.Load() != 1 {
		t.Errorf("by TCP: truncated %v, %d answers, %d by TCP upstream", m.Truncated, len(m.Answers), u.tcp.Load())
	}
	// What was kept of a TCP answer is cut to what a UDP client takes.
	k.tcp(question(t, "middle.test.", dnsmessage.TypeA, 1232))
	before := u.asked.Load()
	raw := k.udp(question(t, "middle.test.", dnsmessage.TypeA, 1232))
	m = unpack(t, raw)
	if len(raw) > 1232 || !m.Truncated || len(m.Answers) < 70 || len(m.Additionals) != 1 || u.asked.Load() != before {
		t.Errorf("cut: %d bytes, truncated %v, %d answers, asked %d times", len(raw), m.Truncated, len(m.Answers), u.asked.Load()-before)
	}
}

// TestNoTCP has a resolver without TCP: a client that came by TCP gets what UDP gives.
func TestNoTCP(t *testing.T) {
	s := newServer(t)
	u := startUpstream(t, "127.0.0.53", fixed("192.0.2.1", 60))
	u.l.Close()
	k := outsider(t, s, "127.0.0.53")
	if got := say(unpack(t, k.tcp(question(t, "x.test.", dnsmessage.TypeA, 0)))); got != "192.0.2.1" {
		t.Errorf("by TCP: %s", got)
	}
}

// TestResolvConfChanges has the host's resolvers change while a task runs.
func TestResolvConfChanges(t *testing.T) {
	s := newServer(t)
	startUpstream(t, "127.0.0.53", fixed("192.0.2.1", 3600))
	startUpstream(t, "127.0.0.54", fixed("192.0.2.2", 3600))
	conf := resolvConf(t, "127.0.0.53")
	k := open(t, s, TaskNames{ResolvConf: conf})
	if got := k.ask("x.test.", dnsmessage.TypeA); got != "192.0.2.1" {
		t.Fatalf("first: %s", got)
	}
	writeResolv(t, conf, "127.0.0.54", "127.0.0.53")
	end := time.Now().Add(10 * time.Second)
	for k.ask("x.test.", dnsmessage.TypeA) != "192.0.2.2" {
		if time.Now().After(end) {
			t.Fatal("the change was not seen")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	for k.ask("x.test.", dnsmessage.TypeA) != "ServerFailure" { // nobody on 127.0.0.1
		if time.Now().After(end) {
			t.Fatal("the removal was not seen")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestOwnServers asks the servers that a task's spec names, from its own namespace.
func TestOwnServers(t *testing.T) {
	s := newServer(t)
	host := startUpstream(t, "127.0.0.53", fixed("192.0.2.1", 60))
	k := open(t, s, TaskNames{Inside: true, ResolvConf: resolvConf(t, "127.0.0.53")})
	if got := k.ask("x.test.", dnsmessage.TypeA); got != "ServerFailure" {
		t.Errorf("a task in internal networks only got %s", got)
	}
	if got := say(unpack(t, k.tcp(question(t, "x.test.", dnsmessage.TypeA, 0)))); got != "ServerFailure" {
		t.Errorf("and by TCP %s", got)
	}
	var u *upstream
	if err := inNS(k.path, func() error { u = startUpstream(t, "127.0.0.53", fixed("192.0.2.7", 60)); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"task", "second"} { // the first changes its configuration
		k = open(t, s, TaskNames{ID: id, NetNS: k.path, Inside: true, Servers: readAddrs("127.0.0.53")})
		if got := k.ask("x.test.", dnsmessage.TypeA) + " " + say(unpack(t, k.tcp(question(t, "y.test.", dnsmessage.TypeA, 0)))); got != "192.0.2.7 192.0.2.7" {
			t.Errorf("task %s got %s", id, got)
		}
	}
	if host.asked.Load() != 0 || u.asked.Load() != 2 || u.tcp.Load() != 2 {
		t.Errorf("the host's was asked %d times, the task's %d and %d by TCP", host.asked.Load(), u.asked.Load(), u.tcp.Load())
	}
}

// waits counts those who wait for its end.
type waits struct {
	context.Context
	n atomic.Int32
}

func (w *waits) Done() <-chan struct{} { w.n.Add(1); return w.Context.Done() }

// TestShared has many clients ask the same while one already waits for the reply.
func TestShared(t *testing.T) {
	s := newServer(t)
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	u := startUpstream(t, "127.0.0.53", func(m dnsmessage.Message, _ bool) []byte {
		<-held
		return addresses(m, 0, "192.0.2.1")
	})
	t.Cleanup(release) // the resolver's, which comes next, waits for its answers
	k := outsider(t, s, "127.0.0.53")
	s.mu.Lock()
	c := s.clients["task"]
	w := &waits{Context: c.ctx}
	c.ctx = w
	s.mu.Unlock()
	msg := question(t, "x.test.", dnsmessage.TypeA, 0)
	var wg sync.WaitGroup
	ask := func() {
		if got := say(unpack(t, k.udp(msg))); got != "192.0.2.1" {
			t.Errorf("one got %s", got)
		}
	}
	wg.Go(ask)
	await(t, "the resolver to be asked", func() bool { return u.asked.Load() == 1 })
	first := w.n.Load()
	for range 49 {
		wg.Go(ask)
	}
	// To be admitted is not enough: who comes to wait after the reply has come asks anew, for it may not be kept.
	await(t, "all to wait for the one reply", func() bool { return w.n.Load() == first+49 })
	release()
	wg.Wait()
	if n := u.asked.Load(); n != 1 {
		t.Errorf("the resolver was asked %d times", n)
	}
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// TestLimits has a task ask for more than it may, and others not suffer from it.
func TestLimits(t *testing.T) {
	s := newServer(t)
	set(t, s, twoNets()...)
	startUpstream(t, "127.0.0.54", func(dnsmessage.Message, bool) []byte { return nil })
	conf := resolvConf(t, "127.0.0.54")
	greedy := open(t, s, TaskNames{ID: "greedy", Networks: []uint64{1}, ResolvConf: conf})
	f := greedy.dial(unix.SOCK_DGRAM)
	defer f.Close()
	for i := range maxOutside + 1 {
		if _, err := f.Write(question(t, fmt.Sprintf("%d.test.", i), dnsmessage.TypeA, 0)); err != nil {
			t.Fatal(err)
		}
		await(t, "it to be read", func() bool {
			c := s.clients["greedy"]
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.outside >= min(i+1, maxOutside)
		})
	}
	buf := make([]byte, 4096)
	n, err := f.Read(buf)
	if err != nil || say(unpack(t, buf[:n])) != "Refused" {
		t.Errorf("one too many is answered with %x, %v", buf[:n], err)
	}
	if got := greedy.ask("web.", dnsmessage.TypeA); got != "10.0.1.2" {
		t.Errorf("its own names: %s", got)
	}
	// One more connection than it may have is closed at once; the others work.
	var conns []*os.File
	for range maxConns {
		c := greedy.dial(unix.SOCK_STREAM)
		defer c.Close()
		conns = append(conns, c)
		speak(t, c, question(t, "web.", dnsmessage.TypeA, 0))
	}
	c := greedy.dial(unix.SOCK_STREAM)
	defer c.Close()
	if _, err := c.Read(buf); err == nil {
		t.Error("a connection too many was served")
	}
	for _, c := range conns {
		if got := say(unpack(t, speak(t, c, question(t, "web.", dnsmessage.TypeA, 0)))); got != "10.0.1.2" {
			t.Errorf("a second question on a connection: %s", got)
		}
	}
	// Its end cuts everything off.
	began := time.Now()
	if err := s.Close("greedy"); err != nil || time.Since(began) > time.Second {
		t.Errorf("closing took %v, %v", time.Since(began), err)
	}
	if _, err := conns[0].Read(buf); err == nil {
		t.Error("a connection outlived its task")
	}
}

// TestRate drives the clock of a task's allowance.
func TestRate(t *testing.T) {
	c, now := &client{}, time.Unix(1000, 0)
	spend := func() (n int) {
		for c.enter(now) {
			n++
			c.leave()
		}
		return n
	}
	if n := spend(); n != outsideBurst {
		t.Errorf("%d at once", n)
	}
	now = now.Add(time.Second)
	if n := spend(); n != outsideRate {
		t.Errorf("%d a second later", n)
	}
	now = now.Add(time.Hour)
	if n := spend(); n != outsideBurst {
		t.Errorf("%d after an hour", n)
	}
}
