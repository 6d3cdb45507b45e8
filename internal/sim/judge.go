package sim

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// judge watches the laws. It sees every agreed entry with the state before and after it, keeps its own
// books, and believes nothing that the code under test says of itself.
type judge struct {
	w     *world
	addrs map[netip.Addr]model.TaskID // of tasks that are not dead
	rests map[netip.Addr]rest         // addresses that were freed
	freed map[model.NodeID]netip.Addr // the last one on a node

	bases  map[[16]byte]*state.Snapshot  // what plans were computed from, by their batches
	rolled map[model.TaskID]bool         // tasks by which a rollout replaced others
	chain  map[model.TaskID][]model.Time // restarts that led to a task

	dropped map[model.TaskID]bool // tasks that were held back, and then not wanted any more: no attempts

	downAt map[model.NodeID]model.Time // since when nodes are down by the log

	waiting map[model.ServiceID]*gate // services that depend on others

	passes, batches int // of leaders, so far
}

func newJudge(w *world) *judge {
	return &judge{w: w, addrs: map[netip.Addr]model.TaskID{}, rests: map[netip.Addr]rest{}, freed: map[model.NodeID]netip.Addr{},
		bases: map[[16]byte]*state.Snapshot{}, rolled: map[model.TaskID]bool{}, chain: map[model.TaskID][]model.Time{},
		dropped: map[model.TaskID]bool{},
		downAt:  map[model.NodeID]model.Time{}, waiting: map[model.ServiceID]*gate{}}
}

// step is one agreed entry.
type step struct {
	before, after *state.Snapshot
	base          *state.Snapshot // what a plan was computed from, nil for what is no plan
	batch         *model.Batch
	now           model.Time // of whoever made the batch
	put           []*model.Task
}

// committed judges an entry of the log.
func (j *judge) committed(before, after *state.Snapshot, b *model.Batch, out *model.Outcome) {
	if out.Repeated {
		return
	}
	s := &step{before: before, after: after, base: j.bases[b.ID], batch: b, now: max(b.Time, before.Time())}
	delete(j.bases, b.ID)
	if after.Time() < before.Time() {
		j.w.fail("law: cluster time never goes back: %d after %d", after.Time(), before.Time())
	}
	j.basis(s, out)
	seen := map[model.Key]bool{}
	services := map[model.ServiceID]bool{}
	for _, k := range out.Touched {
		if seen[k] {
			continue
		}
		seen[k] = true
		switch k.Kind {
		case model.KindTask:
			services[model.ServiceID(k.A)] = true
			j.task(s, k.Task())
		case model.KindService:
			services[k.Service()] = true
			j.ports(s)
		case model.KindNode:
			j.node(s, k.Node())
		}
	}
	if after.NumNetworks() > 0 && len(seen) > 0 {
		j.nets(s)
	}
	j.brake(s)
	j.gates(s)
	for _, id := range sortedKeys(services) {
		j.slots(s, id)
		j.takenDown(s, id)
	}
	if len(s.put) > 0 {
		j.attempts(s)
		j.parallelism(s)
	}
}

// task judges one touched task.
func (j *judge) task(s *step, id model.TaskID) {
	b, a := s.before.Task(id), s.after.Task(id)
	switch {
	case a == nil && b == nil:
		return
	case a == nil:
		if n := s.before.Node(b.Node); booked(b) && n != nil {
			j.w.fail("law: a task is deleted when nothing of it is left: %s was deleted while %s on node %d", short(id), b.State, b.Node)
		}
	case b == nil:
		s.put = append(s.put, a)
		j.dropped[id] = a.Desired > model.StateRunning
	default:
		if b.Desired < model.StateRunning && a.Desired > model.StateRunning && !a.State.Terminal() {
			j.dropped[id] = true
		}
		if b.State != a.State && !model.CanMove(b.State, a.State) {
			j.w.fail("law: a state never goes back: %s went from %s to %s", short(id), b.State, a.State)
		}
		if a.Desired < b.Desired {
			j.w.fail("law: the desired state never goes back: %s went from %s to %s", short(id), b.Desired, a.Desired)
		}
		if b.Node != 0 && b.State >= model.StateAssigned && (a.Node != b.Node || a.Gateway4 != b.Gateway4) {
			j.w.fail("law: a task is placed once: %s moved from node %d to %d", short(id), b.Node, a.Node)
		}
	}
	if a != nil && a.Desired == model.StateRunning && (b == nil || b.Desired < model.StateRunning) {
		j.letGo(s, a)
	}
	switch was, is := b != nil && booked(b), a != nil && booked(a); {
	case was && !is:
		j.free(s, b)
	case is && !was:
		j.place(s, a)
	}
}

