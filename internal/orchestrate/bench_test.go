package orchestrate_test

import (
	"fmt"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/schedule"
)

// full makes a swarm where `services` services of `each` tasks run.
func full(b *testing.B, nodes, services, each int) *world {
	w := newWorld(b, nodes)
	for range services {
		w.service(0, func(s *swarm.ServiceSpec) {
			replicas(uint64(each))(s)
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 20}}
		})
	}
	w.plan()
	return w
}

// BenchmarkService decides and commits a new service, from nothing to assigned, without Raft.
func BenchmarkService(b *testing.B) {
	for _, size := range []struct{ nodes, tasks int }{{1000, 10_000}, {1000, 100_000}} {
		b.Run(fmt.Sprintf("%d nodes %d tasks", size.nodes, size.tasks), func(b *testing.B) {
			w := newWorld(b, size.nodes)
			w.service(0, replicas(uint64(size.tasks)))
			empty := *w
			b.ReportAllocs()
			for b.Loop() {
				*w = empty
				w.planOnly(1)
			}
		})
	}
}

// BenchmarkIdle plans a large service that has what it should.
func BenchmarkIdle(b *testing.B) {
	w := newWorld(b, 1000)
	id := w.service(0, replicas(100_000))
	w.plan()
	for b.Loop() {
		if txns, _ := orchestrate.Plan(w.snap, w.obs, id, w.now); len(txns) != 0 {
			b.Fatal("not idle")
		}
	}
}

// BenchmarkSmallService plans one service of ten tasks in a swarm that is full of others: a plan
// that finds nothing to do, and one that replaces a failed task.
func BenchmarkSmallService(b *testing.B) {
	for _, size := range []struct{ nodes, services, each int }{{100, 100, 100}, {1000, 1000, 100}} {
		w := full(b, size.nodes, size.services, size.each)
		small := w.service(0, replicas(10))
		w.planOnly(small)
		name := fmt.Sprintf("%d nodes %d tasks", size.nodes, size.services*size.each)
		b.Run(name+" idle", func(b *testing.B) {
			for b.Loop() {
				txns, _ := orchestrate.Plan(w.snap, w.obs, small, w.now)
				r := schedule.Plan(w.snap, []model.ServiceID{small}, w.now)
				if len(txns)+len(r.Txns) != 0 {
					b.Fatal("not idle")
				}
			}
		})
		w.report(w.live(small)[0], model.StateFailed)
		b.Run(name+" restart", func(b *testing.B) {
			for b.Loop() {
				p := newPass(b, w.snap)
				for before := -1; before != p.changes; {
					before = p.changes
					txns, _ := orchestrate.Plan(p.work, w.obs, small, w.now)
					p.add(txns...)
					r := allocate.Addresses(p.work, schedule.Plan(p.work, []model.ServiceID{small}, w.now).Txns, w.now)
					p.add(r.Txns...)
				}
				if p.changes != 3 {
					b.Fatalf("%d changes", p.changes)
				}
			}
		})
	}
}
