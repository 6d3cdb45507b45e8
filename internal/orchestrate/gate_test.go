package orchestrate_test

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
)

// named makes a spec of a stack's service that depends on others.
func named(name, depends string, edit func(*swarm.ServiceSpec)) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) {
		if edit != nil {
			edit(s)
		}
		s.Name = "shop_" + name
		s.Labels = map[string]string{"com.docker.stack.namespace": "shop"}
		if depends != "" {
			s.Labels[orchestrate.DependsLabel] = depends
		}
	}
}

// Tasks are prepared, and held until what they depend on is so far; then the gate stays open.
func TestGateHoldsUntilHealthy(t *testing.T) {
	w := newWorld(t, 1)
	web := w.service(0, named("web", "db=service_healthy", replicas(2)))
	w.settle()
	if n := w.countRunning(web); n != 0 {
		t.Fatalf("%d tasks run before their database", n)
	}
	for _, task := range w.live(web) {
		if task.Desired != model.StateReady || task.State != model.StateReady {
			t.Errorf("a task is %s and shall be %s; want it prepared", task.State, task.Desired)
		}
	}
	if got := w.snap.Service(web).Notice; got != "waits for service shop_db, which does not exist" {
		t.Errorf("notice %q", got)
	}

	db := w.service(0, named("db", "", replicas(1)))
	w.plan()
	if got := w.snap.Service(web).Notice; got != "waits for service shop_db (service_healthy)" {
		t.Errorf("notice %q", got)
	}
	if n := w.countRunning(web); n != 0 {
		t.Fatalf("%d tasks run before their database does", n)
	}
	w.settle()
	if n := w.countRunning(web); n != 2 {
		t.Fatalf("%d tasks run, want 2", n)
	}
	if got := w.snap.Service(web).Notice; got != "" {
		t.Errorf("notice %q", got)
	}

	// The database goes: web's tasks still heal, and scale.
	w.do(model.Change{DeleteService: db})
	w.report(w.live(web)[0], model.StateFailed)
	w.service(web, named("web", "db=service_healthy", replicas(3)))
	w.advance(6e9)
	w.settle()
	w.advance(6e9)
	w.settle()
	if n := w.countRunning(web); n != 3 {
		t.Errorf("%d tasks run without the database, want 3", n)
	}
}

// complete ends the tasks of a job's run.
func complete(w *world, job model.ServiceID) {
	for _, task := range w.live(job) {
		if !task.State.Terminal() {
			w.report(task, model.StateComplete)
		}
	}
}

// An update waits for a job of the same deploy, and what runs goes on meanwhile.
func TestGateHoldsARollout(t *testing.T) {
	w := newWorld(t, 1)
	web := w.service(0, named("web", "migrate=service_completed_successfully", replicas(2)))
	migrate := w.service(0, named("migrate", "", func(s *swarm.ServiceSpec) {
		one := uint64(1)
		s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: &one, TotalCompletions: &one}}
	}))
	w.settle()
	if n := w.countRunning(web); n != 0 {
		t.Fatalf("%d tasks run before the job has completed", n)
	}
	complete(w, migrate)
	w.settle()
	old := w.snap.Service(web).Template
	if n := w.countRunning(web); n != 2 {
		t.Fatalf("%d tasks run after the job, want 2", n)
	}

	// Both are deployed anew.
	w.service(migrate, named("migrate", "", func(s *swarm.ServiceSpec) {
		one := uint64(1)
		s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: &one, TotalCompletions: &one}}
		s.TaskTemplate.ContainerSpec.Env = []string{"V=2"}
	}))
	w.service(web, named("web", "migrate=service_completed_successfully", func(s *swarm.ServiceSpec) {
		replicas(2)(s)
		s.TaskTemplate.ContainerSpec.Env = []string{"V=2"}
	}))
	w.settle()
	for _, task := range w.live(web) {
		if task.Template != old || task.State != model.StateRunning {
			t.Errorf("task of template %d is %s; the old ones must go on", task.Template, task.State)
		}
	}
	complete(w, migrate)
	for range 5 {
		w.settle()
		w.advance(6e9)
	}
	for _, task := range w.live(web) {
		if task.Template == old {
			t.Error("an old task is left after the job has completed")
		}
	}
}

