package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/raftlog"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
)

// Source is this manager's copy of the state; *replica.Replica is one.
type Source interface {
	Snapshot() *state.Snapshot
	WaitIndex(ctx context.Context, index uint64) (*state.Snapshot, error)
	Watch() (*state.Snapshot, *replica.Watch)
}

// Config is what a Manager needs.
type Config struct {
	State    Source
	Proposer *Proposer
	// Leadership tells when this member begins and ceases to lead.
	Leadership <-chan raftlog.Leadership
	// LeasePeriod is how long a node may be silent before it counts as down.
	LeasePeriod func() time.Duration
	Log         *slog.Logger
}

// Manager runs the loop while this member leads.
type Manager struct {
	cfg    Config
	leases chan leaseEvent
}

// maxLeaseEvents is far more than nodes can come and go while the loop is busy.
const maxLeaseEvents = 1 << 16

// New makes a Manager. It starts nothing.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, leases: make(chan leaseEvent, maxLeaseEvents)}
}

// Run follows leadership until ctx ends; then it returns nil.
func (m *Manager) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case l := <-m.cfg.Leadership:
			for l.Leader {
				next, err := m.term(ctx, l)
				if err != nil {
					return err
				}
				l = next
			}
		}
	}
}

// term leads until leadership changes, and returns that change.
func (m *Manager) term(ctx context.Context, l raftlog.Leadership) (raftlog.Leadership, error) {
	lead, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- m.lead(lead, l) }()
	select {
	case next := <-m.cfg.Leadership:
		cancel(errLost)
		<-done
		return next, nil
	case err := <-done:
		if ctx.Err() != nil || err == nil {
			return raftlog.Leadership{}, nil
		}
		return raftlog.Leadership{}, fmt.Errorf("lead the swarm: %w", err)
	}
}

var errLost = errors.New("leadership was lost")

// backOff is the pause after a pass whose proposals did not get through: the disk is full, or
// no majority answers. It doubles up to the second number.
const (
	backOff    = 20 * time.Millisecond
	maxBackOff = 2 * time.Second
)

// lead runs passes until ctx ends.
func (m *Manager) lead(ctx context.Context, l raftlog.Leadership) error {
	if _, err := m.cfg.State.WaitIndex(ctx, l.Index); err != nil {
		return err
	}
	snap, watch := m.cfg.State.Watch()
	defer watch.Close()
	p := NewPlanner(snap, time.Now(), m.cfg.LeasePeriod, m.cfg.Log)
	pause := time.Duration(0)
	var c Clock
	for {
		wake := sleep(p, pause, c.now(time.Now(), m.cfg.State.Snapshot().Time()))
		select {
		case <-ctx.Done():
			wake.Stop()
			return nil
		case <-watch.Ready():
			for _, a := range watch.Take() {
				p.Applied(a)
			}
			if pause > 0 {
				// Something moved, but the log refused the last batch: do not spin.
				select {
				case <-wake.C:
				case <-ctx.Done():
				}
			}
		case e := <-m.leases:
			p.event(e)
		case <-wake.C:
		}
		wake.Stop()
		err := m.pass(ctx, p, &c)
		switch {
		case err == nil:
			pause = 0
		case ctx.Err() != nil:
			return nil
		default:
			m.cfg.Log.Warn("planning did not get into the log; trying again", "err", err)
			pause = min(max(2*pause, backOff), maxBackOff)
		}
	}
}

// sleep is a timer for the next time that something is due. While work is left over from a failed
// pass it is due after pause.
func sleep(p *Planner, pause time.Duration, now model.Time) *time.Timer {
	if pause > 0 {
		return time.NewTimer(pause)
	}
	return time.NewTimer(p.Wait(now, time.Now()))
}

// Clock is the swarm's time on a leader. The state's time never goes back, so a host whose clock was ahead and
// was put right would stand still in it until the clock catches up, and every restart and rollout with it: delays count from
// the state's time. So the swarm's time goes on by what has really passed since it was last looked at. The zero
// value is ready; not safe for concurrent use.
type Clock struct {
	at   model.Time
	read time.Time
}

// Now is the swarm's time, not before the state's and not before an earlier answer. wall and clock are as Plan takes
// them: what the host's clock says, and the same moment on one that does not jump.
func (c *Clock) Now(wall model.Time, clock time.Time, state model.Time) model.Time {
	at := max(wall, state)
	if !c.read.IsZero() {
		at = max(at, c.at+model.Time(clock.Sub(c.read)))
	}
	c.at, c.read = at, clock
	return at
}

// now reads the host's clock; its monotonic part does not jump.
func (c *Clock) now(host time.Time, state model.Time) model.Time {
	return c.Now(model.Time(host.UnixNano()), host, state)
}

// pass plans what is dirty and proposes it. After an error everything that was planned is dirty again.
func (m *Manager) pass(ctx context.Context, p *Planner, c *Clock) error {
	snap, host := m.cfg.State.Snapshot(), time.Now()
	for _, b := range p.Plan(snap, c.now(host, snap.Time()), host) {
		out, err := m.cfg.Proposer.Propose(ctx, b)
		if err != nil {
			p.Failed()
			return err
		}
		p.Took(b, out)
	}
	return nil
}
