package ports

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// MaxPorts bounds the ports held at a time.
	MaxPorts = 4096
	// patience is how long one Hold waits, in all, for ports in use by
	// nobody that can be found.
	patience = 2 * time.Second
)

// A Holder holds ports. It is safe for concurrent use.
type Holder struct {
	ctx    context.Context // ends carried connections
	cancel context.CancelFunc
	conns  sync.WaitGroup

	mu     sync.Mutex
	held   map[Port]*hold
	paused bool
}

// A hold is one port that is held.
type hold struct {
	socks []socket
	stops []func() // end what serves socks
}

// NewHolder makes a Holder that holds nothing.
func NewHolder() *Holder {
	ctx, cancel := context.WithCancel(context.Background())
	return &Holder{ctx: ctx, cancel: cancel, held: make(map[Port]*hold)}
}

// Hold holds ports and returns one result for each: nil, or why not, an
// *InUseError when another program has it. What is held already stays so. It
// waits at most two seconds in all.
func (h *Holder) Hold(ctx context.Context, ports []Port) []error {
	h.mu.Lock()
	defer h.mu.Unlock()
	deadline := time.Now().Add(patience)
	errs := make([]error, len(ports))
	for i, p := range ports {
		switch {
		case h.held[p] != nil:
		case h.paused:
			errs[i] = errors.New("holding ports: this keeper is being replaced")
		case len(h.held) >= MaxPorts:
			errs[i] = fmt.Errorf("holding port %s: %d ports are held, which is the limit", p, MaxPorts)
		default:
			var socks []socket
			if socks, errs[i] = grab(ctx, p, time.Until(deadline)); errs[i] == nil {
				errs[i] = h.install(p, socks)
			}
		}
	}
	return errs
}

// Probe tells which ports could be held now, without holding them.
func (h *Holder) Probe(ctx context.Context, ports []Port) []error {
	h.mu.Lock()
	defer h.mu.Unlock()
	errs := make([]error, len(ports))
	for i, p := range ports {
		if h.held[p] != nil {
			continue
		}
		var socks []socket
		socks, errs[i] = grab(ctx, p, 0)
		closeAll(socks)
	}
	return errs
}

// Release lets go of ports. What is not held is no error. Connections that
// are being carried go on.
func (h *Holder) Release(ports []Port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range ports {
		if held := h.held[p]; held != nil {
			held.stop()
			closeAll(held.socks)
			delete(h.held, p)
		}
	}
}

// List returns the ports held, sorted.
func (h *Holder) List() []Port {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.SortedFunc(maps.Keys(h.held), func(a, b Port) int { return strings.Compare(a.String(), b.String()) })
}

// install starts serving socks for p. It closes them when it fails.
func (h *Holder) install(p Port, socks []socket) error {
	held := &hold{socks: socks}
	if err := h.serve(held, p); err != nil {
		held.stop()
		closeAll(socks)
		return err
	}
	h.held[p] = held
	return nil
}

func (h *Holder) serve(held *hold, p Port) error {
	target := fmt.Sprintf("127.0.0.1:%d", p.Port)
	for _, s := range held.socks {
		switch s.kind {
		case kindTCP6:
			l, err := net.FileListener(s.file) // a duplicate: stopping it leaves the port held
			if err != nil {
				return fmt.Errorf("serving port %s: %w", p, err)
			}
			t := &tcpProxy{listener: l, target: target, ctx: h.ctx, conns: &h.conns, slots: make(chan struct{}, maxConns)}
			t.wg.Add(1)
			go t.run()
			held.stops = append(held.stops, t.stop)
		case kindUDP6:
			c, err := net.FilePacketConn(s.file)
			if err != nil {
				return fmt.Errorf("serving port %s: %w", p, err)
			}
			u := newUDPProxy(c.(*net.UDPConn), int(p.Port))
			u.wg.Add(1)
			go u.run()
			held.stops = append(held.stops, u.stop)
		}
	}
	return nil
}

func (held *hold) stop() {
	for _, stop := range held.stops {
		stop()
	}
	held.stops = nil
}

// Pause stops accepting while every port stays held, so that the sockets can
// be passed to another process. Connections that are being carried go on.
func (h *Holder) Pause() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.paused = true
	for _, held := range h.held {
		held.stop()
	}
}

// Resume undoes Pause.
func (h *Holder) Resume() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.paused = false
	var errs []error
	for p, held := range h.held {
		held.stop()
		errs = append(errs, h.serve(held, p))
	}
	return errors.Join(errs...)
}

// Sockets returns the sockets that hold p, by kind, for passing them on.
// They stay the Holder's.
func (h *Holder) Sockets(p Port) (kinds []string, files []*os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if held := h.held[p]; held != nil {
		for _, s := range held.socks {
			kinds = append(kinds, s.kind)
			files = append(files, s.file)
		}
	}
	return kinds, files
}

// Adopt holds p with sockets that another Holder passed on; they become the
// Holder's even when it fails.
func (h *Holder) Adopt(p Port, kinds []string, files []*os.File) error {
	socks := make([]socket, len(files))
	for i, f := range files {
		socks[i].file = f
		if i < len(kinds) {
			socks[i].kind = kinds[i]
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held[p] != nil {
		closeAll(socks)
		return nil
	}
	if h.paused { // Resume will serve
		h.held[p] = &hold{socks: socks}
		return nil
	}
	return h.install(p, socks)
}

// Close lets go of every port and waits until ctx ends for the connections
// that are being carried; then it resets them.
func (h *Holder) Close(ctx context.Context) {
	h.Release(h.List())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.conns.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	h.cancel()
	<-done
}
