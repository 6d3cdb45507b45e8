package schedule

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"pgregory.net/rapid"
)

const testTime = model.Time(1_000_000_000_000_000)

// cluster builds states for tests.
type cluster struct {
	t     testing.TB
	snap  *state.Snapshot
	index uint64
	// scarce is when nodes get no more blocks of addresses than they have.
	scarce bool
}

// noBlocks is a gateway pool that is used up.
func noBlocks(*state.Snapshot) int { return 0 }

func newCluster(t testing.TB) *cluster {
	c := &cluster{t: t, snap: state.New(), index: 1}
	c.do(model.Change{PutCluster: &model.Cluster{IDKey: [16]byte{1}, GatewayPool: netip.MustParsePrefix("10.0.0.0/8")}})
	return c
}

func (c *cluster) do(changes ...model.Change) {
	c.t.Helper()
	c.index++
	next, out := c.snap.Apply(c.index, &model.Batch{Time: testTime, Txns: []model.Txn{{Changes: changes}}})
	if out.Results[0] != nil {
		c.t.Fatal(out.Results[0])
	}
	c.snap = next
}

func (c *cluster) node(edit func(*model.Node)) model.NodeID {
	id := c.snap.LastNode() + 1
	n := &model.Node{ID: id, State: swarm.NodeStateReady}
	n.Spec.Availability = swarm.NodeAvailabilityActive
	n.Description.Hostname = fmt.Sprintf("n%d", id)
	n.Description.Platform = swarm.Platform{Architecture: "x86_64", OS: "linux"}
	n.Description.Resources = swarm.Resources{NanoCPUs: 8e9, MemoryBytes: 8 << 30}
	if edit != nil {
		edit(n)
	}
	c.do(model.Change{PutNode: n})
	return id
}

// service creates a service with n new tasks.
func (c *cluster) service(n int, edit func(*swarm.ServiceSpec)) model.ServiceID {
	id := c.snap.LastService() + 1
	s := swarm.ServiceSpec{}
	s.Name = fmt.Sprintf("s%d", id)
	if edit != nil {
		edit(&s)
	}
	spec, err := model.MakeSpec(&s)
	if err != nil {
		c.t.Fatal(err)
	}
	tpl, err := model.NewTemplate(id, spec, "")
	if err == nil {
		err = tpl.SetNetworks(c.snap.Cluster().Namer())
	}
	if err != nil {
		c.t.Fatal(err)
	}
	tpl.ID = c.snap.LastTemplate() + 1
	changes := []model.Change{{NewRevision: &model.NewRevision{Service: id, Spec: spec, Template: tpl, TemplateID: tpl.ID}}}
	for i := range n {
		changes = append(changes, model.Change{PutTask: &model.Task{ID: model.TaskID{Service: id, Num: uint64(i + 1)}, Slot: uint32(i + 1), Template: tpl.ID, Desired: model.StateRunning}})
	}
	c.do(changes...)
	return id
}

func (c *cluster) apply(r Result) {
	for _, txn := range r.Txns {
		c.do(txn.Changes...)
	}
}

func (c *cluster) perNode(id model.ServiceID) map[model.NodeID]int {
	out := map[model.NodeID]int{}
	for t := range c.snap.Tasks(id) {
		if t.Node != 0 && !t.State.Terminal() {
			out[t.Node]++
		}
	}
	return out
}

func place(p swarm.Placement) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { s.TaskTemplate.Placement = &p }
}

func TestEveryRefusalExplainsItself(t *testing.T) {
	c := newCluster(t)
	c.node(nil)
	c.node(func(n *model.Node) { n.State = swarm.NodeStateDown })
	c.node(func(n *model.Node) { n.Spec.Labels = map[string]string{"zone": "a"} })
	c.node(func(n *model.Node) { n.Description.Platform.Architecture = "aarch64" })
	for _, tt := range []struct {
		name string
		edit func(*swarm.ServiceSpec)
		want string
	}{
		{"constraint", place(swarm.Placement{Constraints: []string{"node.labels.zone==b"}}),
			"no suitable node (scheduling constraints not satisfied on 3 nodes; 1 node not available for new tasks)"},
		{"platform", place(swarm.Placement{Platforms: []swarm.Platform{{OS: "windows"}}}),
			"no suitable node (unsupported platform on 3 nodes; 1 node not available for new tasks)"},
		{"several", place(swarm.Placement{Constraints: []string{"node.labels.zone != a"}, Platforms: []swarm.Platform{{OS: "windows", Architecture: "amd64"}}}),
			"no suitable node (unsupported platform on 2 nodes; 1 node not available for new tasks; scheduling constraints not satisfied on 1 node)"},
		{"unreadable", place(swarm.Placement{Constraints: []string{"zone"}}),
			"no suitable node (constraint expected one operator from ==, !=)"},
		{"cpu", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 9e9}}
		}, "no suitable node (insufficient resources on 3 nodes; 1 node not available for new tasks)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := c.service(1, tt.edit)
			r := Plan(c.snap, []model.ServiceID{id}, testTime)
			if len(r.Waiting) != 1 || len(r.Txns) != 1 {
				t.Fatalf("%+v", r)
			}
			s := r.Txns[0].Changes[0].SetTaskStatus
			if s == nil || s.State != model.StatePending || s.Message != "pending task scheduling" || s.Err != tt.want {
				t.Errorf("got %+v, want %q", s, tt.want)
			}
		})
	}
}

