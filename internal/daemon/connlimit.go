package daemon

import (
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
)

// maxAPIConns bounds the open connections of one API address: each is a descriptor, which containers need, too.
const maxAPIConns = 4096

// connLimit hangs up on clients beyond the bound. Connections that left HTTP do not count: they belong to processes, which have a
// bound of their own.
type connLimit struct{ open atomic.Int64 }

// changed is an http.Server's ConnState.
func (l *connLimit) changed(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if l.open.Add(1) > maxAPIConns {
			refuse(c)
		}
	case http.StateClosed, http.StateHijacked:
		l.open.Add(-1)
	}
}

// refuse says why where that cannot take time: what is written first to a socket on this machine does not block.
func refuse(c net.Conn) {
	if _, local := c.(*net.UnixConn); local {
		body := fmt.Sprintf(`{"message":"the daemon serves %d connections, which is its limit: end some of them"}`+"\n", maxAPIConns)
		// Whoever has gone does not hear of it.
		_, _ = fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	c.Close()
}
