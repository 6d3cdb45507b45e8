package netapply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// nfPort is the netlink address of our sockets in tasks' namespaces, the same in all, so that the kernel can leave out
// our own changes where we listen for those of others.
const nfPort = 0x736b6570 // "skep"

const (
	nfTimeout    = 20 // seconds
	nfReadBuffer = 32 << 10
	nfTries      = 4 // of a comparison that others interrupt
)

// errStale says that someone changed the rules of a namespace since they were last seen.
var errStale = errors.New("the rules were changed meanwhile")

// An nfSocket talks to nftables and conntrack of one namespace. One goroutine uses it at a time.
type nfSocket struct {
	fd  int
	seq uint32
	buf []byte
}

// openNF opens a socket in the namespace that is bound to path.
func openNF(path string) (*nfSocket, error) {
	ns, err := openNS(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ns)
	s := &nfSocket{fd: -1}
	err = inNS(ns, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		s.fd = fd
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: nfPort})
		if err == unix.EADDRINUSE {
			err = nil // the kernel chooses another; what we change is then looked at once more
		}
		for _, o := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK} {
			_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, o, 1)
		}
		for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, socketBuffer))
		}
		return errors.Join(err, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: nfTimeout}))
	})
	if err != nil {
		s.close()
		return nil, fmt.Errorf("open netfilter netlink: %w", err)
	}
	return s, nil
}

func (s *nfSocket) close() {
	if s != nil && s.fd >= 0 {
		_ = unix.Close(s.fd)
		s.fd = -1
	}
}

// An nfBatch is a series of nftables requests that take effect together or not at all. Once it is sealed it can be sent
// to any number of namespaces.
type nfBatch struct{ batch }

func nfType(subsystem, message int) uint16 { return uint16(subsystem<<8 | message) }

func (b *nfBatch) message(typ int, flags uint16, what string) {
	b.begin(nfType(unix.NFNL_SUBSYS_NFTABLES, typ), flags, []byte{unix.NFPROTO_INET, 0, 0, 0}, what)
}

func (b *batch) be32(typ uint16, v uint32) { b.attr(typ, binary.BigEndian.AppendUint32(nil, v)) }

// seal numbers the requests and asks for an answer to the last.
func (b *nfBatch) seal() *nfBatch {
	b.finish()
	for i, m := range b.msgs {
		native.PutUint32(b.buf[m.start+8:], uint32(i+1))
	}
	if n := len(b.msgs); n > 0 {
		last := b.buf[b.msgs[n-1].start:]
		native.PutUint16(last[6:], native.Uint16(last[6:])|unix.NLM_F_ACK)
	}
	return b
}

