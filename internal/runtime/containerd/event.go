package containerd

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/skep-swarm/skep/internal/runtime"
)

// notify tells what happened to a container.
func (r *Runtime) notify(action runtime.Action, c runtime.Container, sig syscall.Signal, at time.Time) {
	if r.cfg.Notify != nil {
		r.cfg.Notify(runtime.Event{Action: action, Container: c, Signal: sig, At: at})
	}
}

// tell tells what happens to the unit's container now.
func (u *unit) tell(action runtime.Action, sig syscall.Signal) {
	if c, ok := u.describe(); ok {
		u.r.notify(action, c, sig, time.Now())
	}
}

// tellExit tells of a container's end at the time of the end.
func (u *unit) tellExit() {
	c, ok := u.describe()
	if !ok {
		return
	}
	at := c.Exit.At
	if at.IsZero() {
		at = time.Now()
	}
	if c.Exit.OOMKilled {
		u.r.notify(runtime.ActionOOM, c, 0, at)
	}
	u.r.notify(runtime.ActionDie, c, 0, at)
}

// Container is one container of List, or runtime.ErrNotFound.
func (r *Runtime) Container(ctx context.Context, id string) (runtime.Container, error) {
	if err := r.await(ctx); err != nil {
		return runtime.Container{}, err
	}
	if u := r.unit(id, false); u != nil {
		if c, ok := u.describe(); ok {
			return c, nil
		}
	}
	return runtime.Container{}, fmt.Errorf("%w: %s", runtime.ErrNotFound, id)
}