// basis judges that a plan is carried out only on what it was computed from, whatever its guards say:
// nothing that it writes, and no spec of a service that it plans, has changed since.
func (j *judge) basis(s *step, out *model.Outcome) {
	if s.base == nil {
		return
	}
	for i := range s.batch.Txns {
		for c := range s.batch.Txns[i].Changes {
			change := &s.batch.Txns[i].Changes[c]
			k, g, ok := state.Writes(change)
			if !ok || out.Results[i] != nil || change.SetNodeBlocks != nil {
				continue
			}
			was, _ := s.base.Version(k, g)
			is, _ := s.before.Version(k, g)
			if k.Kind == model.KindTask && was == is {
				spec := model.ServiceKey(model.ServiceID(k.A))
				was, _ = s.base.Version(spec, model.GroupSpec)
				is, _ = s.before.Version(spec, model.GroupSpec)
			}
			if was != is {
				j.w.fail("law: a change is made only on what it was computed from: %s, computed at version %d, was made at %d", describeChange(change), was, is)
				return
			}
		}
	}
}

// booked reports whether a task uses its node.
func booked(t *model.Task) bool {
	return t.Node != 0 && t.State >= model.StateAssigned && !t.State.Terminal()
}

func (j *judge) free(s *step, t *model.Task) {
	if !t.Gateway4.IsValid() {
		return
	}
	if j.addrs[t.Gateway4] == t.ID {
		delete(j.addrs, t.Gateway4)
	}
	j.rests[t.Gateway4] = rest{since: s.after.Time(), task: t.ID}
	j.freed[t.Node] = t.Gateway4
}

// rest is when an address was freed, and by whom.
type rest struct {
	since  model.Time
	task   model.TaskID
	unsure bool // it may have rested for longer
}

const quarantine = model.Time(time.Minute)

// place judges that a task got what nobody else has.
func (j *judge) place(s *step, t *model.Task) {
	n := s.after.Node(t.Node)
	if n == nil {
		j.w.fail("law: a task is placed on a node that exists: %s on %d", short(t.ID), t.Node)
		return
	}
	if !t.Gateway4.IsValid() {
		j.w.fail("law: a placed task has an address: %s", short(t.ID))
		return
	}
	if o, ok := j.addrs[t.Gateway4]; ok {
		j.w.fail("law: no address is given twice: %s of %s was given to %s", t.Gateway4, short(o), short(t.ID))
	}
	j.addrs[t.Gateway4] = t.ID
	for o := range s.after.Nodes() {
		for _, b := range o.Blocks {
			if b.Contains(t.Gateway4) && o.ID != t.Node {
				j.w.fail("law: an address comes from the node's own block: %s on node %d has %s of node %d", short(t.ID), t.Node, t.Gateway4, o.ID)
			}
		}
	}
	if r, ok := j.rests[t.Gateway4]; ok && !r.unsure && s.now-r.since < quarantine && j.others(s, n).IsValid() {
		j.w.fail("law: a freed address rests for a minute while others are free: %s, freed by %s %s ago, was given to %s, and %s was free",
			t.Gateway4, short(r.task), time.Duration(s.now-r.since), short(t.ID), j.others(s, n))
	}
	j.room(s, t)
	var mem, cpu int64
	for o := range s.after.TasksOnNode(t.Node) {
		if booked(o) {
			m, c := reserved(s.after, o)
			mem, cpu = mem+m, cpu+c
		}
	}
	j.generic(s, t, n)
	if have := n.Description.Resources; mem > have.MemoryBytes || cpu > have.NanoCPUs {
		j.w.fail("law: no memory and no processor is sold twice: node %d has %d bytes and %d nanocpus, and gave %d and %d", t.Node, have.MemoryBytes, have.NanoCPUs, mem, cpu)
	}
}

// room judges that a node has no more of a service's tasks than it may, and no published port twice.
func (j *judge) room(s *step, t *model.Task) {
	svc, tpl := s.after.Service(t.ID.Service), s.after.Template(t.Template)
	same := 0
	for o := range s.after.TasksOnNode(t.Node) {
		if !booked(o) || o.Desired > model.StateRunning {
			continue
		}
		if o.ID.Service == t.ID.Service {
			same++
		}
		other := s.after.Template(o.Template)
		if o.ID == t.ID || tpl == nil || other == nil {
			continue
		}
		for _, p := range tpl.HostPorts {
			for _, q := range other.HostPorts {
				if p.PublishedPort == q.PublishedPort && p.PublishedPort != 0 {
					j.w.fail("law: no port is given twice: %d on node %d is of %s and %s", p.PublishedPort, t.Node, short(o.ID), short(t.ID))
				}
			}
		}
	}
	if svc == nil || svc.Spec().TaskTemplate.Placement == nil || svc.Spec().Mode.Replicated == nil {
		return
	}
	if most := svc.Spec().TaskTemplate.Placement.MaxReplicas; most > 0 && same > int(most) {
		j.w.fail("law: a node has no more replicas than it may: node %d has %d of service %d, allowed are %d", t.Node, same, t.ID.Service, most)
	}
}

