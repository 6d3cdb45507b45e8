package ports

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxConns bounds the connections carried for one port at a time;
	// further ones are reset.
	maxConns    = 256
	dialTimeout = 10 * time.Second
)

// A tcpProxy carries connections from [::1] to 127.0.0.1.
type tcpProxy struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup // the accept loop
	conns    *sync.WaitGroup
	slots    chan struct{}
	ctx      context.Context
}

// run accepts until the listener is closed.
func (t *tcpProxy) run() {
	defer t.wg.Done()
	for {
		c, err := t.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors or memory: let others give some back.
			select {
			case <-t.ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		t.take(c.(*net.TCPConn))
	}
}

// take carries one connection, or resets it: from elsewhere it only arrives
// when no task is there to take it.
func (t *tcpProxy) take(c *net.TCPConn) {
	if !fromLoopback(c.RemoteAddr()) {
		reset(c)
		return
	}
	select {
	case t.slots <- struct{}{}:
	default:
		reset(c)
		return
	}
	t.conns.Add(1)
	go func() {
		defer t.conns.Done()
		defer func() { <-t.slots }()
		carry(t.ctx, c, t.target)
	}()
}

// stop ends the accept loop; connections go on.
func (t *tcpProxy) stop() {
	t.listener.Close()
	t.wg.Wait()
}

func fromLoopback(a net.Addr) bool {
	ap, err := netip.ParseAddrPort(a.String())
	return err == nil && ap.Addr().IsLoopback()
}

func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// carry joins client to target until both directions have ended or ctx does.
func carry(ctx context.Context, client *net.TCPConn, target string) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp4", target)
	if err != nil {
		reset(client)
		return
	}
	server := conn.(*net.TCPConn)
	stop := context.AfterFunc(ctx, func() { reset(client); reset(server) })
	defer stop()
	back := make(chan struct{})
	go func() {
		defer close(back)
		half(client, server)
	}()
	half(server, client)
	<-back
	client.Close()
	server.Close()
}

// half copies one direction and passes its end on. A broken connection is
// passed on as broken.
func half(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil {
		reset(dst)
		reset(src)
		return
	}
	dst.CloseWrite()
}
