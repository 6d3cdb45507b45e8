package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// MaxTasks bounds the tasks whose names are answered.
const MaxTasks = 8192

// A Server answers the questions of all tasks of a node. It is safe for concurrent use. Between New and Resume, and after Pause,
// its sockets are open and nothing is answered: what arrives waits in the kernel.
type Server struct {
	fw    *forwarder
	now   func() time.Time
	slots chan struct{} // questions outside
	conns chan struct{} // TCP connections

	ctx    context.Context // of all that is under way
	cancel context.CancelFunc
	busy   sync.WaitGroup

	moving sync.Mutex // orders Pause and Resume
	loop   *loop      // nil while paused

	mu      sync.RWMutex // guards the rest, and every socket's being open
	clients map[string]*client
	bySock  map[int32]*client
	nets    map[uint64]*network
	known   map[uint64]bool // networks that a table was given for
	drafts  map[uint64]*draft
	scopes  uint32
}

// New makes a Server without any tasks. It starts nothing.
func New() *Server {
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{fw: newForwarder(time.Now), now: time.Now, ctx: ctx, cancel: cancel,
		slots: make(chan struct{}, maxOutsideAll), conns: make(chan struct{}, maxConnsAll),
		clients: map[string]*client{}, bySock: map[int32]*client{}, nets: map[uint64]*network{}, known: map[uint64]bool{},
		drafts: map[uint64]*draft{}}
}

// Open opens a task's sockets, on the ports wanted if they are free (none: any), and answers. A task that has them keeps them
// and its ports; what its configuration says of names counts from now on.
func (s *Server) Open(cfg TaskNames, want Ports) (Ports, error) {
	if err := cfg.check(); err != nil {
		return Ports{}, err
	}
	s.mu.Lock()
	c := s.clients[cfg.ID]
	if c != nil && c.cfg.NetNS == cfg.NetNS {
		defer s.mu.Unlock()
		s.configure(c, cfg)
		return c.ports, nil
	}
	full := len(s.clients) >= MaxTasks
	s.mu.Unlock()
	if c != nil {
		if err := s.Close(cfg.ID); err != nil {
			return Ports{}, err
		}
	} else if full {
		return Ports{}, fmt.Errorf("the names of %d tasks are answered, which is the limit", MaxTasks)
	}
	udp, tcp, err := bindTask(cfg.NetNS, want.UDP, want.TCP)
	if err != nil {
		return Ports{}, fmt.Errorf("opening the DNS sockets of task %.12s: %w", cfg.ID, err)
	}
	return s.install(cfg, udp, tcp)
}

// Adopt answers a task with sockets that another Server passed on; the files are the caller's to close.
func (s *Server) Adopt(cfg TaskNames, files []*os.File) error {
	if len(files) != 2 {
		return fmt.Errorf("the names of task %.12s come with %d descriptors", cfg.ID, len(files))
	}
	if err := cfg.check(); err != nil {
		return err
	}
	udp, err := dup(files[0])
	if err != nil {
		return err
	}
	tcp, err := dup(files[1])
	if err != nil {
		unix.Close(udp)
		return err
	}
	_, err = s.install(cfg, udp, tcp)
	return err
}

func dup(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(cerr, os.NewSyscallError("fcntl", err))
}

