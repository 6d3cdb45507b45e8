package dockerapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"golang.org/x/sys/unix"
)

// hangupCheck is how often a client's connection is looked at: the end of what it sends is no sign that it has gone.
const hangupCheck = 250 * time.Millisecond

// farewell is how long a client may take to close a connection after the end.
const farewell = time.Second

// clientConn is a connection that has left HTTP: bytes in, bytes out. One goroutine may read; any may write.
type clientConn struct {
	net.Conn
	ahead io.Reader     // what the server had read already
	lost  chan struct{} // closed when nobody is at the other end
	gone  sync.Once
	stop  chan struct{}
	ended sync.Once
	wg    sync.WaitGroup

	mu sync.Mutex // for writing
}

// hijack takes the connection over and sends the head of the answer: 101 to clients that ask for an upgrade, and
// the 200 that the oldest ones know.
func hijack(r *request, contentType string) (*clientConn, error) {
	conn, buffered, err := http.NewResponseController(r.w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take the connection over: %w", err)
	}
	c := &clientConn{Conn: conn, lost: make(chan struct{}), stop: make(chan struct{})}
	read := make([]byte, buffered.Reader.Buffered())
	_, err = io.ReadFull(buffered.Reader, read)
	c.ahead = bytes.NewReader(read)
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + rawStream + "\r\n"
	if strings.EqualFold(r.Header.Get("Upgrade"), "tcp") {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
	}
	if err == nil {
		_, err = io.WriteString(conn, head+"Api-Version: "+MaxAPIVersion+"\r\n\r\n")
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c.wg.Go(c.watch)
	return c, nil
}

// The content types of streams.
const (
	rawStream         = "application/vnd.docker.raw-stream"
	multiplexedStream = "application/vnd.docker.multiplexed-stream"
)

// streamType is the type of a stream for the client's version.
func streamType(r *request, tty bool) string {
	if tty || r.version.before(42) {
		return rawStream
	}
	return multiplexedStream
}

func (c *clientConn) Read(b []byte) (int, error) {
	if n, err := c.ahead.Read(b); n > 0 || !errors.Is(err, io.EOF) {
		return n, err
	}
	return c.Conn.Read(b)
}

func (c *clientConn) hangUp() { c.gone.Do(func() { close(c.lost) }) }

// watch waits until the other end is closed altogether, which reading does not tell: it ends already when the client has
// nothing more to send.
func (c *clientConn) watch() {
	tick := time.NewTicker(hangupCheck)
	defer tick.Stop()
	var gone <-chan struct{}
	if g, ok := c.Conn.(interface{ Gone() <-chan struct{} }); ok {
		gone = g.Gone()
	}
	for {
		select {
		case <-c.stop:
			return
		case <-gone:
			c.hangUp()
			return
		case <-tick.C:
			if hungUp(c.Conn) {
				c.hangUp()
				return
			}
		}
	}
}

// hungUp asks the kernel whether both directions of a connection are closed.
func hungUp(conn net.Conn) bool {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	sys, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return true // it is closed
	}
	var hup bool
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		hup = err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return err != nil || hup
}

// Close ends the connection and the watching of it.
func (c *clientConn) Close() (err error) {
	c.ended.Do(func() {
		close(c.stop)
		err = c.Conn.Close()
	})
	c.wg.Wait()
	return err
}

// finish says that no more comes, gives the client a moment to close its end, so that it does not read of a broken connection,
// and closes it.
func (c *clientConn) finish() {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(farewell)) == nil {
		_, _ = io.Copy(io.Discard, c.Conn)
	}
	_ = c.Close() // whoever has gone does not hear of it
}

// cut closes the connection when its end does not come by itself soon: a client that does not read would hold up whoever writes.
func (c *clientConn) cut(end <-chan struct{}) {
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case <-end:
	case <-timer.C:
		c.hangUp()
		_ = c.Conn.Close()
	}
}

// out is a stream of the connection, in frames unless it is 0. Its Write never fails: a process must not be held up by a
// client that has gone.
func (c *clientConn) out(stream byte) io.Writer { return &connStream{conn: c, stream: stream} }

type connStream struct {
	conn   *clientConn
	stream byte
	buf    []byte
}

func (s *connStream) Write(b []byte) (int, error) {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	data := b
	if s.stream != 0 {
		s.buf = appendFrame(s.buf[:0], s.stream, b)
		data = s.buf
	}
	if _, err := s.conn.Conn.Write(data); err != nil {
		s.conn.hangUp()
	}
	return len(b), nil
}

// errDetached ends the input of a client that has typed its detach keys.
var errDetached = errors.New("the client detached")

// defaultDetachKeys are ctrl-p, ctrl-q.
var defaultDetachKeys = [...]byte{16, 17}

// parseDetachKeys reads "ctrl-p,ctrl-q" or "a,b"; empty means Docker's own.
func parseDetachKeys(text string) ([]byte, error) {
	if text == "" {
		return defaultDetachKeys[:], nil
	}
	var out []byte
	for key := range strings.SplitSeq(text, ",") {
		switch name, ctrl := strings.CutPrefix(key, "ctrl-"); {
		case len(key) == 1:
			out = append(out, key[0])
		case ctrl && len(name) == 1 && (name[0] >= 'a' && name[0] <= 'z' || name[0] >= '@' && name[0] <= '_'):
			out = append(out, name[0]&0x1f)
		default:
			return nil, model.Invalidf("invalid detach keys (%s) provided: unknown character: '%s'", text, key)
		}
	}
	if len(out) > 16 {
		return nil, model.Invalidf("invalid detach keys (%s) provided: more than 16", text)
	}
	return out, nil
}

// detachReader passes a terminal's input on until the detach keys come, one after the other.
type detachReader struct {
	from io.Reader
	keys []byte
	at   int    // keys seen
	held []byte // keys seen that proved to be input
	err  error
}

func (d *detachReader) Read(b []byte) (int, error) {
	for len(d.held) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		buf := make([]byte, min(len(b), 4<<10))
		n, err := d.from.Read(buf)
		d.err = err
		for _, c := range buf[:n] {
			if c != d.keys[d.at] {
				d.held = append(append(d.held, d.keys[:d.at]...), c)
				d.at = 0
				if c == d.keys[0] {
					d.held, d.at = d.held[:len(d.held)-1], 1
				}
				continue
			}
			if d.at++; d.at == len(d.keys) {
				d.err, d.at = errDetached, 0
				break
			}
		}
		if err != nil && d.err != errDetached { // it is this very one
			d.held = append(d.held, d.keys[:d.at]...)
			d.at = 0
		}
	}
	n := copy(b, d.held)
	d.held = d.held[n:]
	return n, nil
}
