package schedule

import (
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// A node on which a service failed this often within the window is filled last.
const (
	maxFailures   = 5
	failureWindow = model.Time(5 * time.Minute)
)

// counts are one service's tasks per node. The columns are reused from service to service; only
// rows that were written are cleared.
type counts struct {
	tasks    []int32 // alive and wanted, those that this pass placed included
	failures []int32 // recent, of the group's template
	dirty    []int   // rows of tasks
	failed   []failure
}

type failure struct {
	row      int
	template model.TemplateID
}

// size makes room for n nodes.
func (c *counts) size(n int) {
	c.clear()
	if len(c.tasks) != n {
		c.tasks, c.failures = make([]int32, n), make([]int32, n)
	}
}

func (c *counts) add(i int, k int32) {
	c.tasks[i] += k
	c.dirty = append(c.dirty, i)
}

// clear forgets the last service.
func (c *counts) clear() {
	for _, i := range c.dirty {
		c.tasks[i] = 0
	}
	for _, f := range c.failed {
		c.failures[f.row] = 0
	}
	c.dirty, c.failed = c.dirty[:0], c.failed[:0]
}

// load counts a service's tasks and notes its recent failures.
func (c *counts) load(snap *state.Snapshot, nodes *columns, svc model.ServiceID, now model.Time) {
	for t := range snap.Tasks(svc) {
		if t.Node == 0 {
			continue
		}
		i, ok := nodes.row(t.Node)
		if !ok {
			continue
		}
		switch {
		case !t.State.Terminal():
			if t.Desired <= model.StateRunning && t.State >= model.StateAssigned {
				c.add(i, 1)
			}
		case t.State == model.StateFailed || t.State == model.StateRejected:
			if now-t.StatusAt < failureWindow {
				c.failed = append(c.failed, failure{i, t.Template})
			}
		}
	}
}

// judge counts the failures of one template: those of another are no reason to avoid a node.
func (c *counts) judge(template model.TemplateID) {
	for _, f := range c.failed {
		c.failures[f.row] = 0
	}
	for _, f := range c.failed {
		if f.template == template {
			c.failures[f.row]++
		}
	}
}

// penalty sorts nodes before anything else: 0, or the failures when they are too many.
func (c *counts) penalty(i int) int32 {
	if c.failures[i] >= maxFailures {
		return c.failures[i]
	}
	return 0
}
