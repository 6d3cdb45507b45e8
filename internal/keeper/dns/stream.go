package dns

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// idleTime is how long a TCP connection may be silent, and how long it may take to send or take a message.
const idleTime = 10 * time.Second

// maxDesk is how large an answer buffer may be that is kept for later, in bytes.
const maxDesk = 8 << 10

// accept serves the connections that wait at a client's socket; s.mu is held.
func (s *Server) accept(c *client) {
	for range maxConns {
		fd, _, err := unix.Accept4(c.tcp, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return
		}
		if !c.connect() {
			unix.Close(fd)
			continue
		}
		select {
		case s.conns <- struct{}{}:
		default:
			c.disconnect()
			unix.Close(fd)
			continue
		}
		s.busy.Add(1)
		go func() {
			defer s.busy.Done()
			defer c.disconnect()
			defer func() { <-s.conns }()
			s.converse(c, os.NewFile(uintptr(fd), "dns"))
		}()
	}
}

// converse answers one connection's questions, one after another.
func (s *Server) converse(c *client, f *os.File) {
	defer f.Close()
	stop := context.AfterFunc(c.ctx, func() { f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	in := make([]byte, 2+maxQuery)
	w := &desk{}
	for {
		f.SetDeadline(time.Now().Add(idleTime))
		if c.ctx.Err() != nil {
			return
		}
		if _, err := io.ReadFull(f, in[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(in))
		if n > maxQuery {
			return
		}
		if _, err := io.ReadFull(f, in[2:2+n]); err != nil {
			return
		}
		reply := s.spoken(c, in[2:2+n], w)
		if len(reply) == 0 {
			return
		}
		frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(reply)), uint16(len(reply)))
		f.SetDeadline(time.Now().Add(idleTime))
		if c.ctx.Err() != nil {
			return
		}
		if _, err := f.Write(append(frame, reply...)); err != nil {
			return
		}
		if cap(w.answer.buf) > maxDesk || cap(w.buf) > maxDesk {
			*w = desk{}
		}
	}
}

// spoken answers one question that came by TCP.
func (s *Server) spoken(c *client, b []byte, w *desk) []byte {
	q, err := readQuery(b)
	s.mu.RLock()
	reply, ok := s.reply(c, &q, err, maxTCP, w)
	if ok {
		s.mu.RUnlock()
		return reply
	}
	e, refusal := s.admit(c, &q, append([]byte(nil), b...), true, w)
	s.mu.RUnlock()
	if refusal != nil {
		return refusal
	}
	reply = nil
	s.fetch(e, func(r []byte) { reply = r })
	return reply
}
