package agent

import (
	"context"
	"sync"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

const (
	// withdrawalWait bounds how long a task that is to stop waits until no node sends it new clients.
	withdrawalWait = 3 * time.Second
	// maxWithdrawn is more than managers have open at a time.
	maxWithdrawn = 1024
	// unservedWait bounds how long a task's network outlives it.
	unservedWait = time.Second
	// DrainTimeLabel is a service's label: how long a task that served goes on after it was withdrawn, before its stop signal. What
	// reached it in the last moment is taken up meanwhile; many programs refuse new connections from their stop signal on.
	DrainTimeLabel   = "skep.drain-time"
	defaultDrainTime = 500 * time.Millisecond
	// MaxDrainTime bounds the label.
	MaxDrainTime = time.Hour
)

// withdrawn is of which indexes the managers said that no node sends new clients to the tasks that were told to stop then: the last
// maxWithdrawn of them. They may come in another order than they began in. Safe for concurrent use.
type withdrawn struct {
	mu      sync.Mutex
	told    map[uint64]bool
	order   []uint64      // of told
	changed chan struct{} // closed when told changes
}

func newWithdrawn() *withdrawn {
	return &withdrawn{told: map[uint64]bool{}, changed: make(chan struct{})}
}

func (w *withdrawn) tell(index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told[index] {
		return
	}
	if len(w.order) == maxWithdrawn {
		delete(w.told, w.order[0])
		w.order = w.order[1:]
	}
	w.told[index], w.order = true, append(w.order, index)
	close(w.changed)
	w.changed = make(chan struct{})
}

// await returns when the managers have told of the index, or ctx ends; 0 is nothing to wait for.
func (w *withdrawn) await(ctx context.Context, index uint64) {
	for {
		w.mu.Lock()
		told, changed := index == 0 || w.told[index], w.changed
		w.mu.Unlock()
		if told {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// withdraw returns when a task that is to stop may get its signal: no new clients are led to it, neither here nor elsewhere, and it has
// had time to take up the last ones.
func (c *controller) withdraw(ctx context.Context) {
	_, tpl, st := c.t.snapshot()
	if st.State != model.StateRunning {
		return
	}
	c.t.mu.Lock()
	index := c.t.withdrawal
	c.t.mu.Unlock()
	served := c.a.net.leads(c.t.id) || index != 0
	if !served {
		return
	}
	limited, cancel := context.WithTimeout(ctx, withdrawalWait)
	defer cancel()
	c.a.withdrawn.await(limited, index)
	c.a.net.awaitUnpublished(limited, c.t.id)
	c.t.await(ctx, tpl.drainTime())
}

// Withdraw is for a stop that the managers did not order: it returns when the task of a container may get its signal, because no new
// clients are led to it and it has had time to take up the last ones. The managers know of no withdrawal then, so that other nodes
// are not waited for; they hear of it when this one does. A task that no other one can stand in for gets its signal at once, and so
// does one of a node that no manager hears. Call back when the container goes on after all.
func (a *Agent) Withdraw(ctx context.Context, container string) (back func()) {
	t := a.withContainer(container)
	if t == nil || !a.Status().Connected || !a.net.replaceable(t.id) {
		return func() {}
	}
	first := t.setLeft(true)
	limited, cancel := context.WithTimeout(ctx, withdrawalWait)
	defer cancel()
	a.net.awaitUnserved(limited, t.id)
	_, tpl, st := t.snapshot()
	if st.State != model.StateRunning {
		return func() {}
	}
	t.await(ctx, tpl.drainTime())
	return func() {
		if first {
			t.setLeft(false)
		}
	}
}

// withContainer is the task of a container, nil when the node has none.
func (a *Agent) withContainer(id string) *task {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.byID {
		if t.container == id {
			return t
		}
	}
	return nil
}

// await lets a time pass, if the task does not end before.
func (t *task) await(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.ended:
	case <-ctx.Done():
	}
}

// awaitUnserved returns when nobody is led to a task that has ended by itself, or after a while. Its network stays that long: it
// refuses connections at once, where an address without a network leaves clients to their time limits.
func (c *controller) awaitUnserved(ctx context.Context) {
	if !c.a.net.serves(c.t.id) {
		return
	}
	limited, cancel := context.WithTimeout(ctx, unservedWait)
	defer cancel()
	c.a.net.awaitUnserved(limited, c.t.id)
}

// drainTime is what the service asks for, or else the default.
func (t *template) drainTime() time.Duration {
	if t == nil {
		return defaultDrainTime
	}
	text, ok := t.msg.ServiceLabels[DrainTimeLabel]
	if !ok {
		return defaultDrainTime
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return defaultDrainTime // the managers refuse such a label; an older one may be there
	}
	return min(d, MaxDrainTime)
}

// pass answers a fence when the kernel leads to nothing any more that was taken back between it and the fence before. Other tables
// may be behind: what the kernel refuses of one network is no matter of a task in another.
func (s *session) pass(ctx context.Context, m *pb.Fence, back map[model.NetworkID]place) {
	limited, cancel := context.WithTimeout(ctx, withdrawalWait)
	defer cancel()
	if s.a.net.awaitPass(limited, back) {
		s.reply(ctx, &pb.FromAgent{Kind: &pb.FromAgent_Passed{Passed: &pb.Passed{Index: m.Index}}})
	}
}
