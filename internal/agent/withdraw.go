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
	timer := time.NewTimer(tpl.drainTime())
	defer timer.Stop()
	select {
	case <-timer.C:
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
