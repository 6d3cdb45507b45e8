package schedule

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// TestPlacementEqualsOneAtATime: placing groups at once gives every node as many tasks as placing
// them singly, each after the state has changed by the one before.
func TestPlacementEqualsOneAtATime(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		c := newCluster(t)
		few := r.IntN(3) == 0 // tasks, for many nodes
		var cache Cache
		if c.scarce = r.IntN(3) == 0; c.scarce {
			cache.Pools.Blocks = noBlocks
		}
		for range 1 + r.IntN(8) + btoi(few)*(16+r.IntN(40)) {
			c.node(func(n *model.Node) {
				n.Spec.Labels = map[string]string{"zone": []string{"a", "b"}[r.IntN(2)]}
				n.Description.Resources = swarm.Resources{NanoCPUs: int64(r.IntN(5)) * 1e9, MemoryBytes: int64(r.IntN(8)) << 30, GenericResources: randomGeneric(r)}
				n.Description.Engine.Labels = map[string]string{"rack": []string{"1", "2", "3"}[r.IntN(3)]}
				n.Spec.Role = []swarm.NodeRole{swarm.NodeRoleManager, swarm.NodeRoleWorker}[r.IntN(2)]
				n.Addr = []string{"10.0.0.1", "10.1.0.1"}[r.IntN(2)]
				if r.IntN(8) == 0 {
					n.State = swarm.NodeStateDown
				}
				for i := range r.IntN(3) {
					n.Blocks = append(n.Blocks, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n.ID), 0, byte(i * 8)}), 30-r.IntN(2)))
				}
				if r.IntN(5) == 0 {
					n.Spec.Availability = swarm.NodeAvailabilityDrain
				}
				if r.IntN(4) == 0 {
					n.Description.Platform.Architecture = "arm64"
				}
			})
		}
		var ids []model.ServiceID
		for range 1 + r.IntN(4) {
			ids = append(ids, c.service(1+r.IntN(20-btoi(few)*17), func(s *swarm.ServiceSpec) { randomNeed(r, s) }))
		}
		for _, id := range ids {
			history(c, r, id)
		}
		start := c.snap
		c.apply(cache.PlanNew(c.snap, ids, nil, testTime))
		atOnce := c.snap
		c.snap = start
		for _, id := range ids {
			one(c, id)
		}
		for _, id := range ids {
			singly := c.perNode(id)
			if got := (&cluster{snap: atOnce}).perNode(id); fmt.Sprint(got) != fmt.Sprint(singly) {
				t.Fatalf("seed %d, service %d: at once %v, singly %v", seed, id, got, singly)
			}
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestFreshTasksArePlacedAlike: tasks that are about to be made get the nodes that they get when they
// were made before.
func TestFreshTasksArePlacedAlike(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 2))
		c := newCluster(t)
		for range 1 + r.IntN(60) {
			c.node(func(n *model.Node) {
				n.Description.Resources = swarm.Resources{NanoCPUs: int64(r.IntN(5)) * 1e9, MemoryBytes: int64(r.IntN(8)) << 30, GenericResources: randomGeneric(r)}
			})
		}
		n := 1 + r.IntN(12)
		id := c.service(0, func(s *swarm.ServiceSpec) { randomNeed(r, s) })
		put := &model.TasksPut{Service: id, Template: c.snap.Service(id).Template, First: 1, Desired: model.StateRunning, Base: c.snap.Index(), Texts: []string{""}}
		for i := range n {
			put.Tasks = append(put.Tasks, model.TaskNew{Slot: uint32(i + 1)})
		}
		bare := *put
		bare.Tasks = slices.Clone(put.Tasks)
		fresh := PlanNew(c.snap, []model.ServiceID{id}, map[model.ServiceID][]*model.TasksPut{id: {put}}, testTime)
		empty := c.snap
		c.do(model.Change{PutTasks: put})
		atOnce := c.snap
		c.snap = empty
		c.do(model.Change{PutTasks: &bare})
		later := Plan(c.snap, []model.ServiceID{id}, testTime)
		c.apply(later)
		if !slices.Equal(fresh.Waiting, later.Waiting) || len(fresh.Txns) != 0 {
			t.Fatalf("seed %d: %+v and %+v", seed, fresh, later)
		}
		for task := range c.snap.Tasks(id) {
			o := atOnce.Task(task.ID)
			if o.Node != task.Node || o.State != task.State || o.Err != task.Err || o.Message != task.Message || fmt.Sprint(o.Generic) != fmt.Sprint(task.Generic) && len(task.Generic) != len(o.Generic) {
				t.Fatalf("seed %d: at once %+v, later %+v", seed, o, task)
			}
		}
	}
}

