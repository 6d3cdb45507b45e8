package netapply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// native is the byte order of netlink headers on the platforms we build for.
var native = binary.NativeEndian

// maxBatch bounds the requests of one system call, so that their answers fit
// into the socket's buffer.
const maxBatch = 64

// A batch is a series of rtnetlink requests that go to the kernel in one
// system call. Adding a task takes two of them.
type batch struct {
	buf  []byte
	msgs []request
}

type request struct {
	start int
	what  string          // for the error
	allow []syscall.Errno // answers that mean it is already so
}

// begin starts a request; the attributes that follow belong to it.
func (b *batch) begin(typ, flags uint16, header []byte, what string, allow ...syscall.Errno) {
	b.finish()
	b.msgs = append(b.msgs, request{len(b.buf), what, allow})
	b.buf = native.AppendUint32(b.buf, 0)
	b.buf = native.AppendUint16(b.buf, typ)
	b.buf = native.AppendUint16(b.buf, flags|unix.NLM_F_REQUEST)
	b.buf = append(b.buf, 0, 0, 0, 0, 0, 0, 0, 0) // sequence and port, set when sent
	b.buf = append(b.buf, header...)
	b.pad()
}

func (b *batch) pad() {
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}

func (b *batch) finish() {
	if len(b.msgs) > 0 {
		s := b.msgs[len(b.msgs)-1].start
		native.PutUint32(b.buf[s:], uint32(len(b.buf)-s))
	}
}

func (b *batch) attr(typ uint16, data []byte) {
	b.buf = native.AppendUint16(b.buf, uint16(4+len(data)))
	b.buf = native.AppendUint16(b.buf, typ)
	b.buf = append(b.buf, data...)
	b.pad()
}

func (b *batch) u32(typ uint16, v int)       { b.attr(typ, native.AppendUint32(nil, uint32(v))) }
func (b *batch) u8(typ uint16, v uint8)      { b.attr(typ, []byte{v}) }
func (b *batch) str(typ uint16, s string)    { b.attr(typ, append([]byte(s), 0)) }
func (b *batch) ip(typ uint16, a netip.Addr) { b.attr(typ, a.AsSlice()) }

// nest opens a nested attribute; the returned function closes it.
func (b *batch) nest(typ uint16) func() {
	start := len(b.buf)
	b.buf = native.AppendUint16(b.buf, 0)
	b.buf = native.AppendUint16(b.buf, typ|unix.NLA_F_NESTED)
	return func() { native.PutUint16(b.buf[start:], uint16(len(b.buf)-start)) }
}

func (b *batch) len() int { return len(b.msgs) }

// An rtSocket is a route netlink socket in some namespace. Its methods may be
// called concurrently.
type rtSocket struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte // kept between requests
	one bool   // it is not: there are many sockets of this kind
}

// openRT opens a socket in the namespace of the calling thread.
func openRT() (*rtSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open route netlink socket: %w", err)
	}
	for _, o := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK} {
		// Older kernels lack one or the other; messages are then larger and
		// dumps unfiltered, which the readers bear.
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, o, 1)
	}
	tv := unix.Timeval{Sec: 20}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
	return &rtSocket{fd: fd}, nil
}

func (s *rtSocket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
		s.fd = -1
	}
}

func (s *rtSocket) slim() {
	if s.one {
		s.buf = nil
	}
}

// run sends all requests of a batch. Every one is tried; the errors are joined.
func (s *rtSocket) run(b *batch) error {
	b.finish()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return errors.New("route netlink socket is closed")
	}
	defer s.slim()
	var errs []error
	for i := 0; i < len(b.msgs); i += maxBatch {
		errs = append(errs, s.send(b, i, min(i+maxBatch, len(b.msgs))))
	}
	return errors.Join(errs...)
}