// install adds a client with its sockets, which are closed when it fails.
func (s *Server) install(cfg TaskNames, udp, tcp int) (Ports, error) {
	c := &client{udp: udp, tcp: tcp, ports: Ports{portOf(udp), portOf(tcp)}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.clients[cfg.ID]; old != nil { // another request was faster
		s.configure(old, cfg)
		return old.ports, c.closeSockets()
	}
	if s.loop != nil {
		if err := s.loop.add(c); err != nil {
			return Ports{}, errors.Join(err, c.closeSockets())
		}
	}
	s.scopes++
	c.scope = s.scopes
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	s.configure(c, cfg)
	s.clients[cfg.ID] = c
	s.bySock[int32(udp)], s.bySock[int32(tcp)] = c, c
	return c.ports, nil
}

// configure takes what can change of a client; s.mu is held.
func (s *Server) configure(c *client, cfg TaskNames) {
	if !slices.Equal(c.cfg.Servers, cfg.Servers) {
		s.fw.cache.forget(c.scope)
		s.fw.health.forget(c.scope)
	}
	c.cfg, c.nets = cfg, nil
	for _, id := range cfg.Networks {
		c.nets = append(c.nets, s.network(id))
	}
}

// Close closes a task's sockets and ends what is under way for it. What is not open is no error.
func (s *Server) Close(id string) error {
	s.mu.Lock()
	c := s.clients[id]
	if c == nil {
		s.mu.Unlock()
		return nil
	}
	delete(s.clients, id)
	delete(s.bySock, int32(c.udp))
	delete(s.bySock, int32(c.tcp))
	err := c.closeSockets() // leaves the loop's epoll too
	s.mu.Unlock()
	c.end()
	c.busy.Wait()
	s.fw.cache.forget(c.scope)
	s.fw.health.forget(c.scope)
	s.mu.Lock()
	s.sweep()
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("closing the DNS sockets of task %.12s: %w", id, err)
	}
	return nil
}

// An Opened is a task whose names are answered.
type Opened struct {
	TaskNames
	Ports Ports `json:"ports"`
}

// Tasks lists what is open, sorted.
func (s *Server) Tasks() []Opened {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Opened, 0, len(s.clients))
	for _, c := range s.clients {
		out = append(out, Opened{c.cfg, c.ports})
	}
	slices.SortFunc(out, func(a, b Opened) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Sockets returns duplicates of a task's sockets (UDP, TCP) for passing them on; the caller closes them. None when it is not open.
func (s *Server) Sockets(id string) ([]*os.File, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.clients[id]
	if c == nil {
		return nil, nil
	}
	var files []*os.File
	for _, fd := range []int{c.udp, c.tcp} {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, os.NewSyscallError("fcntl", err)
		}
		files = append(files, os.NewFile(uintptr(n), "dns"))
	}
	return files, nil
}

// Resume begins to answer.
func (s *Server) Resume() error {
	s.moving.Lock()
	defer s.moving.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loop != nil {
		return nil
	}
	l, err := newLoop(s)
	if err != nil {
		return err
	}
	for _, c := range s.clients {
		if err := l.add(c); err != nil {
			l.file.Close()
			return err
		}
	}
	s.loop = l
	s.busy.Go(l.run)
	return nil
}

// Pause stops reading questions while every socket stays open. What is under way goes on.
func (s *Server) Pause() {
	s.moving.Lock()
	defer s.moving.Unlock()
	s.mu.Lock()
	l := s.loop
	s.loop = nil
	s.mu.Unlock()
	if l != nil {
		l.stop()
	}
}

// Shutdown stops, lets what is under way go on until ctx ends, then cuts it off, and closes this process's sockets; they stay
// open in a process that they were passed to.
func (s *Server) Shutdown(ctx context.Context) {
	s.Pause()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.busy.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	s.cancel()
	<-done
	s.mu.RLock()
	ids := make([]string, 0, len(s.clients))
	for id := range s.clients {
		ids = append(ids, id)
	}
	s.mu.RUnlock()
	for _, id := range ids {
		s.Close(id)
	}
}

// asker says who is asked what the tables do not know; false when nobody is.
func (s *Server) asker(c *client) (asker, bool) {
	if len(c.cfg.Servers) > 0 {
		who := asker{scope: c.scope, ns: c.cfg.NetNS}
		for _, a := range c.cfg.Servers {
			who.servers = append(who.servers, netip.AddrPortFrom(a, 53))
		}
		return who, true
	}
	inside := len(c.nets) > 0
	for _, n := range c.nets {
		inside = inside && n.internal
	}
	if inside || c.cfg.Inside {
		return asker{}, false
	}
	return asker{servers: s.fw.host(c.cfg.ResolvConf)}, true
}