func reserved(s *state.Snapshot, t *model.Task) (mem, cpu int64) {
	tpl := s.Template(t.Template)
	if tpl == nil || tpl.Task.Typed.Resources == nil || tpl.Task.Typed.Resources.Reservations == nil {
		return 0, 0
	}
	r := tpl.Task.Typed.Resources.Reservations
	return r.MemoryBytes, r.NanoCPUs
}

// others is an address of the node that is neither taken nor at rest; invalid when there is none. What the same batch
// gave in a transaction that was refused was taken for whoever planned it.
func (j *judge) others(s *step, n *model.Node) netip.Addr {
	planned := map[netip.Addr]bool{}
	for i := range s.batch.Txns {
		for _, c := range s.batch.Txns[i].Changes {
			switch {
			case c.SetTaskPlace != nil:
				planned[c.SetTaskPlace.Gateway4] = true
			case c.PutTask != nil:
				planned[c.PutTask.Gateway4] = true
			case c.PutTasks != nil:
				for _, t := range c.PutTasks.Tasks {
					planned[t.Gateway4] = true
				}
			}
		}
	}
	for _, b := range n.Blocks {
		for a := b.Masked().Addr().Next().Next(); b.Contains(a.Next()); a = a.Next() {
			// By the time of the plan, which reached the log later.
			if r, ok := j.rests[a]; !s.after.AddrInUse(a) && !planned[a] && (!ok || s.batch.Time-r.since >= quarantine) {
				return a
			}
		}
	}
	return netip.Addr{}
}

// ports judges that no ingress port belongs to two services.
func (j *judge) ports(s *step) {
	owner := map[uint32]model.ServiceID{}
	for svc := range s.after.Services() {
		for _, p := range svc.Ports {
			if p.PublishMode == swarm.PortConfigPublishModeHost {
				continue // of a node, not of the swarm
			}
			if o, ok := owner[p.PublishedPort]; ok && p.PublishedPort != 0 && o != svc.ID {
				j.w.fail("law: no port is given twice: %d is of services %d and %d", p.PublishedPort, o, svc.ID)
			}
			owner[p.PublishedPort] = svc.ID
		}
	}
}

// replicated compares a replica with the first that was at the same index.
func (j *judge) replicated(m *member) {
	const every = 16
	if m.snap.Index()%every == 0 {
		j.compare(m)
	}
}

func (j *judge) compare(m *member) {
	e := &j.w.log.entries[m.snap.Index()-1]
	h := hashOf(j.encode(m.snap))
	if e.hash == 0 {
		e.hash = h
		j.w.trace.mix(h)
	} else if e.hash != h {
		j.w.fail("law: replicas are equal at equal index: manager %d differs at index %d", m.id, m.snap.Index())
	}
}

func (j *judge) encode(s *state.Snapshot) []byte {
	var buf bytes.Buffer
	if err := s.Encode(&buf); err != nil {
		j.w.fail("a snapshot cannot be encoded: %v", err)
	}
	return buf.Bytes()
}

// planned judges a pass of the leader: when it found nothing to do, neither must one that looks at
// everything, and that one must not want to be asked again before.
func (j *judge) planned(m *member, plan []*model.Batch) {
	j.passes++
	j.batches += len(plan)
	const settles = model.Time(100 * time.Millisecond) // a refused transaction rests before it is planned again
	if len(plan) > 0 || len(m.watch) > 0 || m.now()-m.refused < settles || j.w.mut.lies() {
		return
	}
	full := m.planner.Afresh(m.snap)
	if missed := full.Plan(m.snap, m.now(), m.clock()); !onlyReasons(m.snap, missed) {
		out := &model.Outcome{Results: make([]error, len(missed[0].Txns))}
		j.w.fail("law: planning what was touched is planning everything: a pass found nothing to do, a full one does%s", describe(missed[0], out))
		return
	}
	if have, want := m.planner.Wait(m.now(), m.clock()), full.Wait(m.now(), m.clock()); have > want && want > 0 {
		j.w.fail("law: planning what was touched is planning everything: a pass wants to be asked again in %s, a full one in %s", have, want)
	}
}

// onlyReasons reports whether a plan does nothing but word anew why tasks wait. A reason may be as old as
// the last time that something was freed: whoever takes capacity does not wake those who wait for it.
func onlyReasons(s *state.Snapshot, plan []*model.Batch) bool {
	for _, b := range plan {
		for i := range b.Txns {
			for _, c := range b.Txns[i].Changes {
				if c.SetTaskStatus == nil || c.SetTaskStatus.State != model.StatePending || s.Task(c.SetTaskStatus.Task).State != model.StatePending {
					return false
				}
			}
		}
	}
	return true
}

// started judges a container that starts: its manager wanted it to.
func (j *judge) started(t *task) {
	if t.desired != model.StateRunning {
		j.w.fail("law: a container starts only when its task is desired running: %s is desired %s", short(t.id), t.desired)
	}
}
