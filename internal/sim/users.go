package sim

import (
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/state"
)

// maxServices bounds what users make.
const maxServices = 6

// users are people with API clients at any manager: each write is computed from what that manager
// knows and guarded by it.
type users struct {
	w     *world
	names uint64
}

func (u *users) begin() {
	u.later(u.w.between(10*ms, second))
}

func (u *users) later(d int64) {
	u.w.after(senderUser, d, func() {
		if u.w.now > u.w.cfg.chaos || u.w.healing {
			return
		}
		u.act()
		u.later(int64(u.w.rng.ExpFloat64()*float64(u.w.cfg.users)) + ms)
	})
}

// member is some manager that serves the API.
func (u *users) member() *member {
	m := u.w.members[u.w.rng.IntN(len(u.w.members))]
	if !m.alive {
		return nil
	}
	return m
}

func (u *users) act() {
	m := u.member()
	if m == nil || m.snap.Cluster() == nil {
		return
	}
	var ids []model.ServiceID
	for s := range m.snap.Services() {
		ids = append(ids, s.ID)
	}
	w := u.w
	pick := w.rng.IntN(100)
	if len(ids) == 0 || pick < 12 && len(ids) < maxServices {
		u.create(m)
		return
	}
	id := ids[w.rng.IntN(len(ids))]
	switch {
	case w.chance(.05), m.snap.NumNetworks() == 0 && w.chance(.4):
		u.networks(m)
	case w.chance(.08):
		u.revise(m, id, "networks", func(s *swarm.ServiceSpec) { u.attach(m, s) })
	case pick < 20:
		u.write(m, "remove", guarded(m, id), model.Change{DeleteService: id})
	case pick < 45:
		u.revise(m, id, "update", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = u.image(s) })
	case pick < 62:
		u.revise(m, id, "scale", func(s *swarm.ServiceSpec) { u.scale(s) })
	case w.chance(.04):
		u.revise(m, id, "depend", func(s *swarm.ServiceSpec) { u.depend(m, s) })
	case pick < 68:
		u.revise(m, id, "configure", u.configure)
	case pick < 71:
		u.rollback(m, id)
	case pick < 74:
		u.steer(m, id)
	case pick < 75:
		u.history(m)
	case pick < 76 && u.manyDown(m):
		u.acceptLoss(m)
	case pick < 78:
		u.revise(m, id, "force", func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
	default:
		u.node(m)
	}
}

// configure changes what restarts nothing.
func (u *users) configure(s *swarm.ServiceSpec) {
	if s.UpdateConfig != nil {
		s.UpdateConfig.Parallelism = uint64(u.w.rng.IntN(4))
	}
	orders := []string{"", "start-first", "stop-first"}
	label(s, map[string]string{"n": fmt.Sprint(u.w.rng.IntN(9)), orchestrate.DrainLabel: orders[u.w.rng.IntN(len(orders))]})
}

func guarded(m *member, id model.ServiceID) []model.Guard {
	return []model.Guard{{Key: model.ServiceKey(id), Group: model.GroupSpec, Version: m.snap.Service(id).SpecVersion}}
}

// write proposes a user's transaction; whether it is accepted is the state's affair.
func (u *users) write(m *member, what string, guards []model.Guard, changes ...model.Change) {
	u.w.note("user: "+what, 0, 0, 0)
	b := &model.Batch{Actor: "user", Reason: what, Time: m.wall(), Txns: []model.Txn{{Guards: guards, Changes: changes}}}
	life, tries := m.life, 0
	m.propose(b, func() bool { tries++; return m.life == life && tries < 5 }, func(*model.Outcome, error) {})
}

func (u *users) image(s *swarm.ServiceSpec) string {
	u.names++
	kind := imageGood
	if u.w.chance(.25) {
		kind = imageChecked
	}
	if u.w.fault(u.w.cfg.trouble) {
		kinds := []string{imageCrash, imageExit, imageFlaky, imageBad, imageBadStart, imageSlow}
		kind = kinds[u.w.rng.IntN(len(kinds))]
	}
	if s.Mode.ReplicatedJob != nil || s.Mode.GlobalJob != nil {
		kind = imageExit
	}
	return fmt.Sprintf("%s:%d", kind, u.names)
}

