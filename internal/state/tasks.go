package state

import (
	"github.com/skep-swarm/skep/internal/model"
)

func (w *writer) putTask(c *model.Task) error {
	if c.ID.Service == 0 || c.ID.Num == 0 || w.s.Task(c.ID) != nil {
		return model.Conflictf("task %d of service %d exists", c.ID.Num, c.ID.Service)
	}
	v := w.s.Service(c.ID.Service)
	if v == nil {
		return model.NotFoundf("service %s not found", w.s.name(model.ServiceKey(c.ID.Service)))
	}
	if c.ID.Num <= v.LastTask {
		return model.Conflictf("task number %d of service %s was given before", c.ID.Num, v.Name())
	}
	t := *c
	t.CreatedAt, t.StatusAt = w.now, w.now
	t.PlaceVer, t.DesiredVer, t.StatusVer = w.stamp(1), w.stamp(1), w.stamp(1)
	if err := w.claimPlace(&t); err != nil {
		return err
	}
	if t.Node != 0 {
		w.s.list(&t)
	}
	w.s.tasks.Set(at(&t))
	n := *v
	n.LastTask = t.ID.Num
	w.s.services.Set(n.ID, &n)
	w.touch(model.TaskKey(t.ID))
	return nil
}

// editTask copies a task, lets f change the copy, and keeps what depends on whether the task
// still uses its node in step.
func (w *writer) editTask(id model.TaskID, f func(*model.Task) error) error {
	old := w.s.Task(id)
	if old == nil {
		return model.NotFoundf("task %s not found", w.s.name(model.TaskKey(id)))
	}
	t := *old
	if err := f(&t); err != nil {
		return err
	}
	if placed(old) && !placed(&t) {
		w.releasePlace(old)
	}
	w.s.tasks.Set(at(&t))
	w.touch(model.TaskKey(id))
	return nil
}

func (w *writer) setTaskDesired(c *model.TaskDesiredSet) error {
	return w.editTask(c.Task, func(t *model.Task) error {
		if c.Desired < t.Desired {
			return model.Stalef("task %s: desired state cannot go back from %s to %s", w.s.name(model.TaskKey(c.Task)), t.Desired, c.Desired)
		}
		t.Desired, t.StartAt = c.Desired, c.StartAt
		t.DesiredVer = w.stamp(t.DesiredVer)
		return nil
	})
}

func (w *writer) setTaskPlace(c *model.TaskPlaceSet) error {
	if w.s.Node(c.Node) == nil {
		return model.NotFoundf("node %s not found", w.s.name(model.NodeKey(c.Node)))
	}
	return w.editTask(c.Task, func(t *model.Task) error {
		if t.State >= model.StateAssigned {
			return model.Stalef("task %s is %s already", w.s.name(model.TaskKey(c.Task)), t.State)
		}
		t.Node, t.Gateway4, t.Gateway6, t.Generic, t.Nets = c.Node, c.Gateway4, c.Gateway6, c.Generic, c.Nets
		t.State, t.Message, t.Err, t.StatusAt = model.StateAssigned, c.Message, "", w.now
		t.PlaceVer, t.StatusVer = w.stamp(t.PlaceVer), w.stamp(t.StatusVer)
		return w.claimPlace(t)
	})
}

// placed reports whether a task uses its node. A global service's task has its node from the start,
// but books nothing before it is assigned.
func placed(t *model.Task) bool {
	return t.Node != 0 && t.State >= model.StateAssigned && !t.State.Terminal()
}

// claimPlace books a placed task's address and reservations. It is the last guard: whatever the
// planner thought, no address and no memory is given twice.
func (w *writer) claimPlace(t *model.Task) error {
	if !placed(t) {
		return nil
	}
	n := w.s.Node(t.Node)
	if n == nil {
		return model.NotFoundf("node %s not found", w.s.name(model.NodeKey(t.Node)))
	}
	load, sh := w.s.Load(t.Node), w.share(t)
	if err := load.fits(n, &sh); err != nil {
		return err
	}
	if err := ownAddress(n, t.Gateway4); err != nil {
		return err
	}
	if err := w.checkNets(t.Nets); err != nil {
		return err
	}
	if t.Gateway4.IsValid() {
		if w.s.AddrInUse(t.Gateway4) {
			return model.Stalef("address %s is in use", t.Gateway4)
		}
		w.s.addrs.add(addrKey(t.Gateway4))
	}
	w.claimNets(t.ID, t.Nets)
	load.add(&sh)
	w.s.loads.Set(t.Node, load)
	w.s.list(t)
	return nil
}

