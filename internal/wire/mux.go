package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Names of the protocols that share the port, as ALPN has them.
const (
	ProtoGRPC = "h2"
	ProtoRaft = "raft/1"
)

const (
	defaultHandshake      = 10 * time.Second
	defaultMaxConns       = 20000
	defaultMaxHandshakes  = 256
	defaultAcceptedUnread = 64
	defaultMaxStrangers   = 512
	defaultStrangerTime   = 2 * time.Minute
	// maxPerSource bounds the handshakes under way from one address, so that one that never speaks holds up nobody else.
	maxPerSource = 64
)

// MuxConfig bounds a Mux; zero fields take the defaults in brackets.
type MuxConfig struct {
	// HandshakeTimeout is how long a client may take until TLS is established [10 s].
	HandshakeTimeout time.Duration
	// MaxConns bounds the open connections of all protocols [20,000]; further clients are hung up on.
	MaxConns int
	// MaxHandshakes bounds the handshakes under way [256]; further clients wait to be accepted.
	MaxHandshakes int
	// MaxStrangers bounds the open connections of clients without a certificate [512]. Such a client wants to join,
	// which takes a moment: it is hung up on after StrangerTime [2 min].
	MaxStrangers int
	StrangerTime time.Duration
}

// Mux shares one mutual-TLS port between protocols: it finishes each client's handshake and hands the connection to the
// listener of the protocol that was negotiated. Safe for concurrent use.
type Mux struct {
	ln    net.Listener
	tls   *tls.Config
	cfg   MuxConfig
	conns chan struct{} // one token for each open connection
	hands chan struct{} // one token for each handshake
	odd   chan struct{} // one token for each client without a certificate

	mu     sync.Mutex
	protos map[door]*protoListener
	early  map[net.Conn]struct{} // connections in their handshake
	from   map[netip.Addr]int    // and how many of them each address has
	closed bool
}

// NewMux makes a Mux over a TCP listener, which it owns from now on. cfg must offer the protocols of the listeners
// (pki.ServerTLS does); whether a client needs a certificate, cfg decides.
func NewMux(ln net.Listener, cfg *tls.Config, limits MuxConfig) *Mux {
	if limits.HandshakeTimeout <= 0 {
		limits.HandshakeTimeout = defaultHandshake
	}
	if limits.MaxConns <= 0 {
		limits.MaxConns = defaultMaxConns
	}
	if limits.MaxHandshakes <= 0 {
		limits.MaxHandshakes = defaultMaxHandshakes
	}
	if limits.MaxStrangers <= 0 {
		limits.MaxStrangers = defaultMaxStrangers
	}
	if limits.StrangerTime <= 0 {
		limits.StrangerTime = defaultStrangerTime
	}
	return &Mux{
		ln: ln, tls: cfg, cfg: limits,
		conns:  make(chan struct{}, limits.MaxConns),
		hands:  make(chan struct{}, limits.MaxHandshakes),
		odd:    make(chan struct{}, limits.MaxStrangers),
		protos: map[door]*protoListener{},
		early:  map[net.Conn]struct{}{},
		from:   map[netip.Addr]int{},
	}
}

// door tells the listeners apart.
type door struct {
	proto    string
	stranger bool // for clients without a certificate
}

// Listener returns the listener of a protocol, for clients with a certificate; every call with the same name returns the
// same one. Its connections are *tls.Conn inside with the handshake done (see State). Closing it makes Mux hang up on clients
// of that protocol.
func (m *Mux) Listener(proto string) net.Listener { return m.listener(door{proto: proto}) }

// Strangers is Listener for clients without a certificate, of whom nobody knows yet what they want. Where it was not asked
// for, they are hung up on.
func (m *Mux) Strangers(proto string) net.Listener { return m.listener(door{proto, true}) }

func (m *Mux) listener(d door) net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.protos[d]
	if l == nil {
		l = &protoListener{addr: m.ln.Addr(), conns: make(chan net.Conn, defaultAcceptedUnread), done: make(chan struct{})}
		m.protos[d] = l
		if m.closed {
			l.Close()
		}
	}
	return l
}

