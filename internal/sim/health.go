package sim

import (
	"context"
	"errors"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

// checked reports whether an image has a health check: its containers are healthy after a while, and now and then
// they fail their checks, for a while or for good.
func checked(image string) bool { return behaviour(image) == imageChecked }

var errNotHealthyYet = errors.New("no check has succeeded yet")

// Healthy says whether the first check has succeeded.
func (t *task) Healthy(context.Context) (runtime.Exit, bool, error) {
	switch {
	case !checked(t.order.image):
		return runtime.Exit{}, true, nil
	case t.exited:
		return t.exit, false, nil
	case t.st.Health == model.HealthHealthy:
		return runtime.Exit{}, true, nil
	}
	return runtime.Exit{}, false, errNotHealthyYet
}

// check begins the checks of a container that has just started.
func (t *task) check() {
	w := t.n.w
	if !checked(t.order.image) {
		return
	}
	t.setHealth(model.HealthStarting)
	t.whileUp(w.between(100*ms, 6*second), func() {
		t.setHealth(model.HealthHealthy)
		t.drive()
		t.ail()
	})
}

// ail lets the checks of a healthy container fail some time.
func (t *task) ail() {
	w := t.n.w
	if !w.fault(w.cfg.trouble) {
		return
	}
	t.whileUp(w.between(second, 30*second), func() {
		t.setHealth(model.HealthFailing)
		t.whileUp(w.between(second, 10*second), func() {
			if w.fault(.5) {
				t.setHealth(model.HealthUnhealthy)
				t.kill("unhealthy container")
				return
			}
			t.setHealth(model.HealthHealthy)
			t.ail()
		})
	})
}

// whileUp does something after a while, if the container still runs then.
func (t *task) whileUp(d int64, do func()) {
	t.n.w.after(t.n.sender(), d, func() {
		if t.running {
			do()
		}
	})
}

// setHealth takes what the checks say. A daemon that does not run hears of it when it is back, which the simulator makes
// the same moment.
func (t *task) setHealth(h model.Health) {
	if t.st.Health = h; t.st.State >= model.StateStarting {
		t.n.mark(t.id)
	}
}
