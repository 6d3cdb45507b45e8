package manager

import (
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
)

// size is a swarm to plan from nothing: so many services of so many tasks.
type size struct {
	nodes, services, each int
	shaped                bool // reservations, constraints, platform and zone spread
}

func (s size) String() string {
	return fmt.Sprintf("nodes=%d/services=%d/tasks=%d", s.nodes, s.services, s.services*s.each)
}

const benchTime = model.Time(1_000_000 * time.Second)

// unplanned is the swarm with its services, without a task.
func unplanned(b testing.TB, sz size) *state.Snapshot {
	changes := []model.Change{{PutCluster: &model.Cluster{IDKey: [16]byte{1}, GatewayPool: netip.MustParsePrefix("10.0.0.0/8"),
		GatewayULA: netip.MustParsePrefix("fd00:1:2::/48")}}}
	for i := range sz.nodes {
		n := &model.Node{ID: model.NodeID(i + 1), State: swarm.NodeStateReady, Blocks: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}, Gateway6: netip.MustParsePrefix(fmt.Sprintf("fd00:1:2:%x::/64", i+1))}
		n.Spec.Availability, n.Spec.Role = swarm.NodeAvailabilityActive, swarm.NodeRoleWorker
		n.Spec.Labels = map[string]string{"zone": fmt.Sprint(i % 5), "disk": []string{"ssd", "hdd"}[i/5%2]}
		n.Description.Hostname = fmt.Sprintf("node-%d", i)
		n.Description.Platform = swarm.Platform{Architecture: "x86_64", OS: "linux"}
		n.Description.Resources = swarm.Resources{NanoCPUs: 64e9, MemoryBytes: 512 << 30}
		changes = append(changes, model.Change{PutNode: n})
	}
	for i := range sz.services {
		changes = append(changes, serviceChange(b, model.ServiceID(i+1), sz))
	}
	s, err := state.New().With(changes...)
	if err != nil {
		b.Fatal(err)
	}
	s, _ = s.Apply(1, &model.Batch{Time: benchTime})
	return s
}

func serviceChange(b testing.TB, id model.ServiceID, sz size) model.Change {
	replicas := uint64(sz.each)
	s := swarm.ServiceSpec{Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}}}
	s.Name = fmt.Sprintf("svc%d", id)
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "img:1"}
	if sz.shaped {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 1e7, MemoryBytes: 64 << 20}}
		s.TaskTemplate.Placement = &swarm.Placement{
			Platforms:   []swarm.Platform{{OS: "linux", Architecture: "amd64"}},
			Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}},
		}
		if id%2 == 0 {
			s.TaskTemplate.Placement.Constraints = []string{"node.labels.disk==" + []string{"ssd", "hdd"}[id/2%2]}
		}
	}
	spec, err := model.MakeSpec(&s)
	if err != nil {
		b.Fatal(err)
	}
	tpl, err := model.NewTemplate(id, spec, "")
	if err != nil {
		b.Fatal(err)
	}
	tpl.ID = model.TemplateID(id)
	return model.Change{NewRevision: &model.NewRevision{Service: id, Spec: spec, Template: tpl, TemplateID: tpl.ID}}
}

func benchPlanner(s *state.Snapshot) *Planner {
	return NewPlanner(s, time.Unix(0, int64(benchTime)), func() time.Duration { return time.Hour }, slog.New(slog.DiscardHandler))
}

// commit decides and commits until nothing is to be done, as the leader does without a log.
func commit(b testing.TB, p *Planner, s *state.Snapshot) *state.Snapshot {
	for {
		batches := p.Plan(s, benchTime, time.Unix(0, int64(benchTime)))
		if len(batches) == 0 {
			return s
		}
		for _, batch := range batches {
			next, out := s.Apply(s.Index()+1, batch)
			for i, err := range out.Results {
				if err != nil {
					b.Fatalf("transaction %d: %v", i, err)
				}
			}
			p.Took(batch, out)
			p.Applied(replica.Applied{Before: s, After: next, Outcome: out})
			s = next
		}
	}
}

// cpuTime is what this process has used of all processors so far, garbage collection included.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPlan decides and commits a whole swarm from nothing, without Raft, and reports CPU seconds.
// The pass that finds nothing more to do is included.
func BenchmarkPlan(b *testing.B) {
	for _, sz := range []size{
		{1000, 1, 100_000, false},
		{1000, 1000, 100, true},
		{10_000, 1000, 1000, true},
		{10_000, 100_000, 1, false},
	} {
		b.Run(sz.String(), func(b *testing.B) {
			s := unplanned(b, sz)
			var used time.Duration
			for range b.N {
				p := benchPlanner(s)
				runtime.GC() // what made the services is not the planner's garbage
				start := cpuTime()
				done := commit(b, p, s)
				used += cpuTime() - start
				if n := done.NumTasks(); n != sz.services*sz.each {
					b.Fatalf("%d tasks", n)
				}
			}
			per := used.Seconds() / float64(b.N)
			b.ReportMetric(per, "cpu-s/op")
			b.ReportMetric(float64(sz.services*sz.each)/per, "tasks/cpu-s")
		})
	}
}

// BenchmarkSmallServiceInFullSwarm decides and commits one service of ten tasks in a swarm that is full of others.
func BenchmarkSmallServiceInFullSwarm(b *testing.B) {
	for _, sz := range []size{{1000, 1000, 100, true}, {10_000, 1000, 1000, true}} {
		b.Run(sz.String(), func(b *testing.B) {
			s := unplanned(b, sz)
			full := commit(b, benchPlanner(s), s)
			id := full.LastService() + 1
			c := serviceChange(b, id, size{each: 10, shaped: true})
			full, out := full.Apply(full.Index()+1, &model.Batch{Time: benchTime, Txns: []model.Txn{{Changes: []model.Change{c}}}})
			p := benchPlanner(full)
			commit(b, p, full)
			runtime.GC()
			b.ResetTimer()
			start := cpuTime()
			for range b.N {
				p.Applied(replica.Applied{Before: full, After: full, Outcome: out})
				if done := commit(b, p, full); done.NumTasks() != full.NumTasks()+10 {
					b.Fatalf("%d tasks", done.NumTasks())
				}
			}
			b.ReportMetric((cpuTime()-start).Seconds()*1000/float64(b.N), "cpu-ms/op")
		})
	}
}