// releasePlace gives back what a task had booked; it stays listed on its node as history.
func (w *writer) releasePlace(t *model.Task) {
	load := w.s.Load(t.Node)
	sh := w.share(t)
	load.remove(&sh)
	if load.Tasks == 0 {
		w.s.loads.Delete(t.Node)
	} else {
		w.s.loads.Set(t.Node, load)
	}
	w.freeAddr(t)
	w.releaseNets(t)
}

func (w *writer) setTaskStatus(c *model.TaskStatusSet) error {
	return w.editTask(c.Task, func(t *model.Task) error {
		if c.State != t.State && !model.CanMove(t.State, c.State) {
			return model.Stalef("task %s: state cannot go from %s to %s", w.s.name(model.TaskKey(c.Task)), t.State, c.State)
		}
		t.State, t.Message, t.Err, t.StatusAt = c.State, c.Message, c.Err, w.now
		t.StatusVer = w.stamp(t.StatusVer)
		return nil
	})
}

func (w *writer) deleteTask(id model.TaskID) error {
	t := w.s.Task(id)
	if t == nil {
		return model.NotFoundf("task %s not found", w.s.name(model.TaskKey(id)))
	}
	if placed(t) {
		w.releasePlace(t)
	}
	w.s.tasks.Delete(at(t))
	if t.Node != 0 {
		w.s.unlist(t)
	}
	w.touch(model.TaskKey(id))
	if next, ok := w.s.NextServiceWithTasks(id.Service); w.s.Service(id.Service) == nil && (!ok || next != id.Service) {
		w.pruneTemplates(id.Service)
	}
	return nil
}

// report takes what a node says of its tasks. A report from before the last one that was applied
// has been superseded; a task that is gone or on another node is passed over.
func (w *writer) report(c *model.Report) error {
	n := w.s.Node(c.Node)
	if n == nil {
		return model.NotFoundf("node %s not found", w.s.name(model.NodeKey(c.Node)))
	}
	if c.Session < n.Session || c.Session == n.Session && c.Seq <= n.Seq {
		return model.Stalef("report %d of session %d has been superseded", c.Seq, c.Session)
	}
	if err := w.editReported(c); err != nil {
		return err
	}
	for i := range c.Tasks {
		r := &c.Tasks[i]
		t := w.s.Task(r.Task)
		if t == nil || t.Node != c.Node || r.State > model.StateRejected {
			continue
		}
		if t.State == r.State && t.Health != r.Health {
			if err := w.editTask(r.Task, func(t *model.Task) error { w.takeHealth(t, r); return nil }); err != nil {
				return err
			}
		}
		if !model.CanMove(t.State, r.State) {
			continue
		}
		if err := w.editTask(r.Task, func(t *model.Task) error { return w.takeReport(t, r) }); err != nil {
			return err
		}
	}
	return nil
}

// editReported notes the report's place in its session without touching the node: nobody
// plans or shows anything because of it.
func (w *writer) editReported(c *model.Report) error {
	n := *w.s.Node(c.Node)
	n.Session, n.Seq = c.Session, c.Seq
	w.s.nodes.Set(n.ID, &n)
	return nil
}

// takeHealth notes another health of a task whose state stays: its times do too.
func (w *writer) takeHealth(t *model.Task, r *model.TaskReport) {
	t.Health = r.Health
	t.StatusVer = w.stamp(t.StatusVer)
}

func (w *writer) takeReport(t *model.Task, r *model.TaskReport) error {
	t.State, t.Message, t.Err, t.StatusAt = r.State, r.Message, r.Err, w.now
	t.StatusVer = w.stamp(t.StatusVer)
	if r.PID != 0 {
		t.PID = r.PID
	}
	if r.HostPorts != nil {
		t.HostPorts = r.HostPorts
	}
	t.ExitCode, t.Health = r.ExitCode, r.Health
	if r.State == model.StateRunning {
		t.RunningSince = w.now
	}
	return nil
}
