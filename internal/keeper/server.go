package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-swarm/skep/internal/keeper/dns"
	"github.com/skep-swarm/skep/internal/keeper/jsonlog"
	"github.com/skep-swarm/skep/internal/keeper/ports"
)

const (
	// maxRequests bounds the connections that are served at a time.
	maxRequests = 128
	// requestTime bounds reading a request and writing its answer.
	requestTime = 10 * time.Second
	// lingerTime is how long connections that are carried for held ports
	// may go on in a process that has been replaced.
	lingerTime = 10 * time.Minute
	// answerTime is how long questions that wait for others' answers may go on in it.
	answerTime = 5 * time.Second
)

// A server is the keeper process.
type server struct {
	dir   string
	build string
	log   *slog.Logger

	lock     *os.File
	listener *net.UnixListener
	logs     *logTable
	holder   *ports.Holder
	names    *names

	// gate is held for writing while everything is handed over; gone tells
	// that it was.
	gate sync.RWMutex
	gone bool

	saving sync.Mutex // orders records of held ports

	stop   context.CancelFunc // ends run
	ending context.Context
	keep   atomic.Bool // leave the table for the next keeper
}

// run serves until a request or ctx ends it. It joins what it started.
func (s *server) run(ctx context.Context) error {
	s.ending, s.stop = context.WithCancel(ctx)
	defer s.stop()
	s.logs.start()
	if err := s.holder.Resume(); err != nil {
		s.log.Error("serving held ports", "err", err)
	}
	if err := s.names.Resume(); err != nil {
		s.log.Error("answering names", "err", err)
	}
	wake := context.AfterFunc(s.ending, func() { s.listener.Close() })
	defer wake()
	err := s.accept()
	s.stop()
	s.finish()
	return err
}

// accept serves connections until the listener is closed, and joins them.
func (s *server) accept() error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxRequests)
	for {
		c, err := s.listener.AcceptUnix()
		if s.ending.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// A handoff is under way: wait how it ends.
			s.gate.RLock()
			//lint:ignore SA2001 the gate opens when it has ended
			s.gate.RUnlock()
			continue
		}
		if err != nil {
			s.log.Error("accepting", "err", err)
			select { // out of descriptors, likely
			case <-s.ending.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			defer c.Close()
			if err := s.serve(c); err != nil {
				s.log.Error("serving a request", "err", err)
			}
		}()
	}
}

// finish ends everything in the order in which nothing is lost.
func (s *server) finish() {
	if !s.gone {
		if err := s.logs.end(s.keep.Load()); err != nil {
			s.log.Error("closing logs", "err", err)
		}
		if !s.keep.Load() {
			os.Remove(portsFile(s.dir))
			if err := s.names.clear(); err != nil {
				s.log.Error("forgetting names", "err", err)
			}
			os.Remove(socketPath(s.dir))
		}
	}
	s.holder.Release(s.holder.List())
	last, drop := context.WithTimeout(context.Background(), answerTime)
	defer drop()
	if !s.gone {
		drop()
	}
	s.names.Shutdown(last)
	s.lock.Close()
	ctx, cancel := context.WithTimeout(context.Background(), lingerTime)
	defer cancel()
	if !s.gone {
		cancel() // the ports' time is over, or the host's
	}
	s.holder.Close(ctx)
}

// serve answers one connection.
func (s *server) serve(c *net.UnixConn) error {
	c.SetDeadline(time.Now().Add(requestTime))
	var req request
	if err := readFrame(c, &req); err != nil {
		return nil // a client that went away
	}
	c.SetDeadline(time.Time{})
	switch req.Op {
	case opWatch:
		return s.watch(c)
	case opHandoff:
		return s.handoff(c)
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.gone {
		return nil // the client asks again, and reaches the next keeper
	}
	resp, err := s.answer(&req)
	if err != nil {
		resp = response{Error: err.Error()}
	}
	c.SetDeadline(time.Now().Add(requestTime))
	err = writeFrame(c, resp)
	if req.Op == opShutdown {
		s.stop()
	}
	return err
}

// watch keeps the connection until the client or the keeper ends.
func (s *server) watch(c *net.UnixConn) error {
	if err := writeFrame(c, response{}); err != nil {
		return err
	}
	wake := context.AfterFunc(s.ending, func() { c.Close() })
	defer wake()
	var one [1]byte
	c.Read(one[:])
	return nil
}

// answer does what a request asks for.
func (s *server) answer(req *request) (response, error) {
	ctx, cancel := context.WithTimeout(s.ending, requestTime)
	defer cancel()
	switch req.Op {
	case opHello:
		return response{Hello: &hello{Version: Protocol, Build: s.build, PID: os.Getpid()}}, nil
	case opOpen:
		if req.Log == nil {
			return response{}, errors.New("no log to open")
		}
		files, err := s.logs.open(*req.Log)
		return response{Files: &files}, err
	case opClose:
		return response{}, s.logs.close(req.ID)
	case opRemove:
		err := s.logs.close(req.ID)
		return response{}, errors.Join(err, jsonlog.Remove(jsonlog.Path(req.Dir, req.ID)))
	case opHold:
		errs := s.holder.Hold(ctx, req.Ports)
		return response{Held: portErrs(errs)}, s.savePorts()
	case opRelease:
		s.holder.Release(req.Ports)
		return response{}, s.savePorts()
	case opProbe:
		return response{Held: portErrs(s.holder.Probe(ctx, req.Ports))}, nil
	case opList:
		return response{List: &Listing{Logs: s.logs.list(), Ports: s.holder.List(), Names: s.names.list(), Networks: s.names.Networks()}}, nil
	case opNames:
		if req.Names == nil {
			return response{}, errors.New("no task whose names are to be answered")
		}
		ports, err := s.names.open(*req.Names, dns.Ports{})
		return response{Ports: &ports}, err
	case opUnname:
		return response{}, s.names.close(req.ID)
	case opTable:
		if req.Table == nil {
			return response{}, errors.New("no table of names")
		}
		return response{}, s.names.set(req.Table)
	case opShutdown:
		return response{}, nil
	}
	return response{}, fmt.Errorf("the keeper knows no request %q", req.Op)
}

// savePorts records what is held; requests that come together record it one after another, each as
// it is then.
func (s *server) savePorts() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	return savePorts(s.dir, s.holder.List())
}

func portErrs(errs []error) []portErr {
	out := make([]portErr, len(errs))
	for i, err := range errs {
		if err == nil {
			continue
		}
		out[i] = portErr{Error: err.Error(), Invalid: errors.Is(err, ports.ErrInvalid)}
		var used *ports.InUseError
		if errors.As(err, &used) {
			out[i].InUse, out[i].PID, out[i].Command = true, used.PID, used.Command
		}
	}
	return out
}
