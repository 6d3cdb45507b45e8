package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of one task, so that none takes the node's resolver from the others.
const (
	// maxOutside bounds a task's questions to the outside that are under way; maxOutsideAll those of all tasks.
	maxOutside    = 128
	maxOutsideAll = 1024
	// outsideRate is how many a second it may begin, and burst how many at once; what the cache answers does not count.
	outsideRate  = 500
	outsideBurst = 1000
	// maxConns bounds a task's TCP connections; maxConnsAll those of all tasks.
	maxConns    = 16
	maxConnsAll = 256
	// maxTaskNets bounds the networks of one task.
	maxTaskNets = 256
)

// TaskNames says how the names of one task are answered.
type TaskNames struct {
	// ID tells the task from others: its container's ID.
	ID string `json:"id"`
	// NetNS is the path of its network namespace.
	NetNS string `json:"netns"`
	// Networks are those that its names come from, in the order in which they are looked at.
	Networks []uint64 `json:"nets,omitempty"`
	// Self is the task's own key in the tables: it finds its own names before it serves.
	Self TaskKey `json:"self,omitzero"`
	// Servers are asked for other names, from the task's namespace. Without any the host's are, from the host's namespace.
	Servers []netip.Addr `json:"servers,omitempty"`
	// ResolvConf is where the host's resolvers are read [/etc/resolv.conf].
	ResolvConf string `json:"resolv,omitempty"`
	// Inside keeps the task from asking the host's resolvers, as being in internal networks only does.
	Inside bool `json:"inside,omitempty"`
}

func (t *TaskNames) check() error {
	switch {
	case t.ID == "" || t.ID != filepath.Base(t.ID) || t.ID[0] == '.':
		return fmt.Errorf("task %q cannot have names", t.ID)
	case !filepath.IsAbs(t.NetNS):
		return fmt.Errorf("network namespace %q is not a path", t.NetNS)
	case len(t.Networks) > maxTaskNets:
		return fmt.Errorf("a task in %d networks, the limit is %d", len(t.Networks), maxTaskNets)
	case len(t.Servers) > maxServers:
		return fmt.Errorf("%d DNS servers, the limit is %d", len(t.Servers), maxServers)
	}
	for _, s := range t.Servers {
		if !s.IsValid() || s.IsUnspecified() {
			return fmt.Errorf("DNS server %q is no address", s)
		}
	}
	if t.ResolvConf == "" {
		t.ResolvConf = "/etc/resolv.conf"
	}
	return nil
}

// Ports are where a task's sockets listen on 127.0.0.11.
type Ports struct {
	UDP uint16 `json:"udp"`
	TCP uint16 `json:"tcp"`
}

// client is a task whose questions are answered: its two sockets, and what is under way for it. The server's lock guards cfg,
// nets and the sockets.
type client struct {
	cfg      TaskNames
	nets     []*network
	scope    uint32
	udp, tcp int // descriptors
	ports    Ports

	ctx    context.Context // ends with the task
	cancel context.CancelFunc
	busy   sync.WaitGroup // questions outside and connections

	mu      sync.Mutex
	closed  bool
	outside int
	conns   int
	tokens  float64
	filled  time.Time
}

// enter counts a question to the outside; false when the task has too many.
func (c *client) enter(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.filled.IsZero() {
		c.tokens = outsideBurst
	} else {
		c.tokens = min(outsideBurst, c.tokens+now.Sub(c.filled).Seconds()*outsideRate)
	}
	c.filled = now
	if c.closed || c.outside >= maxOutside || c.tokens < 1 {
		return false
	}
	c.tokens--
	c.outside++
	c.busy.Add(1)
	return true
}

func (c *client) leave() {
	c.mu.Lock()
	c.outside--
	c.mu.Unlock()
	c.busy.Done()
}

// connect counts a TCP connection; false when the task has too many.
func (c *client) connect() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.conns >= maxConns {
		return false
	}
	c.conns++
	c.busy.Add(1)
	return true
}

func (c *client) disconnect() {
	c.mu.Lock()
	c.conns--
	c.mu.Unlock()
	c.busy.Done()
}

// end cuts off what is under way.
func (c *client) end() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
}

func (c *client) closeSockets() error {
	return errors.Join(unix.Close(c.udp), unix.Close(c.tcp))
}