func (s *rtSocket) send(b *batch, from, to int) error {
	base := s.seq + 1
	for i := from; i < to; i++ {
		s.seq++
		m := b.buf[b.msgs[i].start:]
		native.PutUint16(m[6:], native.Uint16(m[6:])|unix.NLM_F_ACK)
		native.PutUint32(m[8:], s.seq)
	}
	end := len(b.buf)
	if to < len(b.msgs) {
		end = b.msgs[to].start
	}
	if err := s.write(b.buf[b.msgs[from].start:end]); err != nil {
		return err
	}
	var errs []error
	for left := to - from; left > 0; {
		err := s.read(func(h header, body []byte) bool {
			i := int(h.seq - base)
			if h.typ != unix.NLMSG_ERROR || h.seq < base || from+i >= to {
				return true
			}
			left--
			if err := ackError(h, body, b.msgs[from+i]); err != nil {
				errs = append(errs, err)
			}
			return true
		})
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

func ackError(h header, body []byte, r request) error {
	errno := syscall.Errno(-int32(native.Uint32(body)))
	if errno == 0 {
		return nil
	}
	for _, a := range r.allow {
		if a == errno {
			return nil
		}
	}
	detail := ""
	if h.flags&unix.NLM_F_ACK_TLVS != 0 && len(body) > 20 {
		tlvs := body[20:]
		if h.flags&unix.NLM_F_CAPPED == 0 {
			skip := max(int(native.Uint32(body[4:]))-16, 0)
			tlvs = tlvs[min((skip+3)&^3, len(tlvs)):]
		}
		attrs(tlvs, func(t uint16, v []byte) {
			if t == 1 && len(v) > 0 { // NLMSGERR_ATTR_MSG
				detail = " (" + string(v[:len(v)-1]) + ")"
			}
		})
	}
	return fmt.Errorf("%s: %w%s", r.what, errno, detail)
}

// dump runs one request that has many answers and calls each with the body of
// every one.
func (s *rtSocket) dump(typ uint16, b *batch, each func(body []byte)) error {
	b.finish()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return errors.New("route netlink socket is closed")
	}
	defer s.slim()
	s.seq++
	native.PutUint32(b.buf[8:], s.seq)
	if err := s.write(b.buf); err != nil {
		return err
	}
	single := native.Uint16(b.buf[6:])&unix.NLM_F_DUMP != unix.NLM_F_DUMP
	for done := false; !done; {
		var failed error
		err := s.read(func(h header, body []byte) bool {
			switch {
			case h.seq != s.seq:
			case h.typ == unix.NLMSG_ERROR:
				done, failed = true, ackError(h, body, b.msgs[0])
			case h.typ == unix.NLMSG_DONE:
				done = true
			case h.typ == typ:
				each(body)
				done = done || single
			}
			return true
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
	}
	return nil
}

func (s *rtSocket) write(p []byte) error {
	for {
		err := unix.Sendto(s.fd, p, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("send to route netlink: %w", err)
		}
		return nil
	}
}

type header struct {
	typ, flags uint16
	seq        uint32
	port       uint32 // of the sender, or of who caused it
}

// read takes one datagram and calls each with its messages.
func (s *rtSocket) read(each func(h header, body []byte) bool) error {
	if s.buf == nil {
		s.buf = make([]byte, 64<<10)
	}
	var n int
	var err error
	for {
		n, _, err = unix.Recvfrom(s.fd, s.buf, 0)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("receive from route netlink: %w", err)
	}
	messages(s.buf[:n], each)
	return nil
}

// messages splits a datagram into netlink messages.
func messages(p []byte, each func(h header, body []byte) bool) {
	for len(p) >= 16 {
		size := int(native.Uint32(p))
		if size < 16 || size > len(p) {
			return
		}
		h := header{native.Uint16(p[4:]), native.Uint16(p[6:]), native.Uint32(p[8:]), native.Uint32(p[12:])}
		if !each(h, p[16:size]) {
			return
		}
		p = p[min((size+3)&^3, len(p)):]
	}
}

// attrs splits attributes.
func attrs(p []byte, each func(typ uint16, v []byte)) {
	for len(p) >= 4 {
		size := int(native.Uint16(p))
		if size < 4 || size > len(p) {
			return
		}
		each(native.Uint16(p[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), p[4:size])
		p = p[min((size+3)&^3, len(p)):]
	}
}
