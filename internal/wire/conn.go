package wire

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/skep-swarm/skep/internal/wire/pb"
)

// connChunk is how many bytes of a connection one frame carries.
const connChunk = 32 << 10

// frames is either end of the Stream RPC.
type frames interface {
	Send(*pb.Frame) error
	Recv() (*pb.Frame, error)
	Context() context.Context
}

// Conn is a connection over a stream between a manager and a node. One goroutine may read while others write. The flow
// control is the stream's: who does not read holds the other side up.
type Conn struct {
	stream frames
	hangUp func()

	in   chan []byte // unbuffered
	done chan struct{}
	end  error // of reading, valid when in is closed
	wg   sync.WaitGroup
	once sync.Once

	reading  sync.Mutex
	rest     []byte
	deadline deadline

	writing sync.Mutex
	half    bool // no more is sent
}

// NewConn makes a connection of a stream whose first frame has been exchanged. hangUp ends the stream, so that a Recv that is
// under way returns, soon; Close calls it once.
func NewConn(stream frames, hangUp func()) *Conn {
	c := &Conn{stream: stream, hangUp: hangUp, in: make(chan []byte), done: make(chan struct{})}
	c.deadline.cut = make(chan struct{})
	c.wg.Go(c.receive)
	return c
}

func (c *Conn) receive() {
	for {
		f, err := c.stream.Recv()
		if err != nil {
			c.end = FromStatus(err)
			if err == io.EOF { // gRPC returns it as it is
				c.end = io.ErrUnexpectedEOF
			}
			close(c.in)
			return
		}
		if f.GetClose() != nil {
			c.end = io.EOF
			close(c.in)
			for err == nil {
				_, err = c.stream.Recv()
			}
			return
		}
		if data := f.GetData(); len(data) > 0 {
			select {
			case c.in <- data:
			case <-c.done: // the end of the stream is waited for all the same
			}
		}
	}
}

// Read implements net.Conn. It returns io.EOF when the other side has nothing more to send.
func (c *Conn) Read(b []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(c.rest) == 0 {
		cut := c.deadline.wait()
		select {
		case <-cut:
			return 0, os.ErrDeadlineExceeded
		default:
		}
		select {
		case data, ok := <-c.in:
			if !ok {
				return 0, c.end
			}
			c.rest = data
		case <-cut:
			return 0, os.ErrDeadlineExceeded
		case <-c.done:
			return 0, net.ErrClosed
		}
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.half {
		return 0, net.ErrClosed
	}
	n := 0
	for n < len(b) {
		chunk := b[n:min(len(b), n+connChunk)]
		// The message may be read after Send has returned.
		if err := c.stream.Send(&pb.Frame{Kind: &pb.Frame_Data{Data: append([]byte(nil), chunk...)}}); err != nil {
			return n, FromStatus(err)
		}
		n += len(chunk)
	}
	return n, nil
}

// CloseWrite tells the other side that no more comes.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.half {
		return nil
	}
	c.half = true
	return FromStatus(c.stream.Send(&pb.Frame{Kind: &pb.Frame_Close{Close: &pb.StreamClose{}}}))
}

// Close ends the connection in both directions and waits for the end of its stream. What was written arrives.
func (c *Conn) Close() error {
	c.once.Do(func() {
		close(c.done)
		if c.writing.TryLock() { // a Write that hangs has lost what it wanted to say
			if !c.half {
				c.half = true
				_ = c.stream.Send(&pb.Frame{Kind: &pb.Frame_Close{Close: &pb.StreamClose{}}}) // the stream ends next
			}
			c.writing.Unlock()
		}
		c.hangUp()
	})
	c.wg.Wait()
	return nil
}

// Gone is closed when the other side is not there any more.
func (c *Conn) Gone() <-chan struct{} { return c.stream.Context().Done() }

type streamAddr struct{}

func (streamAddr) Network() string { return "stream" }
func (streamAddr) String() string  { return "stream" }

// LocalAddr and RemoteAddr implement net.Conn.
func (c *Conn) LocalAddr() net.Addr { return streamAddr{} }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return streamAddr{} }

// SetDeadline implements net.Conn for reading.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetWriteDeadline does nothing: the end of the stream ends a Write.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.deadline.set(t)
	return nil
}

// deadline is a moment that may be moved while others wait for it.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	cut   chan struct{} // closed when it has passed
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.cut // the timer's function has run or is about to
	}
	d.timer = nil
	passed := false
	select {
	case <-d.cut:
		passed = true
	default:
	}
	left := time.Until(t)
	switch {
	case t.IsZero(), left > 0:
		if passed {
			d.cut = make(chan struct{})
		}
		if !t.IsZero() {
			cut := d.cut
			d.timer = time.AfterFunc(left, func() { close(cut) })
		}
	case !passed:
		close(d.cut)
	}
}
