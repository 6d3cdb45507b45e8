package dns

import (
	"bytes"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxServers bounds the resolvers that one question may reach.
	maxServers = 6
	// recheck is how often the host's resolv.conf is looked at, when there are questions.
	recheck = time.Second
	// deadFor is how long a resolver that did not answer is asked last.
	deadFor = 10 * time.Second
	// maxResolv bounds what is read of resolv.conf, in bytes.
	maxResolv = 64 << 10
)

// hostResolvers are the resolvers of the host's resolv.conf, read again when it changes. They are asked from the host's
// namespace, so that one on a loopback address (systemd-resolved, dnsmasq) does what it does for the host. Safe for concurrent
// use.
type hostResolvers struct {
	path    string
	now     func() time.Time
	changed func()

	mu      sync.Mutex
	looked  time.Time
	mark    fileMark
	servers []netip.AddrPort
}

// fileMark changes when a file does.
type fileMark struct {
	mod  time.Time
	size int64
	ok   bool
}

// list returns the resolvers, in order; the result must not be changed.
func (h *hostResolvers) list() []netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	if !h.looked.IsZero() && now.Sub(h.looked) < recheck {
		return h.servers
	}
	first := h.looked.IsZero()
	h.looked = now
	var mark fileMark
	if st, err := os.Stat(h.path); err == nil {
		mark = fileMark{st.ModTime(), st.Size(), true}
	}
	if !first && mark == h.mark {
		return h.servers
	}
	h.mark = mark
	var servers []netip.AddrPort
	if f, err := os.Open(h.path); err == nil {
		b := make([]byte, maxResolv)
		n, _ := f.Read(b)
		f.Close()
		servers = readServers(b[:n])
	}
	if !slices.Equal(servers, h.servers) {
		h.servers = servers
		if !first {
			h.changed()
		}
	}
	return h.servers
}

// readServers finds the resolvers in a resolv.conf. A host that names none has one of its own, as its libc takes it; that of
// another task's is never among them, for a daemon may run in a container.
func readServers(b []byte) []netip.AddrPort {
	var out []netip.AddrPort
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 2 || f[0] != "nameserver" || len(out) == maxServers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a.Unmap(), 53))
		}
	}
	if len(out) == 0 {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53))
	}
	return out
}

// health remembers which resolvers did not answer. Safe for concurrent use.
type health struct {
	now func() time.Time

	mu   sync.Mutex
	dead map[healthKey]time.Time // until when
}

type healthKey struct {
	scope uint32
	addr  netip.AddrPort
}

// order returns the resolvers with those that did not answer lately behind the others, and how many are not dead. The first to
// ask when a dead one's time is up tries it; others still do not.
func (h *health) order(scope uint32, servers []netip.AddrPort) (out []netip.AddrPort, alive int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	var late []netip.AddrPort
	for _, s := range servers {
		key := healthKey{scope, s}
		until, dead := h.dead[key]
		switch {
		case dead && now.Before(until):
			late = append(late, s)
			continue
		case dead:
			h.dead[key] = now.Add(deadFor)
		}
		out = append(out, s)
	}
	return append(out, late...), len(out)
}

func (h *health) failed(scope uint32, s netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dead[healthKey{scope, s}] = h.now().Add(deadFor)
}

func (h *health) answered(scope uint32, s netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.dead, healthKey{scope, s})
}

// forget drops what is known of a scope's resolvers.
func (h *health) forget(scope uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.dead {
		if k.scope == scope {
			delete(h.dead, k)
		}
	}
}
