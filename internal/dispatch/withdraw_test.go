package dispatch

import (
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

func fence(m *pb.ToAgent) (uint64, bool) { return m.GetFence().GetIndex(), m.GetFence() != nil }

func withdrawnAt(m *pb.ToAgent) (uint64, bool) {
	return m.GetWithdrawn().GetIndex(), m.GetWithdrawn() != nil
}

// A node hears that its task is withdrawn when every node that has a session has passed the fence behind the new tables.
func TestWithdrawal(t *testing.T) {
	c := newCluster(t, 3)
	c.serve()
	c.service(1, "web", 80)
	c.service(2, "quiet", 0)
	web, quiet := c.task(1, 1, 1), c.task(2, 2, 1)
	peers := []*peer{c.mustJoin(1), c.mustJoin(2), c.mustJoin(3)}
	peers[0].report(peers[0].welcome.Session, 1, web, model.StateRunning)
	next(peers[0], "one report is taken", acked(1)) // a node has one report under way at a time
	peers[0].report(peers[0].welcome.Session, 2, quiet, model.StateRunning)
	next(peers[0], "both reports are taken", acked(2))
	eventually(t, "the sessions know that both run", func() bool {
		c.srv.mu.Lock()
		defer c.srv.mu.Unlock()
		return canServe(c.srv.snap.Task(web)) && canServe(c.srv.snap.Task(quiet))
	})

	// A task that nobody is led to has nothing to wait for.
	c.apply(model.Change{SetTaskDesired: &model.TaskDesiredSet{Task: quiet, Desired: model.StateShutdown}})
	if a := next(peers[0], "the quiet task's end", assignments); a.Withdrawal != 0 {
		t.Errorf("withdrawal %d of a task without ports and networks", a.Withdrawal)
	}
	c.apply(model.Change{SetTaskDesired: &model.TaskDesiredSet{Task: web, Desired: model.StateShutdown}})
	a := next(peers[0], "the task's end", assignments)
	index := c.rep.Snapshot().Index()
	if a.Withdrawal != index {
		t.Errorf("withdrawal %d, want %d", a.Withdrawal, index)
	}
	for i, p := range peers {
		empty := false
		got := next(p, "a fence", func(m *pb.ToAgent) (uint64, bool) {
			if tab, ok := tablesOf(m); ok && len(tab.Ports) == 1 {
				empty = len(tab.Ports[0].Backends) == 0
			}
			return fence(m)
		})
		if got != index || i > 0 && !empty {
			t.Errorf("node %d: fence %d, want %d; tables without the task before it: %v", i+1, got, index, empty)
		}
	}
	pass := func(p *peer) { p.send(&pb.FromAgent{Kind: &pb.FromAgent_Passed{Passed: &pb.Passed{Index: index}}}) }
	pass(peers[0])
	pass(peers[1])
	open := func() int {
		c.srv.mu.Lock()
		defer c.srv.mu.Unlock()
		if len(c.srv.withdrawals.open) == 0 {
			return 0
		}
		return len(c.srv.withdrawals.open[0].left)
	}
	eventually(t, "one node is left", func() bool { return open() == 1 })
	select {
	case m := <-peers[0].got:
		if _, ok := withdrawnAt(m); ok {
			t.Error("withdrawn, and a node still leads to it")
		}
	default:
	}
	peers[2].cancel() // its session ends: nobody waits for it
	if got := next(peers[0], "the withdrawal", withdrawnAt); got != index {
		t.Errorf("withdrawn %d", got)
	}
	eventually(t, "nothing is kept", func() bool { return open() == 0 })
}

func (c *cluster) openWithdrawals() int {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	return len(c.srv.withdrawals.open)
}

// A node may pass a fence before an older one, which is about other networks; each stands for what it was sent for.
func TestFencesInAnyOrder(t *testing.T) {
	c := newCluster(t, 2)
	c.serve()
	peers := []*peer{c.mustJoin(1), c.mustJoin(2)}
	withdraw := func(index uint64) {
		c.srv.mu.Lock()
		c.srv.withdraw(index, map[model.NodeID]struct{}{1: {}})
		c.srv.mu.Unlock()
		for _, p := range peers {
			if got := next(p, "a fence", fence); got != index {
				t.Fatalf("fence %d, want %d", got, index)
			}
		}
	}
	pass := func(p *peer, index uint64) {
		p.send(&pb.FromAgent{Kind: &pb.FromAgent_Passed{Passed: &pb.Passed{Index: index}}})
	}
	withdraw(1000)
	withdraw(1001)
	for _, index := range []uint64{1001, 1000} {
		for _, p := range peers {
			pass(p, index)
		}
		if got := next(peers[0], "a withdrawal", withdrawnAt); got != index {
			t.Errorf("withdrawn %d, want %d", got, index)
		}
	}
	eventually(t, "nothing is kept", func() bool { return c.openWithdrawals() == 0 })
}

// A fence that a slow node gets for two withdrawals stands for both.
func TestOneFenceForTwo(t *testing.T) {
	var o withdrawals
	for i := range uint64(3) {
		o.open = append(o.open, &withdrawal{index: i + 1, left: map[model.NodeID]uint64{1: 0, 2: 0}})
	}
	o.open[0].left[1] = 1
	o.fenced(1, 3)
	o.fenced(2, 0)
	for i, want := range []uint64{1, 3, 3} {
		if got := o.open[i].left; got[1] != want || got[2] != 0 {
			t.Errorf("withdrawal %d waits for fences %v, want %d of node 1", i+1, got, want)
		}
	}
}

// What is open is bounded, whoever answers: nobody is there, nodes that pass no fence, and more steps than there is time for.
func TestOpenWithdrawalsAreBounded(t *testing.T) {
	c := newCluster(t, 1)
	c.serve()
	withdraw := func(index uint64) {
		c.srv.mu.Lock()
		defer c.srv.mu.Unlock()
		c.srv.withdraw(index, map[model.NodeID]struct{}{1: {}})
	}
	withdraw(1)
	if n := c.openWithdrawals(); n != 0 {
		t.Errorf("%d are open, and no node has a session", n)
	}
	p := c.mustJoin(1)
	for i := range uint64(maxWithdrawals + 1) {
		withdraw(10 + i)
	}
	if n := c.openWithdrawals(); n != maxWithdrawals {
		t.Errorf("%d are open, want %d", n, maxWithdrawals)
	}
	if got := next(p, "the oldest ends", withdrawnAt); got != 10 {
		t.Errorf("withdrawn %d", got)
	}
	c.srv.expire(time.Now().Add(fenceLimit))
	if n := c.openWithdrawals(); n != 0 {
		t.Errorf("%d are open after their time", n)
	}
}

// eventually waits for a condition that no message tells of.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