func TestGateConditions(t *testing.T) {
	for text, ok := range map[string]bool{
		"db": true, "db=service_started,q=service_healthy": true, "m=service_completed_successfully": true,
		"": false, "=service_started": false, "db=ready": false, strings.Repeat("a,", 101) + "a": false,
	} {
		if orchestrate.ValidDepends(text) != ok {
			t.Errorf("%.40q: valid is not %v", text, ok)
		}
	}
	// Started is enough with the first task; healthy wants all, and a failing check counts as none.
	w := newWorld(t, 1)
	db := w.service(0, named("db", "", replicas(2)))
	started := w.service(0, named("a", "db", replicas(1)))
	healthy := w.service(0, named("b", "db=service_healthy", replicas(1)))
	w.plan()
	say := func(t *model.Task, h model.Health) {
		w.seq++
		w.do(model.Change{Report: &model.Report{Node: t.Node, Session: 1, Seq: w.seq, Tasks: []model.TaskReport{{Task: t.ID, State: model.StateRunning, Health: h}}}})
	}
	let := func(id model.ServiceID) (n int) {
		for _, task := range w.live(id) {
			if task.Desired == model.StateRunning {
				n++
			}
		}
		return n
	}
	for i, test := range []struct {
		task   int
		health model.Health
		want   [2]int
	}{{0, model.HealthNone, [2]int{1, 0}}, {1, model.HealthFailing, [2]int{1, 0}}, {1, model.HealthHealthy, [2]int{1, 1}}} {
		say(w.live(db)[test.task], test.health)
		w.plan()
		if got := [2]int{let(started), let(healthy)}; got != test.want {
			t.Errorf("step %d: %v may run, want %v", i, got, test.want)
		}
	}
}

// A condition that is added to what runs already holds nobody back: neither those that run, nor those that replace them.
func TestGateOfWhatRuns(t *testing.T) {
	w := newWorld(t, 1)
	web := w.service(0, named("web", "", replicas(2)))
	w.settle()
	w.service(web, named("web", "db=service_healthy", replicas(3)))
	w.settle()
	if n, notice := w.countRunning(web), w.snap.Service(web).Notice; n != 3 || notice != "" {
		t.Errorf("%d tasks run, want 3; notice %q", n, notice)
	}
	w.report(w.live(web)[0], model.StateFailed)
	w.settle()
	w.advance(6e9)
	w.settle()
	if n := w.countRunning(web); n != 3 {
		t.Errorf("%d tasks run after one has failed, want 3", n)
	}
}

// Behind a closed gate nobody takes over from a task that leaves a drained node, in whichever order: it goes on until the
// gate opens, or until nobody waits for a drain any more.
func TestGateAndDrain(t *testing.T) {
	for _, order := range []string{"", "start-first"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(t, 2)
			edit := func(env string) func(*swarm.ServiceSpec) {
				return func(s *swarm.ServiceSpec) {
					replicas(2)(s)
					s.TaskTemplate.ContainerSpec.Env = []string{env}
					if s.Labels = nil; order != "" {
						s.Labels = map[string]string{orchestrate.DrainLabel: order}
					}
					if env != "" {
						s.Labels = map[string]string{orchestrate.DrainLabel: order, orchestrate.DependsLabel: "db"}
					}
				}
			}
			web := w.service(0, edit(""))
			w.settle()
			old := w.snap.Service(web).Template
			w.service(web, edit("V=2"))
			w.drain(1)
			for range 6 { // no time passes
				w.plan()
				w.obey()
			}
			for _, task := range w.live(web) {
				if task.Template == old && task.State != model.StateRunning || task.Template != old && task.Desired == model.StateRunning {
					t.Errorf("a task of template %d is %s and desired %s", task.Template, task.State, task.Desired)
				}
			}
			if n := w.countRunning(web); n != 2 {
				t.Fatalf("%d tasks run behind the gate, want 2", n)
			}
			w.service(0, func(s *swarm.ServiceSpec) { replicas(1)(s); s.Name = "db" })
			for range 5 {
				w.settle()
				w.advance(6e9)
			}
			for _, task := range w.live(web) {
				if task.Node != 2 || task.State != model.StateRunning || task.Template == old {
					t.Errorf("a task of template %d is %s on node %d", task.Template, task.State, task.Node)
				}
			}
			if n := w.countRunning(web); n != 2 {
				t.Errorf("%d tasks run at last, want 2", n)
			}
		})
	}
}