func (u *users) scale(s *swarm.ServiceSpec) {
	if r := s.Mode.Replicated; r != nil {
		n := uint64(u.w.rng.IntN(7))
		r.Replicas = &n
	}
}

func (u *users) create(m *member) {
	w := u.w
	var s swarm.ServiceSpec
	id := m.snap.LastService() + 1
	s.Name = fmt.Sprintf("svc%d", id)
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{}
	u.mode(&s)
	s.TaskTemplate.ContainerSpec.Image = u.image(&s)
	if w.chance(.3) {
		d := time.Duration(w.between(second, 90*second))
		s.TaskTemplate.ContainerSpec.StopGracePeriod = &d
	}
	if w.chance(.4) {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << (25 + w.rng.IntN(4)), NanoCPUs: int64(w.rng.IntN(3)) * 5e8}}
	}
	if w.chance(.2) {
		u.reserveGeneric(&s)
	}
	if w.chance(.3) {
		s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{fmt.Sprintf("node.labels.zone==%d", w.rng.IntN(2))}}
	}
	if w.chance(.2) {
		s.TaskTemplate.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}}}
	}
	if s.Mode.Replicated != nil && w.chance(.15) {
		if s.TaskTemplate.Placement == nil {
			s.TaskTemplate.Placement = &swarm.Placement{}
		}
		s.TaskTemplate.Placement.MaxReplicas = uint64(1 + w.rng.IntN(3))
	}
	if w.chance(.25) {
		p := swarm.PortConfig{Protocol: "tcp", TargetPort: 80, PublishedPort: uint32(w.rng.IntN(3)) * 8080 % 16160, PublishMode: swarm.PortConfigPublishModeIngress}
		if w.chance(.4) {
			p.PublishMode, p.PublishedPort = swarm.PortConfigPublishModeHost, uint32(9000+w.rng.IntN(2))
		}
		s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{p}}
	}
	u.policies(&s)
	if w.chance(.3) {
		s.Name = stack + "_" + s.Name
		label(&s, map[string]string{stackLabel: stack})
	}
	if w.chance(.3) {
		u.depend(m, &s)
	}
	if w.chance(.6) {
		u.attach(m, &s)
	}
	if rev := revision(m.snap, id, s, m.wall()); rev != nil {
		u.write(m, "create", []model.Guard{{Key: model.ServiceKey(id), Group: model.GroupSpec}}, model.Change{NewRevision: rev})
	}
}

func (u *users) mode(s *swarm.ServiceSpec) {
	w := u.w
	switch p := w.rng.IntN(20); {
	case p < 13:
		s.Mode.Replicated = &swarm.ReplicatedService{}
		u.scale(s)
	case p < 17:
		s.Mode.Global = &swarm.GlobalService{}
	case p < 19:
		n, c := uint64(1+w.rng.IntN(6)), uint64(1+w.rng.IntN(3))
		s.Mode.ReplicatedJob = &swarm.ReplicatedJob{TotalCompletions: &n, MaxConcurrent: &c}
	default:
		s.Mode.GlobalJob = &swarm.GlobalJob{}
	}
}

// policies of restart, update and rollback.
func (u *users) policies(s *swarm.ServiceSpec) {
	w := u.w
	if w.chance(.7) {
		p := &swarm.RestartPolicy{}
		d := time.Duration(w.between(0, 8*second))
		p.Delay = &d
		conditions := []swarm.RestartPolicyCondition{swarm.RestartPolicyConditionAny, swarm.RestartPolicyConditionOnFailure, swarm.RestartPolicyConditionNone, swarm.RestartPolicyConditionAny}
		p.Condition = conditions[w.rng.IntN(len(conditions))]
		if s.Mode.ReplicatedJob != nil || s.Mode.GlobalJob != nil {
			p.Condition = swarm.RestartPolicyConditionOnFailure
		} else if w.chance(.4) {
			n := uint64(1 + w.rng.IntN(4))
			p.MaxAttempts = &n
			if w.chance(.5) {
				win := time.Duration(w.between(5*second, 60*second))
				p.Window = &win
			}
		}
		s.TaskTemplate.RestartPolicy = p
	}
	s.UpdateConfig, s.RollbackConfig = u.update(), u.update()
}

