package dns

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxBatch is how many datagrams of one task are read before others get their turn.
	maxBatch  = 32
	maxEvents = 64
)

// loop reads all sockets in one goroutine that waits in Go's poller for one epoll instance: a task costs two descriptors and no
// goroutine.
type loop struct {
	s    *Server
	file *os.File // the epoll instance
	done chan struct{}

	in    [maxQuery + 1]byte
	work  desk
	ready [maxEvents]unix.EpollEvent
}

func newLoop(s *Server) (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true) // for os.NewFile, which then waits for it in Go's poller
	}
	if err != nil {
		return nil, fmt.Errorf("waiting for questions: %w", err)
	}
	return &loop{s: s, file: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{})}, nil
}

// add waits for a client's sockets too.
func (l *loop) add(c *client) error {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(ep uintptr) {
		for _, fd := range []int{c.udp, c.tcp} {
			if err == nil {
				err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
			}
		}
	})
	if err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("waiting for questions: %w", err)
	}
	return nil
}

// stop ends run and joins it.
func (l *loop) stop() {
	l.file.SetReadDeadline(time.Unix(1, 0))
	<-l.done
	l.file.Close()
}

func (l *loop) run() {
	defer close(l.done)
	raw, err := l.file.SyscallConn()
	if err != nil {
		return
	}
	for {
		n := 0
		err := raw.Read(func(ep uintptr) bool {
			n, err = unix.EpollWait(int(ep), l.ready[:], 0)
			return n != 0 && err != unix.EINTR
		})
		if err != nil {
			return // stopped
		}
		for _, ev := range l.ready[:max(n, 0)] {
			l.serve(int(ev.Fd))
		}
	}
}

// serve reads what one socket has. The lock is what keeps the descriptor from being closed and given to another meanwhile.
func (l *loop) serve(fd int) {
	l.s.mu.RLock()
	defer l.s.mu.RUnlock()
	c := l.s.bySock[int32(fd)]
	switch {
	case c == nil: // just closed
	case fd == c.tcp:
		l.s.accept(c)
	default:
		for range maxBatch {
			n, from, err := receive(fd, l.in[:])
			if err != nil {
				return
			}
			if n <= maxQuery {
				l.datagram(c, l.in[:n], from)
			}
		}
	}
}

// datagram answers one question, or sends it outside.
func (l *loop) datagram(c *client, b []byte, from unix.RawSockaddrInet4) {
	q, err := readQuery(b)
	if reply, ok := l.s.reply(c, &q, err, q.size, &l.work); ok {
		send(c.udp, reply, &from)
		return
	}
	e, refusal := l.s.admit(c, &q, append([]byte(nil), b...), false, &l.work)
	if refusal != nil {
		send(c.udp, refusal, &from)
		return
	}
	size := q.size
	go l.s.fetch(e, func(reply []byte) {
		l.s.mu.RLock()
		defer l.s.mu.RUnlock()
		if l.s.bySock[int32(c.udp)] == c {
			send(c.udp, fit(reply, size), &from)
		}
	})
}

// desk is what one goroutine answers with, used again and again.
type desk struct {
	answer answer
	text   [maxName]byte
	name   []byte // the question's, in text
	addrs  []netip.Addr
	buf    []byte
}