// What others are about to do opens no gate: their plans may be refused.
func TestGateLooksAtWhatIsAgreed(t *testing.T) {
	w := newWorld(t, 1)
	web := w.service(0, named("web", "db=service_started", replicas(1)))
	w.service(0, named("db", "", replicas(1)))
	for w.countRunning(web+1) == 0 {
		w.planOnly(web + 1)
		w.planOnly(web)
		if w.countRunning(web+1) == 0 {
			agreed := w.snap
			w.obey()
			if w.countRunning(web+1) == 1 {
				if txns, _ := orchestrate.Plan(w.snap, orchestrate.Obs{Settled: true, Agreed: agreed}, web, w.now); len(txns) > 0 {
					t.Errorf("the gate opened early: %+v", txns)
				}
				if txns, _ := orchestrate.Plan(w.snap, orchestrate.Obs{Settled: true, Agreed: w.snap}, web, w.now); len(txns) == 0 {
					t.Error("the gate did not open")
				}
			}
		}
	}
}

// TestRollbackWaitsForNobody: what a service depends on has gone, and its update fails: what ran before comes back.
func TestRollbackWaitsForNobody(t *testing.T) {
	w := newWorld(t, 2)
	db := w.service(0, named("db", "", replicas(1)))
	id := w.service(0, named("web", "db=service_healthy", func(s *swarm.ServiceSpec) {
		replicas(1)(s)
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionRollback}
	}))
	w.settle()
	w.image(id, "img:2")
	w.plan()
	w.obey()
	w.plan()
	w.obey()
	w.do(model.Change{DeleteService: db})
	for _, x := range w.running(id) {
		if x.Template == w.snap.Service(id).Template {
			w.report(x, model.StateFailed)
		}
	}
	w.settle()
	w.advance(time.Hour)
	w.settle()
	if n := w.countRunning(id); n != 1 {
		t.Errorf("%d run; %q", n, w.snap.Service(id).Notice)
	}
}

// TestGlobalDependencyCountsAllItsNodes: while it is updated, too.
func TestGlobalDependencyCountsAllItsNodes(t *testing.T) {
	w := newWorld(t, 4)
	db := w.service(0, named("db", "", func(s *swarm.ServiceSpec) {
		s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Delay: time.Hour}
	}))
	web := w.service(0, named("web", "db=service_healthy", replicas(1)))
	w.settle()
	w.image(db, "db:2")
	w.image(web, "web:2")
	for range 20 {
		w.plan()
		w.obey()
		w.now += second
	}
	if w.updated(web) > 0 && w.updated(db) < 4 {
		t.Errorf("web:2 runs with %d of 4 db:2", w.updated(db))
	}
}

// TestGlobalDependencyLeavesOutPausedNodes: an update leaves a paused node as it is, so nobody waits for that node.
func TestGlobalDependencyLeavesOutPausedNodes(t *testing.T) {
	w := newWorld(t, 3)
	db := w.service(0, named("db", "", func(s *swarm.ServiceSpec) {
		s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	}))
	web := w.service(0, named("web", "db=service_healthy", replicas(1)))
	w.settle()
	w.setNode(3, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailabilityPause })
	w.image(db, "db:2")
	w.image(web, "web:2")
	w.settle()
	w.advance(time.Hour)
	w.settle()
	if u := w.snap.Service(db).Update; u.State != swarm.UpdateStateCompleted {
		t.Fatalf("%+v", u)
	}
	if w.updated(web) != 1 {
		t.Errorf("db's update is completed, web waits for ever: %q", w.snap.Service(web).Notice)
	}
}

// TestRollbackToWhatNeverRan: one to a revision whose gate never opened waits as that did: its migration may not have run.
func TestRollbackToWhatNeverRan(t *testing.T) {
	w := newWorld(t, 2)
	id := w.service(0, named("web", "", replicas(1)))
	w.settle()
	w.service(id, func(s *swarm.ServiceSpec) {
		s.Labels[orchestrate.DependsLabel] = "migrate=service_completed_successfully"
		s.TaskTemplate.ContainerSpec.Image = "img:2"
	})
	w.settle()
	num := w.snap.Service(id).Current().Num
	w.service(id, func(s *swarm.ServiceSpec) {
		delete(s.Labels, orchestrate.DependsLabel)
		s.TaskTemplate.ContainerSpec.Image = "img:3"
	})
	w.settle()
	w.now += second
	rev, err := orchestrate.RollbackTo(w.snap.Service(id), num, orchestrate.ManualRollback, w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.do(model.Change{NewRevision: rev})
	w.settle()
	w.advance(time.Hour)
	w.settle()
	for _, x := range w.running(id) {
		if img := w.snap.Template(x.Template).Task.Typed.ContainerSpec.Image; img != "img:3" {
			t.Errorf("%s runs, and what it depends on does not exist: %q", img, w.snap.Service(id).Notice)
		}
	}
	if n := w.countRunning(id); n != 1 {
		t.Errorf("%d run", n)
	}
}