func (u *users) update() *swarm.UpdateConfig {
	w := u.w
	if w.chance(.15) {
		return nil
	}
	actions := []swarm.FailureAction{swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue, swarm.UpdateFailureActionRollback}
	c := &swarm.UpdateConfig{Parallelism: uint64(w.rng.IntN(4)), Delay: time.Duration(w.between(0, 4*second)), Monitor: time.Duration(w.between(100*ms, 8*second)),
		FailureAction: actions[w.rng.IntN(len(actions))], Order: swarm.UpdateOrderStopFirst}
	if w.chance(.4) {
		c.Order = swarm.UpdateOrderStartFirst
	}
	if w.chance(.3) {
		c.MaxFailureRatio = w.rng.Float32()
	}
	return c
}

// revision is the change that gives a service a spec, as the API makes it; nil when it cannot be.
func revision(snap *state.Snapshot, id model.ServiceID, s swarm.ServiceSpec, now model.Time) *model.NewRevision {
	spec, err := model.MakeSpec(&s)
	if err != nil {
		return nil
	}
	tpl, err := model.NewTemplate(id, spec, "")
	if err != nil || tpl.SetNetworks(snap.Cluster().Namer()) != nil {
		return nil
	}
	old := snap.Service(id)
	rev := &model.NewRevision{Service: id, Spec: spec}
	if have := snap.TemplateByHash(id, tpl.Hash); have != nil {
		rev.TemplateID = have.ID
	} else {
		tpl.ID = snap.LastTemplate() + 1
		rev.Template, rev.TemplateID = tpl, tpl.ID
	}
	if s.Mode.ReplicatedJob != nil || s.Mode.GlobalJob != nil {
		rev.JobIteration = 1
		if old != nil {
			rev.JobIteration = old.JobIteration + 1
		}
		return rev
	}
	if old != nil {
		rev.Ports = old.Ports
	}
	rev.Update = orchestrate.FirstStatus(old, rev, max(now, snap.Time()))
	return rev
}

func (u *users) revise(m *member, id model.ServiceID, what string, edit func(*swarm.ServiceSpec)) {
	old, err := model.ParseSpec[swarm.ServiceSpec](m.snap.Service(id).Current().Spec.Raw)
	if err != nil {
		u.w.fail("a stored spec cannot be read: %v", err)
		return
	}
	edit(old.Typed)
	if rev := revision(m.snap, id, *old.Typed, m.wall()); rev != nil {
		u.write(m, what, guarded(m, id), model.Change{NewRevision: rev})
	}
}

func (u *users) rollback(m *member, id model.ServiceID) {
	svc := m.snap.Service(id)
	if rev := orchestrate.Rollback(svc, orchestrate.ManualRollback, max(m.wall(), m.snap.Time())); rev != nil {
		u.write(m, "rollback", guarded(m, id), model.Change{NewRevision: rev})
	}
}

// steer pauses, resumes or cancels a rollout.
func (u *users) steer(m *member, id model.ServiceID) {
	svc := m.snap.Service(id)
	guards := append(guarded(m, id), model.Guard{Key: model.ServiceKey(id), Group: model.GroupUpdate, Version: svc.UpdateVersion})
	at := max(m.wall(), m.snap.Time())
	if svc.UpdateVersion == 0 {
		return
	}
	switch u.w.rng.IntN(4) {
	case 0:
		if rev, err := orchestrate.Cancel(svc, at); err == nil {
			u.write(m, "cancel", guards, model.Change{NewRevision: rev})
		}
	case 1:
		if c, err := orchestrate.Pause(svc); err == nil {
			u.write(m, "pause", guards, c)
		}
	default:
		if c, err := orchestrate.Resume(svc, at); err == nil {
			u.write(m, "resume", guards, c)
		}
	}
}