func TestMaxReplicasPerNode(t *testing.T) {
	c := newCluster(t)
	c.node(nil)
	c.node(nil)
	id := c.service(5, place(swarm.Placement{MaxReplicas: 2}))
	r := Plan(c.snap, []model.ServiceID{id}, testTime)
	c.apply(r)
	if got := c.perNode(id); got[1] != 2 || got[2] != 2 {
		t.Errorf("%v", got)
	}
	last := c.snap.Task(model.TaskID{Service: id, Num: 5})
	if last.Err != "no suitable node (max replicas per node limit exceed)" {
		t.Errorf("%q", last.Err)
	}
}

// A node without an address is left alone when it gets no more of them, and says so when nobody has one. Tasks
// that want none do not ask.
func TestFullNodesAreRefused(t *testing.T) {
	c := newCluster(t)
	c.node(func(n *model.Node) { n.Blocks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29")} })
	c.node(nil)
	c.node(func(n *model.Node) { n.State = swarm.NodeStateDown })
	plan := func(id model.ServiceID, blocks func(*state.Snapshot) int) (why string) {
		t.Helper()
		c.apply((&Cache{Pools: Pools{Blocks: blocks}}).PlanNew(c.snap, []model.ServiceID{id}, nil, testTime))
		for task := range c.snap.Tasks(id) {
			why = cmp.Or(why, task.Err)
		}
		return why
	}
	many := c.service(7, nil)
	before := c.snap
	if why := plan(many, noBlocks); why != "no suitable node (no free gateway address on 2 nodes; 1 node not available for new tasks)" || c.perNode(many)[1] != 5 {
		t.Errorf("%v, and the others wait: %q", c.perNode(many), why)
	}
	c.snap = before
	if why := plan(many, func(*state.Snapshot) int { return 1 }); why != "" || c.perNode(many)[1] != 4 {
		t.Errorf("with another block for one of them: %v, %q", c.perNode(many), why)
	}
	c.snap = before
	if why := plan(many, nil); why != "" || c.perNode(many)[1] != 4 {
		t.Errorf("with as many blocks as they want: %v, %q", c.perNode(many), why)
	}
	c.snap = before
	host := c.service(9, func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: c.snap.Cluster().Namer().NetworkID(model.NetworkHost)}}
	})
	if why := plan(host, noBlocks); why != "" {
		t.Errorf("in the host's network: %v, %q", c.perNode(host), why)
	}
}

// The task of a global service that has its node says what is missing there.
func TestFullNodeOfGlobalTask(t *testing.T) {
	c := newCluster(t)
	node := c.node(nil)
	id := c.service(0, func(s *swarm.ServiceSpec) { s.Mode.Global = &swarm.GlobalService{} })
	c.do(model.Change{PutTask: &model.Task{ID: model.TaskID{Service: id, Num: 1}, Node: node, Template: c.snap.Service(id).Template, Desired: model.StateRunning}})
	c.apply((&Cache{Pools: Pools{Blocks: noBlocks}}).PlanNew(c.snap, []model.ServiceID{id}, nil, testTime))
	if task := c.snap.Task(model.TaskID{Service: id, Num: 1}); task.State != model.StatePending || task.Err != "no free gateway address on 1 node" {
		t.Errorf("%+v", task)
	}
}

