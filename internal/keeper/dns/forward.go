package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// patience bounds a question to the outside: clients ask again after five seconds.
	patience = 4500 * time.Millisecond
	// oneTry is how long a resolver has; shortTry when all of them are known to be dead.
	oneTry   = 1500 * time.Millisecond
	shortTry = 750 * time.Millisecond
)

// asker is who a question is asked for: whose resolvers, and from which namespace.
type asker struct {
	scope   uint32
	ns      string // "" is the host's
	servers []netip.AddrPort
}

// forwarder asks resolvers. Safe for concurrent use.
type forwarder struct {
	cache  *cache
	health *health

	mu      sync.Mutex
	flights map[flightKey]*flight
	hosts   map[string]*hostResolvers // by path
	now     func() time.Time
}

// flightKey tells questions that are the same to the letter.
type flightKey struct {
	scope uint32
	tcp   bool
	text  string
}

// flight is a question under way that others wait for too.
type flight struct {
	done  chan struct{}
	reply []byte // nil when it was given up
}

func newForwarder(now func() time.Time) *forwarder {
	return &forwarder{cache: newCache(now), health: &health{now: now, dead: map[healthKey]time.Time{}},
		flights: map[flightKey]*flight{}, hosts: map[string]*hostResolvers{}, now: now}
}

// host returns the resolvers of the host by its resolv.conf.
func (f *forwarder) host(path string) []netip.AddrPort {
	f.mu.Lock()
	h := f.hosts[path]
	if h == nil {
		h = &hostResolvers{path: path, now: f.now, changed: func() { f.cache.forget(0); f.health.forget(0) }}
		f.hosts[path] = h
	}
	f.mu.Unlock()
	return h.list()
}

// ask sends a question (as its client wrote it) to the resolvers and returns the reply, with the client's ID, or nil when none
// came. The reply is the caller's. Questions that are the same share one.
func (f *forwarder) ask(ctx context.Context, who asker, raw []byte, tcp bool) []byte {
	key := flightKey{who.scope, tcp, string(raw[2:])}
	for {
		f.mu.Lock()
		fl := f.flights[key]
		if fl == nil {
			fl = &flight{done: make(chan struct{})}
			f.flights[key] = fl
			f.mu.Unlock()
			fl.reply = f.resolve(ctx, who, raw, tcp)
			f.mu.Lock()
			delete(f.flights, key)
			f.mu.Unlock()
			close(fl.done)
			if fl.reply == nil {
				return nil
			}
			return answerTo(raw, fl.reply)
		}
		f.mu.Unlock()
		select {
		case <-fl.done:
		case <-ctx.Done():
			return nil
		}
		if fl.reply != nil {
			return answerTo(raw, fl.reply)
		}
	}
}

// answerTo copies a reply for another client.
func answerTo(raw, reply []byte) []byte {
	out := append([]byte(nil), reply...)
	copy(out[:2], raw[:2])
	return out
}

// resolve tries the resolvers one after another. It returns nil only when ctx has ended.
func (f *forwarder) resolve(ctx context.Context, who asker, raw []byte, tcp bool) []byte {
	q, err := readQuery(raw)
	if err != nil {
		return failure(raw, rcodeFormat)
	}
	msg := append([]byte(nil), raw...)
	if q.edns {
		// More than a pooled buffer holds cannot be taken.
		binary.BigEndian.PutUint16(msg[q.opt+3:], uint16(q.size))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last []byte
	var unable []netip.AddrPort // answered, and cannot help
	for _, t := range f.tries(who) {
		if slices.Contains(unable, t.server) {
			continue
		}
		binary.BigEndian.PutUint16(msg, uint16(rand.Uint32()))
		reply, err := exchange(ctx, who.ns, t, msg, q.end, tcp)
		switch {
		case err == nil:
			f.health.answered(who.scope, t.server)
		case errors.Is(ctx.Err(), context.Canceled):
			return nil
		case ctx.Err() != nil && last == nil:
			return failure(raw, rcodeServFail)
		case ctx.Err() != nil:
			return last
		default:
			if !tcp { // many serve UDP only
				f.health.failed(who.scope, t.server)
			}
			continue
		}
		if rcode := rcodeOf(reply); rcode == rcodeOK || rcode == rcodeNXDomain {
			return reply
		}
		last, unable = reply, append(unable, t.server) // another one may know better
	}
	switch {
	case last != nil:
		return last
	case tcp:
		return f.resolve(ctx, who, raw, false)
	}
	return failure(raw, rcodeServFail)
}

// try is one resolver and how long it has.
type try struct {
	server netip.AddrPort
	wait   time.Duration
}

// tries plans whom to ask: each once, and while that is fewer than three tries, again, for datagrams get lost.
func (f *forwarder) tries(who asker) []try {
	order, alive := f.health.order(who.scope, who.servers)
	if len(order) == 0 {
		return nil
	}
	wait, n := oneTry, max(len(order), 3)
	if alive == 0 {
		wait, n = shortTry, len(order)
	}
	wait = min(wait, patience/time.Duration(n))
	out := make([]try, n)
	for i := range out {
		out[i] = try{order[i%len(order)], wait}
	}
	return out
}

// failure is a reply that says only that it went wrong.
func failure(raw []byte, rcode uint16) []byte {
	q, err := readQuery(raw)
	if errors.Is(err, errNoQuery) {
		return nil
	}
	var a answer
	a.begin(&q, minUDP)
	return a.finish(&q, 0, rcode)
}

// exchange asks one resolver. end is where the question section of msg ends.
func exchange(ctx context.Context, ns string, t try, msg []byte, end int, tcp bool) ([]byte, error) {
	kind := unix.SOCK_DGRAM
	if tcp {
		kind = unix.SOCK_STREAM
	}
	c, err := connect(ns, kind, t.server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(t.wait)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if tcp {
		return exchangeTCP(c, msg, end)
	}
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, maxUDP)
	for {
		n, err := c.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) { // an empty datagram looks like the end of a file
			return nil, err
		}
		// Whatever else arrives was sent by somebody who guesses.
		if replies(buf[:n], msg, end) || refused(buf[:n], msg) {
			return withQuestion(buf[:n], msg, end), nil
		}
	}
}

func exchangeTCP(c *os.File, msg []byte, end int) ([]byte, error) {
	frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	if _, err := c.Write(append(frame, msg...)); err != nil {
		return nil, err
	}
	var head [2]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(head[:]))
	if _, err := io.ReadFull(c, buf); err != nil {
		return nil, err
	}
	if !replies(buf, msg, end) && !refused(buf, msg) {
		return nil, errors.New("the resolver's reply is to another question")
	}
	return withQuestion(buf, msg, end), nil
}

// withQuestion makes a refusal that does not repeat the question one that does.
func withQuestion(reply, msg []byte, end int) []byte {
	if binary.BigEndian.Uint16(reply[4:]) == 1 {
		return reply
	}
	out := append([]byte(nil), msg[:end]...)
	copy(out[2:4], reply[2:4])
	clear(out[6:headerLen])
	return out
}
