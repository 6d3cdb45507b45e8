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
	// unservedWait bounds how long a task's network outlives it.
	unservedWait = time.Second
	// DrainTimeLabel is a service's label: how long a task that served goes on after it was withdrawn, before its stop signal. What
	// reached it in the last moment is taken up meanwhile; many programs refuse new connections from their stop signal on.
	DrainTimeLabel   = "skep.drain-time"
	defaultDrainTime = 500 * time.Millisecond
	// MaxDrainTime bounds the label.
	MaxDrainTime = time.Hour
)

// withdrawn is up to which index the managers said that no node sends new clients to the tasks that were told to stop. Safe for
// concurrent use.
type withdrawn struct {
	mu      sync.Mutex
	index   uint64
	changed chan struct{}
}

func newWithdrawn() *withdrawn { return &withdrawn{changed: make(chan struct{})} }

func (w *withdrawn) set(index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.index = index
	close(w.changed)
	w.changed = make(chan struct{})
}

// await returns when the index is reached, or ctx ends.
func (w *withdrawn) await(ctx context.Context, index uint64) {
	for {
		w.mu.Lock()
		reached, changed := w.index >= index, w.changed
		w.mu.Unlock()
		if reached {
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
