package raftlog

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// cluster is three members whose links can be cut.
type cluster struct {
	members map[string]*member
	trans   map[string]*raft.InmemTransport
	cfgs    map[string]Config
}

func startCluster(t *testing.T, change func(*Config)) *cluster {
	t.Helper()
	c := &cluster{members: map[string]*member{}, trans: map[string]*raft.InmemTransport{}, cfgs: map[string]Config{}}
	for _, id := range []string{"n1", "n2", "n3"} {
		_, c.trans[id] = raft.NewInmemTransportWithTimeout(raft.ServerAddress(id), 200*time.Millisecond)
		cfg := testConfig(t)
		cfg.NodeID, cfg.Bootstrap, cfg.Key = id, id == "n1", [32]byte{id[1]}
		cfg.transport = c.trans[id]
		if change != nil {
			change(&cfg)
		}
		c.cfgs[id] = cfg
	}
	for a := range c.trans {
		c.connect(a)
	}
	for id, cfg := range c.cfgs {
		c.members[id] = start(t, cfg)
	}
	c.members["n1"].lead(t)
	for _, id := range []string{"n2", "n3"} {
		if err := c.members["n1"].AddVoter(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	for id, m := range c.members {
		eventually(t, id+" knows all members", func() bool { return len(m.Members()) == len(c.members) })
	}
	return c
}

func (c *cluster) connect(id string) {
	for other, trans := range c.trans {
		if other != id {
			trans.Connect(raft.ServerAddress(id), c.trans[id])
			c.trans[id].Connect(raft.ServerAddress(other), trans)
		}
	}
}

func (c *cluster) cut(id string) {
	c.trans[id].DisconnectAll()
	for other, trans := range c.trans {
		if other != id {
			trans.Disconnect(raft.ServerAddress(id))
		}
	}
}

// leaderOf waits for a leader that is not the one named.
func (c *cluster) leaderOf(t *testing.T, not string) *member {
	t.Helper()
	var leader *member
	eventually(t, "a leader other than "+not, func() bool {
		for id, m := range c.members {
			if id != not && m.Stats().State == "Leader" {
				leader = m
				return true
			}
		}
		return false
	})
	return leader
}

func (c *cluster) agree(t *testing.T, index uint64) {
	t.Helper()
	for id, m := range c.members {
		if err := m.Wait(t.Context(), index); err != nil {
			t.Fatalf("%s waits for %d: %v", id, index, err)
		}
	}
	n, sum := c.members["n1"].machine.digest()
	for id, m := range c.members {
		if n2, sum2 := m.machine.digest(); n2 != n || sum2 != sum {
			t.Errorf("%s has %d proposals with digest %x, n1 has %d with %x", id, n2, sum2, n, sum)
		}
	}
}

func TestLeadershipChange(t *testing.T) {
	c := startCluster(t, nil)
	n1 := c.members["n1"]
	n1.propose(t, "one")
	if got := n1.Members(); len(got) != 3 {
		t.Fatalf("members %v", got)
	}

	c.cut("n1")
	next := c.leaderOf(t, "n1")
	next.lead(t)
	last := next.propose(t, "two")
	eventually(t, "the old leader steps down", func() bool { return n1.Stats().State != "Leader" })
	if _, _, err := n1.Propose(t.Context(), []byte("lost")); err == nil {
		t.Error("a member that is cut off accepted a proposal")
	} else {
		asErr[*NotLeaderError](t, err)
	}
	if _, err := n1.ReadIndex(t.Context()); err == nil {
		t.Error("a member that is cut off answered a read")
	}
	if l := <-n1.Leadership(); l.Leader {
		t.Errorf("the old leader was told %+v", l)
	}

	c.connect("n1")
	c.agree(t, last)
	eventually(t, "the old leader knows the new one", func() bool { return n1.Leader() == next.cfg.NodeID })

	// A read on the leader, waited for on a follower, sees the last proposal.
	last = next.propose(t, "three")
	index, err := next.ReadIndex(t.Context())
	if err != nil || index < last {
		t.Fatalf("read index %d, %v; last proposal at %d", index, err, last)
	}
	if err := n1.Wait(t.Context(), index); err != nil || !n1.machine.has("three") {
		t.Errorf("the follower does not see what was read: %v", err)
	}
	if err := next.TransferLeadership(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	n1.lead(t)
	c.agree(t, n1.propose(t, "four"))
}

func TestUnknownOutcome(t *testing.T) {
	c := startCluster(t, nil)
	n1 := c.members["n1"]
	c.agree(t, n1.propose(t, "one"))
	c.cut("n1")
	done := make(chan error, 1)
	go func() {
		_, _, err := n1.Propose(t.Context(), []byte("maybe"))
		done <- err
	}()
	err := <-done
	asErr[interface {
		error
		Unwrap() []error
	}](t, err)
	if !isUnknown(err) {
		t.Errorf("proposal of a leader that was cut off: %v", err)
	}
	next := c.leaderOf(t, "n1")
	next.lead(t)
	last := next.propose(t, "two")
	c.connect("n1")
	c.agree(t, last)
	if n1.machine.has("maybe") {
		t.Error("an entry of a lost term was applied")
	}
}

func TestCatchUpBySnapshot(t *testing.T) {
	c := startCluster(t, func(cfg *Config) { cfg.TrailingLogs, cfg.SegmentSize = 3, 4<<10 })
	n1 := c.members["n1"]
	c.agree(t, n1.propose(t, "one"))
	if err := c.members["n3"].stop(); err != nil {
		t.Fatal(err)
	}
	c.cut("n3")
	for i := range 200 {
		n1.propose(t, fmt.Sprintf("while away %d", i))
	}
	if err := n1.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	n1.propose(t, "after the snapshot")
	_, c.trans["n3"] = raft.NewInmemTransportWithTimeout("n3", 200*time.Millisecond)
	cfg := c.cfgs["n3"]
	cfg.transport = c.trans["n3"]
	c.connect("n3")
	c.members["n3"] = start(t, cfg)
	index, err := n1.ReadIndex(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.agree(t, index)
	// n3 has a snapshot of its own now, under its own key, and starts from it.
	if metas, err := c.members["n3"].snaps.List(); err != nil || len(metas) == 0 {
		t.Fatalf("n3's snapshots: %v, %v", metas, err)
	}
}

func TestMembership(t *testing.T) {
	c := startCluster(t, nil)
	n1 := c.members["n1"]
	if err := n1.RemoveServer(t.Context(), "n3"); err != nil {
		t.Fatal(err)
	}
	if err := n1.AddNonvoter(t.Context(), "n3"); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"n1": true, "n2": true, "n3": false}
	for _, m := range n1.Members() {
		if want[m.ID] != m.Voter {
			t.Errorf("member %+v", m)
		}
	}
	c.agree(t, n1.propose(t, "x"))
	if err := c.members["n2"].AddVoter(t.Context(), "n9"); err == nil {
		t.Error("a follower changed the membership")
	} else if e := asErr[*NotLeaderError](t, err); e.Leader != "n1" {
		t.Errorf("leader %q", e.Leader)
	}
}

// pipes is a network of streams in memory.
type pipes struct {
	mu    sync.Mutex
	nodes map[string]*pipeStream
}

type pipeStream struct {
	net    *pipes
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) node(id string) *pipeStream {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &pipeStream{net: p, accept: make(chan net.Conn), closed: make(chan struct{})}
	p.nodes[id] = s
	return s
}

func (s *pipeStream) Accept() (net.Conn, error) {
	select {
	case c := <-s.accept:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *pipeStream) Close() error   { s.once.Do(func() { close(s.closed) }); return nil }
func (s *pipeStream) Addr() net.Addr { return nodeAddr("pipe") }

func (s *pipeStream) Dial(node string, timeout time.Duration) (net.Conn, error) {
	s.net.mu.Lock()
	peer := s.net.nodes[node]
	s.net.mu.Unlock()
	if peer == nil {
		return nil, fmt.Errorf("no node %s", node)
	}
	a, b := net.Pipe()
	select {
	case peer.accept <- b:
		return a, nil
	case <-peer.closed:
		return nil, net.ErrClosed
	case <-time.After(timeout):
		return nil, fmt.Errorf("dial %s: timeout", node)
	}
}

// TestStream runs two members over the real transport.
func TestStream(t *testing.T) {
	network := &pipes{nodes: map[string]*pipeStream{}}
	members := map[string]*member{}
	for _, id := range []string{"n1", "n2"} {
		cfg := testConfig(t)
		cfg.NodeID, cfg.Bootstrap, cfg.Stream = id, id == "n1", network.node(id)
		members[id] = start(t, cfg)
	}
	n1, n2 := members["n1"], members["n2"]
	n1.lead(t)
	if err := n1.AddVoter(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	index := n1.propose(t, "over the wire")
	if err := n2.Wait(t.Context(), index); err != nil || !n2.machine.has("over the wire") {
		t.Fatal(err)
	}
	eventually(t, "n2 knows its leader", func() bool { return n2.Leader() == "n1" })
	// A leader that stops hands over first.
	if err := n1.stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "n2 was asked to lead", func() bool { return n2.Stats().State != "Follower" })
}