// TestCacheChangesNothing plans one swarm again and again, while its nodes change, with a cache and without.
func TestCacheChangesNothing(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 3))
		c := newCluster(t)
		for range 2 + r.IntN(30) {
			c.node(nil)
		}
		var cache Cache
		for range 12 {
			node := model.NodeID(1 + r.IntN(int(c.snap.LastNode())))
			switch n := *c.snap.Node(node); r.IntN(4) {
			case 0:
				n.Spec.Labels = map[string]string{"zone": []string{"a", "b"}[r.IntN(2)]}
				n.Spec.Availability = []swarm.NodeAvailability{swarm.NodeAvailabilityActive, swarm.NodeAvailabilityDrain}[r.IntN(2)]
				c.do(model.Change{SetNodeSpec: &model.NodeSpecSet{Node: node, Spec: n.Spec}})
			case 1:
				c.do(model.Change{SetNodeState: &model.NodeStateSet{Node: node, State: []swarm.NodeState{swarm.NodeStateDown, swarm.NodeStateReady}[r.IntN(2)]}})
			case 2:
				n.Description.Platform.Architecture = []string{"arm64", "amd64"}[r.IntN(2)]
				n.Description.Engine.Labels = map[string]string{"rack": fmt.Sprint(r.IntN(3))}
				c.do(model.Change{SetNodeDesc: &model.NodeDescSet{Node: node, Description: n.Description}})
			}
			id := c.service(1+r.IntN(6), func(s *swarm.ServiceSpec) { randomNeed(r, s) })
			with, without := cache.PlanNew(c.snap, []model.ServiceID{id}, nil, testTime), Plan(c.snap, []model.ServiceID{id}, testTime)
			a, b := c.snap, c.snap
			for _, r := range []struct {
				to   **state.Snapshot
				from Result
			}{{&a, with}, {&b, without}} {
				for _, txn := range r.from.Txns {
					next, err := (*r.to).With(txn.Changes...)
					if err != nil {
						t.Fatal(err)
					}
					*r.to = next
				}
			}
			for task := range a.Tasks(id) {
				if o := b.Task(task.ID); o.Node != task.Node || o.Err != task.Err {
					t.Fatalf("seed %d: with a cache %+v, without %+v", seed, task, o)
				}
			}
			c.apply(with)
		}
	}
}

func randomNeed(r *rand.Rand, s *swarm.ServiceSpec) {
	p := swarm.Placement{MaxReplicas: uint64(r.IntN(3) * r.IntN(3))}
	if r.IntN(3) == 0 {
		kinds := []string{"node.labels.zone %s a", "engine.labels.rack %s 2", "node.hostname %s n1", "node.role %s manager", "node.ip %s 10.0.0.0/16", "node.platform.arch %s arm64"}
		p.Constraints = []string{fmt.Sprintf(kinds[r.IntN(len(kinds))], []string{"==", "!="}[r.IntN(2)])}
	}
	if r.IntN(3) == 0 {
		p.Platforms = []swarm.Platform{{OS: "linux", Architecture: "amd64"}}
	}
	s.TaskTemplate.Placement = &p
	s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: int64(r.IntN(3)) * 5e8, MemoryBytes: int64(r.IntN(3)) << 29}}
	for range r.IntN(3) * r.IntN(2) {
		kind := []string{"gpu", "ssd"}[r.IntN(2)]
		s.TaskTemplate.Resources.Reservations.GenericResources = append(s.TaskTemplate.Resources.Reservations.GenericResources, model.Generic{Kind: kind, N: int64(1 + r.IntN(2))}.API())
	}
	for _, label := range [][]string{nil, nil, {"node.labels.zone"}, {"node.labels.zone", "engine.labels.rack"}}[r.IntN(4)] {
		p.Preferences = append(p.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: label}})
	}
	if r.IntN(5) == 0 {
		s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: uint32(80 + r.IntN(2)), PublishMode: swarm.PortConfigPublishModeHost}}}
	}
}

// randomGeneric are resources that a node counts or names.
func randomGeneric(r *rand.Rand) (out []swarm.GenericResource) {
	if r.IntN(2) == 0 {
		out = append(out, model.Generic{Kind: "ssd", N: int64(r.IntN(6))}.API())
	}
	for i := range r.IntN(4) {
		out = append(out, model.Generic{Kind: "gpu", Name: fmt.Sprintf("gpu-%d", i)}.API())
	}
	return out
}

func BenchmarkPlace(b *testing.B) {
	for _, size := range []struct{ nodes, tasks int }{{1000, 10_000}, {1000, 100_000}, {10_000, 100_000}} {
		b.Run(fmt.Sprintf("%d nodes %d tasks", size.nodes, size.tasks), func(b *testing.B) {
			c := newCluster(b)
			for range size.nodes {
				c.node(nil)
			}
			id := c.service(size.tasks, nil)
			b.ReportAllocs()
			for b.Loop() {
				if r := Plan(c.snap, []model.ServiceID{id}, testTime); len(r.Txns) == 0 {
					b.Fatal("nothing placed")
				}
			}
		})
	}
}
