package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// handoffTime bounds a whole handoff. While it lasts the FIFOs fill up.
const handoffTime = 20 * time.Second

// handoff gives everything to the next keeper. Until the very last message
// this process carries on when the other one fails.
func (s *server) handoff(c *net.UnixConn) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.gone {
		return nil
	}
	c.SetDeadline(time.Now().Add(handoffTime))
	s.listener.SetDeadline(time.Unix(1, 0)) // who calls now is the next keeper's
	s.logs.pause()
	s.holder.Pause()
	s.names.Pause()
	if err := s.give(c); err != nil {
		s.listener.SetDeadline(time.Time{})
		s.logs.start()
		return errors.Join(fmt.Errorf("handing over: %w", err), s.holder.Resume(), s.names.Resume())
	}
	s.gone = true
	s.logs.forget()
	s.stop()
	return nil
}

func (s *server) give(c *net.UnixConn) error {
	sock, err := s.listener.File()
	if err != nil {
		return err
	}
	defer sock.Close()
	send := func(it item, files []*os.File) error { return sendItem(c, it, files) }
	if err := send(item{Kind: itemCore}, []*os.File{s.lock, sock}); err != nil {
		return err
	}
	if err := s.logs.items(send); err != nil {
		return err
	}
	for _, p := range s.holder.List() {
		kinds, files := s.holder.Sockets(p)
		if err := send(item{Kind: itemPort, Port: &p, Socks: kinds}, files); err != nil {
			return err
		}
	}
	if err := s.names.items(send); err != nil {
		return err
	}
	if err := send(item{Kind: itemEnd}, nil); err != nil {
		return err
	}
	var answer item
	if err := readFrame(c, &answer); err != nil {
		return fmt.Errorf("the next keeper is not ready: %w", err)
	}
	if answer.Kind != itemReady {
		return fmt.Errorf("the next keeper says %q", answer.Kind)
	}
	return send(item{Kind: itemTake}, nil)
}

// takeOver builds a server from what the running keeper hands over.
func (s *server) takeOver() error {
	c, err := dial(s.dir)
	if err != nil {
		return fmt.Errorf("asking the running keeper: %w", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(handoffTime))
	if err := writeFrame(c, request{Version: Protocol, Op: opHandoff}); err != nil {
		return fmt.Errorf("asking the running keeper: %w", err)
	}
	s.holder.Pause() // until it is ours
	for {
		it, files, err := receiveItem(c)
		if err != nil {
			return fmt.Errorf("taking over: %w", err)
		}
		if it.Kind == itemEnd {
			break
		}
		if err := s.adopt(it, files); err != nil {
			closeFiles(files)
			return fmt.Errorf("taking over: %w", err)
		}
	}
	if s.lock == nil || s.listener == nil {
		return errors.New("taking over: the running keeper gave no socket")
	}
	if err := writeFrame(c, item{Kind: itemReady}); err != nil {
		return fmt.Errorf("taking over: %w", err)
	}
	var last item
	if err := readFrame(c, &last); err != nil || last.Kind != itemTake {
		return fmt.Errorf("taking over: the running keeper keeps it all (%q, %w)", last.Kind, err)
	}
	return nil
}

func (s *server) adopt(it item, files []*os.File) error {
	switch {
	case it.Kind == itemCore && len(files) == 2:
		l, err := net.FileListener(files[1])
		if err != nil {
			return err
		}
		files[1].Close()
		s.lock = files[0]
		s.listener = l.(*net.UnixListener)
		s.listener.SetUnlinkOnClose(false)
		return nil
	case it.Kind == itemLog && it.Log != nil:
		return s.logs.adopt(it, files)
	case it.Kind == itemPort && it.Port != nil:
		return s.holder.Adopt(*it.Port, it.Socks, files)
	case it.Kind == itemTable && it.Table != nil:
		return s.names.Set(it.Table)
	case it.Kind == itemNames && it.Names != nil:
		err := s.names.Adopt(*it.Names, files)
		closeFiles(files)
		return err
	}
	return fmt.Errorf("an item of kind %q, which this build does not know", it.Kind)
}

// claim becomes the keeper when none runs: it takes the lock, opens again
// what an earlier one had open, and listens.
func (s *server) claim() error {
	lock, err := takeLock(s.dir)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := s.logs.load(); err != nil {
		s.log.Error("starting", "err", err)
	}
	if err := s.names.load(); err != nil {
		s.log.Error("starting", "err", err)
	}
	held, err := loadPorts(s.dir)
	if err != nil {
		s.log.Error("reading held ports", "err", err)
	}
	for i, err := range s.holder.Hold(s.ending, held) {
		if err != nil {
			s.log.Error("holding a port again", "port", held[i].String(), "err", err)
		}
	}
	if err := savePorts(s.dir, s.holder.List()); err != nil {
		return err
	}
	os.Remove(socketPath(s.dir))
	s.listener, err = listen(s.dir)
	return err
}