// commit sends a sealed batch. With gen, it fails with errStale when the namespace's rules are not of that generation
// any more; after success they are of generation after(gen).
func (s *nfSocket) commit(b *nfBatch, gen uint32) error {
	if len(b.msgs) == 0 {
		return nil
	}
	const edge = 1 << 30 // numbers no request has
	var first, last batch
	first.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES}, "begin")
	if gen != 0 {
		first.be32(unix.NFNL_BATCH_GENID, gen)
	}
	last.begin(unix.NFNL_MSG_BATCH_END, 0, []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES}, "end")
	for _, v := range []*batch{&first, &last} {
		v.finish()
		native.PutUint32(v.buf[8:], edge)
	}
	if _, err := unix.SendmsgBuffers(s.fd, [][]byte{first.buf, b.buf, last.buf}, nil, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}, 0); err != nil {
		return fmt.Errorf("send to nftables: %w", err)
	}
	var errs []error
	for done := false; !done; {
		err := s.read(func(h header, body []byte) bool {
			if h.typ != unix.NLMSG_ERROR || len(body) < 4 {
				return true
			}
			r := request{what: "write rules"}
			if i := int(h.seq) - 1; i >= 0 && i < len(b.msgs) {
				r = b.msgs[i]
			}
			done = done || h.seq == edge || int(h.seq) == len(b.msgs)
			if err := ackError(h, body, r); err != nil {
				errs = append(errs, err)
			}
			return true
		})
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	if err := errors.Join(errs...); errors.Is(err, syscall.ERESTART) {
		return errStale
	} else if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// after is the generation that follows gen.
func after(gen uint32) uint32 {
	if gen++; gen == 0 {
		gen = 1
	}
	return gen
}

// generation is that of the namespace's rules: every change by anyone raises it.
func (s *nfSocket) generation() (gen uint32, err error) {
	var b batch
	b.begin(nfType(unix.NFNL_SUBSYS_NFTABLES, unix.NFT_MSG_GETGEN), 0, []byte{unix.AF_UNSPEC, 0, 0, 0}, "read the rules' generation")
	err = s.ask(&b, func(body []byte) {
		attrs(body[4:], func(t uint16, v []byte) {
			if t == unix.NFTA_GEN_ID && len(v) == 4 {
				gen = binary.BigEndian.Uint32(v)
			}
		})
	})
	if err == nil && gen == 0 {
		err = errors.New("the kernel names no generation of its rules")
	}
	return gen, err
}

// ask sends one request and calls each with the bodies of its answers, which begin with four bytes of nfgenmsg. It
// fails with errStale when the kernel says that a dump is not of one piece.
func (s *nfSocket) ask(b *batch, each func(body []byte)) error {
	b.finish()
	s.seq++
	native.PutUint32(b.buf[8:], s.seq)
	dump := native.Uint16(b.buf[6:])&unix.NLM_F_DUMP == unix.NLM_F_DUMP
	if !dump {
		native.PutUint16(b.buf[6:], native.Uint16(b.buf[6:])|unix.NLM_F_ACK)
	}
	if err := unix.Sendto(s.fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("%s: send: %w", b.msgs[0].what, err)
	}
	var failed error
	for done := false; !done; {
		err := s.read(func(h header, body []byte) bool {
			switch {
			case h.seq != s.seq:
				return true
			case h.typ == unix.NLMSG_ERROR && len(body) >= 4:
				done, failed = true, errors.Join(failed, ackError(h, body, b.msgs[0]))
			case h.typ == unix.NLMSG_DONE:
				done = true
			case len(body) >= 4:
				each(body)
			}
			if h.flags&unix.NLM_F_DUMP_INTR != 0 {
				failed = errStale
			}
			return true
		})
		if err != nil {
			return errors.Join(failed, err)
		}
	}
	return failed
}

func (s *nfSocket) read(each func(h header, body []byte) bool) error {
	if s.buf == nil {
		s.buf = make([]byte, nfReadBuffer)
	}
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive from netfilter netlink: %w", err)
		}
		messages(s.buf[:n], each)
		return nil
	}
}

// An nfCache keeps some sockets open, because entering a namespace costs more than many a change there. It owns those
// that nobody has taken. Safe for concurrent use.
type nfCache struct {
	mu    sync.Mutex
	open  map[string]*nfSocket
	order []string // the longest unused first
}

// nfKept bounds the open sockets: each is a file and a few KiB of the kernel.
const nfKept = 256

// take removes a socket from the cache, or opens one.
func (c *nfCache) take(path string) (*nfSocket, error) {
	c.mu.Lock()
	s := c.open[path]
	if s != nil {
		delete(c.open, path)
		c.order = slices.Delete(c.order, slices.Index(c.order, path), slices.Index(c.order, path)+1)
	}
	c.mu.Unlock()
	if s != nil {
		return s, nil
	}
	return openNF(path)
}

// give puts a socket into the cache.
func (c *nfCache) give(path string, s *nfSocket) {
	s.buf = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[string]*nfSocket{}
	}
	c.open[path].close()
	c.order = slices.DeleteFunc(c.order, func(p string) bool { return p == path })
	c.open[path], c.order = s, append(c.order, path)
	if len(c.order) > nfKept {
		c.open[c.order[0]].close()
		delete(c.open, c.order[0])
		c.order = c.order[1:]
	}
}

// drop closes the socket of one namespace: it would keep it alive.
func (c *nfCache) drop(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.open[path]; s != nil {
		s.close()
		delete(c.open, path)
		c.order = slices.DeleteFunc(c.order, func(p string) bool { return p == path })
	}
}

func (c *nfCache) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.open {
		s.close()
	}
	c.open, c.order = nil, nil
}
