package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// story is a swarm of three managers in which nothing is left to chance: a rollout with delays, one that
// fails and turns back, and a service that is restarted until it may no more. At a moment, never when
// that is 0, strike does something to it.
func story(at int64, strike func(*world)) Result {
	return Run(Options{Seed: 1, script: func(w *world) {
		replicas := func(n uint64) swarm.ServiceMode {
			return swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &n}}
		}
		delay, attempts := 5*time.Second, uint64(3)
		create := func(s swarm.ServiceSpec, image string) func() {
			s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: image}
			s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: &delay, MaxAttempts: &attempts}
			return func() {
				m := w.log.leader
				id := m.snap.LastService() + 1
				s.Name = fmt.Sprintf("svc%d", id)
				w.users.write(m, "create", nil, model.Change{NewRevision: revision(m.snap, id, s, m.wall())})
			}
		}
		update := func(id model.ServiceID, image string) func() {
			return func() {
				w.users.revise(w.log.leader, id, "update", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = image })
			}
		}
		w.after(senderUser, second, create(swarm.ServiceSpec{Mode: replicas(6), UpdateConfig: &swarm.UpdateConfig{Parallelism: 2, Delay: 4 * time.Second, Monitor: 3 * time.Second}}, "good:1"))
		w.after(senderUser, 2*second, create(swarm.ServiceSpec{Mode: replicas(4),
			UpdateConfig:   &swarm.UpdateConfig{Parallelism: 1, Monitor: 4 * time.Second, FailureAction: swarm.UpdateFailureActionRollback, Order: swarm.UpdateOrderStartFirst, MaxFailureRatio: .3},
			RollbackConfig: &swarm.UpdateConfig{Parallelism: 1, Delay: 2 * time.Second}}, "good:2"))
		w.after(senderUser, 3*second, create(swarm.ServiceSpec{Mode: replicas(2)}, "crash:3"))
		w.after(senderUser, 10*second, update(1, "good:4"))
		w.after(senderUser, 11*second, update(2, "badstart:5"))
		if at != 0 {
			w.after(senderNemesis, at, func() { strike(w) })
		}
		w.after(senderNemesis, 90*second, func() { w.over = true })
	}, config: &config{members: 3, nodes: 4, even: true}})
}

type life struct {
	service model.ServiceID
	slot    uint32
}

// bySlot is what happened in each slot, one task after the other.
func bySlot(s *state.Snapshot) map[life][]*model.Task {
	out := map[life][]*model.Task{}
	for t := range s.AllTasks() {
		k := life{t.ID.Service, t.Slot}
		out[k] = append(out[k], t)
	}
	return out
}

// TestLeaderDeathKeepsTime: delays, monitor windows and restart counts are data, so a change of the leader at any
// moment moves nothing by more than it takes to elect another, and a death by more than it takes the nodes
// to find another manager for their reports.
func TestLeaderDeathKeepsTime(t *testing.T) {
	const election = 100 * ms
	calm := story(0, nil)
	if calm.Failure != nil {
		t.Fatal(calm.Failure)
	}
	end := calm.world.log.truth
	if a, b := end.Service(1).Update.State, end.Service(2).Update.State; a != swarm.UpdateStateCompleted || b != swarm.UpdateStateRollbackCompleted {
		t.Fatalf("the story ends with updates that are %s and %s", a, b)
	}
	if n := len(bySlot(end)[life{3, 1}]); n != 4 {
		t.Fatalf("the story ends with %d tasks in a slot that may be restarted three times", n)
	}
	change := func(w *world) {
		old := w.log.leader
		old.depose()
		w.after(senderNemesis, election, func() { w.members[old.id%len(w.members)].lead() })
	}
	death := func(w *world) { w.faults.restart(w.log.leader) }
	compare(t, "change of leader", calm, change, model.Time(election+50*ms))
	compare(t, "death of the leader", calm, death, model.Time(2*second))
}

// compare strikes a story at many moments, each in a run of its own.
func compare(t *testing.T, what string, calm Result, strike func(*world), tolerance model.Time) {
	worst := model.Time(0)
	for at := 12 * second; at < 50*second; at += 500*ms + 37*ms {
		r := story(at, strike)
		if r.Failure != nil {
			t.Fatalf("%s after %s: %v", what, time.Duration(at), r.Failure)
		}
		moved := func(which string, d model.Time) {
			d = max(d, -d)
			worst = max(worst, d)
			if d > tolerance {
				t.Errorf("%s after %s: %s moved by %s", what, time.Duration(at), which, time.Duration(d))
			}
		}
		got, want := r.world.log.truth, calm.world.log.truth
		have := bySlot(got)
		for key, life := range bySlot(want) {
			if len(have[key]) != len(life) {
				t.Errorf("%s after %s: %d tasks in slot %+v, without it %d", what, time.Duration(at), len(have[key]), key, len(life))
				continue
			}
			for i, a := range life {
				b := have[key][i]
				if b.State != a.State || b.Template != a.Template {
					t.Errorf("%s after %s: %s is %s, without it %s", what, time.Duration(at), short(b.ID), b.State, a.State)
				}
				moved(short(b.ID), b.CreatedAt-a.CreatedAt)
				moved(short(b.ID), b.RunningSince-a.RunningSince)
				moved(short(b.ID), b.StartAt-a.StartAt)
			}
		}
		for s := range want.Services() {
			u, v := s.Update, got.Service(s.ID).Update
			if u == nil {
				continue
			}
			if v == nil || u.State != v.State {
				t.Errorf("%s after %s: update of service %d is %+v, without it %+v", what, time.Duration(at), s.ID, v, u)
				continue
			}
			moved(fmt.Sprintf("the update of service %d", s.ID), v.CompletedAt-u.CompletedAt)
		}
	}
	t.Logf("%s: nothing moved by more than %s", what, time.Duration(worst).Round(time.Millisecond))
}
