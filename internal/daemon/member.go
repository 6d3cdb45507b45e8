package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// member is this node's place in a swarm: none, or one that is active. It owns the member layer.
type member struct {
	h      *host
	starts chan *active

	mu      sync.Mutex
	current *active       // nil while in no swarm
	busy    bool          // a swarm is being made or left
	moved   chan struct{} // closed and replaced when current changes
}

// newMember finds out whether this node is in a swarm.
func newMember(h *host) (*member, error) {
	m := &member{h: h, starts: make(chan *active, 1), moved: make(chan struct{})}
	id, err := loadIdentity(h.cfg)
	if err != nil || id == nil {
		return m, err
	}
	if id.Founding {
		// The swarm was never ready, so nobody was told that it exists.
		h.log.Warn("the making of a swarm was cut short; this node is in none")
		return m, forgetSwarm(h.cfg)
	}
	a, err := newActive(h, id, false)
	if err != nil {
		return nil, err
	}
	m.current = a
	m.starts <- a
	return m, nil
}

// Run runs the node's part in whatever swarm it is in, until ctx ends. It fails when the log or
// another part cannot go on; a swarm that was left on purpose is no failure.
func (m *member) Run(ctx context.Context) error {
	if m.active() == nil {
		// What a swarm that was left in a hurry (a crash in between) has left behind.
		if err := m.h.clear(ctx); err != nil && ctx.Err() == nil {
			m.h.log.Warn("clean up after a swarm that was left", "err", err)
		}
	}
	// The layer below must stay while a node leaves: tasks are being stopped.
	defer m.awaitChange()
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-m.starts:
			if err := a.run(ctx); err != nil {
				return err
			}
		}
	}
}

// changeGrace is how long a daemon that ends waits for a node that is just leaving its swarm; what is not
// done by then is done by the next start.
const changeGrace = 12 * time.Second

// awaitChange waits, not for ever, until no swarm is being made or left.
func (m *member) awaitChange() {
	for deadline := time.Now().Add(changeGrace); time.Now().Before(deadline); {
		m.mu.Lock()
		busy := m.busy
		m.mu.Unlock()
		if !busy {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *member) active() *active {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current
}

func (m *member) set(a *active) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.current = a
	close(m.moved)
	m.moved = make(chan struct{})
}

// begin reserves the change of membership for one caller.
func (m *member) begin() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy {
		return model.Errorf(model.Unavailable, "this node is just joining or leaving a swarm: try again in a moment")
	}
	m.busy = true
	return nil
}

func (m *member) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy = false
}

// manager is the active part if this node can answer for the swarm, or Docker's error.
func (m *member) manager() (*active, error) {
	a := m.active()
	if a == nil {
		return nil, model.Errorf(model.Unavailable, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	}
	if !a.id.Manager {
		return nil, model.Errorf(model.Unavailable, "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.")
	}
	return a, nil
}

// initTimeout bounds the making of a swarm.
const initTimeout = 20 * time.Second

// InitSwarm makes a swarm of this node. When it fails nothing of the swarm is left.
func (m *member) InitSwarm(ctx context.Context, req swarm.InitRequest) (string, error) {
	if err := m.begin(); err != nil {
		return "", err
	}
	defer m.end()
	if m.active() != nil {
		return "", model.Errorf(model.Unavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`)
	}
	found, err := m.h.found(req)
	if err != nil {
		return "", err
	}
	a, err := newActive(m.h, found.id, true)
	if err != nil {
		return "", errors.Join(err, forgetSwarm(m.h.cfg))
	}
	m.set(a)
	m.starts <- a
	ctx, cancel := context.WithTimeoutCause(ctx, initTimeout, errors.New("the new swarm did not become ready in time"))
	defer cancel()
	err = found.write(ctx, a)
	if err == nil {
		err = a.awaitReady(ctx)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("make the swarm: %w", err), m.drop(context.WithoutCancel(ctx), a))
	}
	return found.id.NodeID, nil
}

// LeaveSwarm stops this node's tasks and forgets the swarm.
func (m *member) LeaveSwarm(ctx context.Context, force bool) error {
	if err := m.begin(); err != nil {
		return err
	}
	defer m.end()
	a := m.active()
	if a == nil {
		return model.Errorf(model.Unavailable, "This node is not part of a swarm")
	}
	if a.id.Manager && !force {
		return model.Errorf(model.Unavailable, "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message.")
	}
	// A client that goes away does not leave the node half out.
	return m.drop(context.WithoutCancel(ctx), a)
}

// leaveTimeout bounds the stop of all tasks; their grace periods count.
const leaveTimeout = 5 * time.Minute

func (m *member) drop(ctx context.Context, a *active) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	a.stop()
	<-a.done
	err := errors.Join(a.agent.Forget(ctx), m.h.clear(ctx), forgetSwarm(m.h.cfg))
	m.set(nil)
	if err != nil {
		return fmt.Errorf("leave the swarm: %w", err)
	}
	return nil
}
