package daemon

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/model"
	skruntime "github.com/skep-swarm/skep/internal/runtime"
)

// Exec starts a further process in a container of this node.
func (b *backend) Exec(ctx context.Context, id string, spec skruntime.ExecSpec) (skruntime.Process, error) {
	c, err := b.runtime.Open(id)
	if err != nil {
		return nil, err
	}
	p, err := c.Exec(ctx, spec)
	if errors.Is(err, skruntime.ErrNotFound) {
		err = model.NotFoundf("No such container: %s", id)
	}
	return p, err
}

// Control is a container of this node.
func (b *backend) Control(id string) (dockerapi.Control, error) { return b.runtime.Open(id) }

// Withdraw takes a container of this node out of what clients are led to.
func (b *backend) Withdraw(ctx context.Context, id string) (back func()) {
	a := b.active()
	if a == nil {
		return func() {}
	}
	return a.agent.Withdraw(ctx, id)
}

const (
	psLimit  = 10 * time.Second
	psOutput = 8 << 20 // bytes: a node with many processes lists them all
)

// PS runs this node's ps.
func (b *backend) PS(ctx context.Context, args []string) (string, error) {
	path, err := exec.LookPath("ps")
	if err != nil {
		return "", model.Errorf(model.Unimplemented, "this node has no ps, which lists processes: install it (apt-get install procps)")
	}
	ctx, cancel := context.WithTimeout(ctx, psLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, failed := &bounded{limit: psOutput}, &bounded{limit: 4 << 10}
	cmd.Stdout, cmd.Stderr = out, failed
	if err := cmd.Run(); err != nil {
		// The first line says why; what follows is a manual.
		line, _, _ := strings.Cut(strings.TrimSpace(failed.String()), "\n")
		return "", model.Invalidf("ps: %s", cmp.Or(strings.TrimPrefix(line, "error: "), err.Error()))
	}
	return out.String(), nil
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	bytes.Buffer
	limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := b.limit - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// DialNode connects to the API that a node serves for its containers.
func (b *backend) DialNode(ctx context.Context, node model.NodeID) (net.Conn, error) {
	a, err := b.manager()
	if err != nil {
		return nil, err
	}
	return a.dispatch.DialNode(ctx, node)
}

// nodeAPI serves this node's containers to managers. The handler comes when the API is made; until then there is none.
type nodeAPI struct{ handler atomic.Pointer[http.Handler] }

func (n *nodeAPI) set(h http.Handler) { n.handler.Store(&h) }

// serve answers the requests of one connection until it or ctx ends.
func (n *nodeAPI) serve(ctx context.Context, conn net.Conn) {
	h := n.handler.Load()
	if h == nil {
		return
	}
	ended := make(chan struct{})
	l := &oneConn{conn: &notedConn{Conn: conn, closed: sync.OnceFunc(func() { close(ended) })}, ended: ended}
	srv := &http.Server{
		Handler: *h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = srv.Serve(l) // it ends with the connection
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn  net.Conn
	given atomic.Bool
	ended chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given.Swap(true) {
		return l.conn, nil
	}
	<-l.ended
	return nil, io.EOF
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// notedConn tells when it is closed.
type notedConn struct {
	net.Conn
	closed func()
}

func (c *notedConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}

// CloseWrite and Gone are the tunnel's.
func (c *notedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Gone is closed when the manager has gone; nil when that cannot be told.
func (c *notedConn) Gone() <-chan struct{} {
	if g, ok := c.Conn.(interface{ Gone() <-chan struct{} }); ok {
		return g.Gone()
	}
	return nil
}