func TestSpreadOverZonesThenRacks(t *testing.T) {
	c := newCluster(t)
	for _, at := range []string{"a1", "a1", "a2", "b1", "", ""} {
		c.node(func(n *model.Node) {
			if at != "" {
				n.Spec.Labels = map[string]string{"zone": at[:1]}
				n.Description.Engine.Labels = map[string]string{"rack": at}
			}
		})
	}
	id := c.service(12, place(swarm.Placement{Preferences: []swarm.PlacementPreference{
		{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}},
		{Spread: &swarm.SpreadOver{SpreadDescriptor: "engine.labels.rack"}},
	}}))
	c.apply(Plan(c.snap, []model.ServiceID{id}, testTime))
	got := c.perNode(id)
	// 4 tasks a zone (no label is a zone too); in zone a 2 a rack, in rack a1 one a node.
	want := map[model.NodeID]int{1: 1, 2: 1, 3: 2, 4: 4, 5: 2, 6: 2}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestFailingNodeIsFilledLast(t *testing.T) {
	c := newCluster(t)
	bad, good := c.node(nil), c.node(nil)
	id := c.service(5, nil)
	for i := range uint64(5) {
		task := model.TaskID{Service: id, Num: i + 1}
		c.do(model.Change{SetTaskPlace: &model.TaskPlaceSet{Task: task, Node: bad}})
		c.do(model.Change{Report: &model.Report{Node: bad, Session: 1, Seq: i + 1, Tasks: []model.TaskReport{{Task: task, State: model.StateFailed}}}})
	}
	tpl := c.snap.Service(id).Template
	c.do(model.Change{PutTask: &model.Task{ID: model.TaskID{Service: id, Num: 6}, Slot: 1, Template: tpl, Desired: model.StateRunning}},
		model.Change{PutTask: &model.Task{ID: model.TaskID{Service: id, Num: 7}, Slot: 2, Template: tpl, Desired: model.StateRunning}})
	before := c.snap
	c.apply(Plan(c.snap, []model.ServiceID{id}, testTime))
	if got := c.perNode(id); got[good] != 2 {
		t.Errorf("right after five failures: %v", got)
	}
	c.snap = before
	c.apply(Plan(c.snap, []model.ServiceID{id}, testTime+failureWindow))
	if got := c.perNode(id); got[good] != 1 || got[bad] != 1 {
		t.Errorf("five minutes later: %v", got)
	}
}

func TestPortClashMarksTheNode(t *testing.T) {
	c := newCluster(t)
	c.node(func(n *model.Node) { n.PortClashes = []model.PortClash{{Protocol: "tcp", Port: 80}} })
	free := c.node(nil)
	id := c.service(1, func(s *swarm.ServiceSpec) {
		s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 80, PublishMode: swarm.PortConfigPublishModeHost}}}
	})
	other := c.service(1, func(s *swarm.ServiceSpec) {
		s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 80, PublishMode: swarm.PortConfigPublishModeHost}}}
	})
	c.apply(Plan(c.snap, []model.ServiceID{id, other}, testTime))
	if got := c.perNode(id); got[free] != 1 {
		t.Errorf("%v", got)
	}
	if got := c.perNode(other); len(got) != 0 {
		t.Errorf("two services of one pass share a host port: %v", got)
	}
}

func TestUnconstrainedSpreadDiffersByOne(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, k := rapid.IntRange(1, 20).Draw(rt, "nodes"), rapid.IntRange(0, 200).Draw(rt, "tasks")
		vs := make([]vessel, n)
		for i := range vs {
			vs[i] = vessel{total: int32(rapid.IntRange(0, 50).Draw(rt, "total")), room: 1 << 30}
		}
		got := new(filler).fill(vs, k)
		if slices.Max(got)-slices.Min(got) > 1 {
			rt.Errorf("%v", got)
		}
	})
}

// TestFillEqualsGreedy compares with the definition: one task at a time to the least vessel.
func TestFillEqualsGreedy(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, k := rapid.IntRange(0, 12).Draw(rt, "vessels"), rapid.IntRange(0, 60).Draw(rt, "tasks")
		draw := func(what string, hi int) int32 { return int32(rapid.IntRange(0, hi).Draw(rt, what)) }
		vs := make([]vessel, n)
		for i := range vs {
			vs[i] = vessel{penalty: 5 * draw("penalty", 2), have: draw("have", 8), total: draw("total", 9), room: draw("room", 9)}
		}
		got, want := new(filler).fill(slices.Clone(vs), k), greedy(vs, k)
		if !slices.Equal(got, want) {
			rt.Errorf("%v of %+v: got %v, want %v", k, vs, got, want)
		}
	})
}

func greedy(vs []vessel, k int) []int32 {
	got := make([]int32, len(vs))
	for range k {
		best := -1
		for i, v := range vs {
			if v.room == got[i] {
				continue
			}
			if best < 0 || slices.Compare([]int32{v.penalty, v.have + got[i], v.total + got[i]},
				[]int32{vs[best].penalty, vs[best].have + got[best], vs[best].total + got[best]}) < 0 {
				best = i
			}
		}
		if best < 0 {
			break
		}
		got[best]++
	}
	return got
}
