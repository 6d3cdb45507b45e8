package daemon

import (
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
)

// Bounds of the open connections of one address: each is a descriptor, which containers need, too. Of metrics few ask.
const (
	maxAPIConns     = 4096
	maxMetricsConns = 64
)

// connLimit hangs up on clients beyond max. Connections that left HTTP do not count: they belong to processes, which have a bound
// of their own.
type connLimit struct {
	max  int64
	open atomic.Int64
}

// changed is an http.Server's ConnState.
func (l *connLimit) changed(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if l.open.Add(1) > l.max {
			l.refuse(c)
		}
	case http.StateClosed, http.StateHijacked:
		l.open.Add(-1)
	}
}

// refuse says why where that cannot take time: what is written first to a socket on this machine does not block.
func (l *connLimit) refuse(c net.Conn) {
	if _, local := c.(*net.UnixConn); local {
		body := fmt.Sprintf(`{"message":"the daemon serves %d connections, which is its limit: end some of them"}`+"\n", l.max)
		// Whoever has gone does not hear of it.
		_, _ = fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	c.Close()
}