// Run accepts until ctx is cancelled (then it returns nil) or the port fails. When it returns, the port and all its
// listeners are closed and no handshake is under way; connections that were handed over stay open.
func (m *Mux) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer m.shutdown()
	stop := context.AfterFunc(ctx, m.shutdown)
	defer stop()
	backoff := 5 * time.Millisecond
	for {
		select {
		case m.hands <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := m.ln.Accept()
		if err != nil {
			<-m.hands
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on %s: %w", m.ln.Addr(), err)
			}
			// Out of descriptors or an aborted connection: both pass.
			select {
			case <-time.After(backoff):
				backoff = min(2*backoff, time.Second)
			case <-ctx.Done():
			}
			continue
		}
		backoff = 5 * time.Millisecond
		if !m.admit(c) {
			c.Close()
			<-m.hands
			continue
		}
		wg.Go(func() {
			defer func() { <-m.hands }()
			m.handshake(ctx, c)
		})
	}
}

// admit books a connection, or reports that there are too many.
func (m *Mux) admit(c net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	source := sourceOf(c)
	if m.closed || m.from[source] >= maxPerSource {
		return false
	}
	select {
	case m.conns <- struct{}{}:
		m.early[c] = struct{}{}
		m.from[source]++
		return true
	default:
		return false
	}
}

// sourceOf is the address of a client; all of an IPv6 network's hosts (a /64) count as one.
func sourceOf(c net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	a := ap.Addr().Unmap()
	if a.Is6() {
		a = netip.PrefixFrom(a.WithZone(""), 64).Masked().Addr()
	}
	return a
}

func (m *Mux) handshake(ctx context.Context, raw net.Conn) {
	release := sync.OnceFunc(func() { <-m.conns })
	conn := tls.Server(raw, m.tls)
	hctx, cancel := context.WithTimeout(ctx, m.cfg.HandshakeTimeout)
	defer cancel()
	err := conn.HandshakeContext(hctx)
	m.mu.Lock()
	delete(m.early, raw)
	source := sourceOf(raw)
	if m.from[source]--; m.from[source] <= 0 {
		delete(m.from, source)
	}
	st := conn.ConnectionState()
	stranger := len(st.PeerCertificates) == 0
	l := m.protos[door{st.NegotiatedProtocol, stranger}]
	m.mu.Unlock()
	if err != nil || l == nil {
		raw.Close()
		release()
		return
	}
	if stranger {
		select {
		case m.odd <- struct{}{}:
		default:
			raw.Close()
			release()
			return
		}
		end, known := time.AfterFunc(m.cfg.StrangerTime, func() { raw.Close() }), release
		release = sync.OnceFunc(func() {
			end.Stop()
			<-m.odd
			known()
		})
	}
	mc := &muxConn{Conn: conn, release: release}
	select {
	case l.conns <- mc:
	case <-l.done:
		mc.Close()
	case <-hctx.Done():
		mc.Close()
	}
}

func (m *Mux) shutdown() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.ln.Close()
	for _, l := range m.protos {
		l.Close()
	}
	for c := range m.early {
		c.Close()
	}
}

// protoListener hands out the connections of one protocol.
type protoListener struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *protoListener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close also hangs up on clients that nobody accepted.
func (l *protoListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		for {
			select {
			case c := <-l.conns:
				c.Close()
			default:
				return
			}
		}
	})
	return nil
}

func (l *protoListener) Addr() net.Addr { return l.addr }

// muxConn gives its place back when it is closed.
type muxConn struct {
	*tls.Conn
	release func()
}

func (c *muxConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// State is the TLS state of a connection that a Mux's listener handed out, or that was dialled with crypto/tls.
func State(c net.Conn) (tls.ConnectionState, bool) {
	s, ok := c.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return tls.ConnectionState{}, false
	}
	return s.ConnectionState(), true
}

// DialProto connects to a Mux for one of its protocols; cfg must offer just that one.
func DialProto(ctx context.Context, addr string, cfg *tls.Config) (net.Conn, error) {
	if len(cfg.NextProtos) != 1 {
		return nil, fmt.Errorf("dial %s: want one protocol, not %v", addr, slices.Clone(cfg.NextProtos))
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: defaultHandshake, KeepAlive: 15 * time.Second}, Config: cfg}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	if got := conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != cfg.NextProtos[0] {
		conn.Close()
		return nil, fmt.Errorf("dial %s: the manager does not speak %s", addr, cfg.NextProtos[0])
	}
	return conn, nil
}
