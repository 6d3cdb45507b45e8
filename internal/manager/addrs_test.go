package manager

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
	"pgregory.net/rapid"
)

// TestTasksGoWhereAddressesAre: as long as any node has a gateway address, or can get a block of them, no task waits for
// one, however unequal the nodes are; what waits is placed when addresses come free.
func TestTasksGoWhereAddressesAre(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.IntRange(1, 5).Draw(rt, "nodes")
		s := unplanned(t, size{nodes: nodes, services: 3})
		p := benchPlanner(s)
		step := func(changes ...model.Change) {
			next, out := s.Apply(s.Index()+1, &model.Batch{Time: benchTime, Txns: []model.Txn{{Changes: changes}}})
			if err := out.Results[0]; err != nil {
				rt.Fatal(err)
			}
			p.Applied(replica.Applied{Before: s, After: next, Outcome: out})
			s = commit(t, p, next)
		}
		// A pool of four blocks, of which nodes own small parts.
		c := *s.Cluster()
		c.GatewayPool = netip.MustParsePrefix("10.0.0.0/22")
		changes := []model.Change{{PutCluster: &c}}
		for i := range nodes {
			b := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i % 4), byte(i / 4 * 64)}), rapid.IntRange(27, 29).Draw(rt, "bits"))
			changes = append(changes, model.Change{SetNodeBlocks: &model.NodeBlocksSet{Node: model.NodeID(i + 1), Blocks: []netip.Prefix{b}}})
		}
		step(changes...)
		for range rapid.IntRange(1, 5).Draw(rt, "steps") {
			id := model.ServiceID(rapid.IntRange(1, 3).Draw(rt, "service"))
			step(scaled(rt, s, id, rapid.Uint64Range(0, 120).Draw(rt, "replicas")))
			stop(t, &s, p, id)
			judgeAddresses(rt, s)
			if more := p.Afresh(s).Plan(s, benchTime, time.Unix(0, int64(benchTime))); len(more) != 0 {
				rt.Fatalf("planning everything wants more: %+v", more[0].Txns)
			}
		}
	})
}

// scaled is a service with other replicas.
func scaled(t *rapid.T, s *state.Snapshot, id model.ServiceID, replicas uint64) model.Change {
	svc := s.Service(id)
	spec, err := model.ParseSpec[swarm.ServiceSpec](svc.Current().Spec.Raw)
	if err != nil {
		t.Fatal(err)
	}
	spec.Typed.Mode.Replicated.Replicas = &replicas
	made, err := model.MakeSpec(spec.Typed)
	if err != nil {
		t.Fatal(err)
	}
	return model.Change{NewRevision: &model.NewRevision{Service: id, Spec: made, TemplateID: svc.Template}}
}

// judgeAddresses counts what is free where tasks wait.
func judgeAddresses(t *rapid.T, s *state.Snapshot) {
	var waits *model.Task
	for task := range s.AllTasks() {
		if task.State == model.StatePending && task.Desired == model.StateRunning {
			waits = task
		}
	}
	if waits == nil {
		return
	}
	if !strings.HasPrefix(waits.Err, "no suitable node (no free gateway address on ") {
		t.Fatalf("a task waits: %q", waits.Err)
	}
	if n := allocate.FreeBlocks(s); n > 0 {
		t.Fatalf("a task waits (%s), and the pool has %d blocks", waits.Err, n)
	}
	for n := range s.Nodes() {
		for _, b := range n.Blocks {
			if have := 1<<(32-b.Bits()) - 3 - s.AddrsInUse(b); have > 0 {
				t.Fatalf("a task waits (%s), and %d addresses of %s are free", waits.Err, have, n.Hostname())
			}
		}
	}
}

// TestWhoGetsNoAddressTakesNoRoom: tasks that wait for an address of a full network leave a node's memory to others,
// before the network is full by what is planned in the same pass as well as after.
func TestWhoGetsNoAddressTakesNoRoom(t *testing.T) {
	s := unplanned(t, size{nodes: 1})
	p := benchPlanner(s)
	n := model.Network{Name: "small", IPAM: []model.IPAMConfig{{Subnet: netip.MustParsePrefix("192.168.0.0/29")}}}
	if _, err := allocate.Network(s, &n); err != nil {
		t.Fatal(err)
	}
	target := s.Cluster().Namer().NetworkID(n.ID)
	changes := []model.Change{{PutNetwork: &n}}
	for i, raw := range []string{
		`{"Name":"in","EndpointSpec":{"Mode":"dnsrr"},"Mode":{"Replicated":{"Replicas":9}},"TaskTemplate":{"Networks":[{"Target":"` + target + `"}],"Resources":{"Reservations":{"MemoryBytes":68719476736}}}}`,
		`{"Name":"out","Mode":{"Replicated":{"Replicas":3}},"TaskTemplate":{"Resources":{"Reservations":{"MemoryBytes":68719476736}}}}`,
	} {
		spec, err := model.ParseSpec[swarm.ServiceSpec]([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		id := model.ServiceID(i + 1)
		tpl, err := model.NewTemplate(id, spec, "")
		if err == nil {
			err = tpl.SetNetworks(s.Cluster().Namer())
		}
		if err != nil {
			t.Fatal(err)
		}
		tpl.ID = model.TemplateID(id)
		changes = append(changes, model.Change{NewRevision: &model.NewRevision{Service: id, Spec: spec, Template: tpl, TemplateID: tpl.ID}})
	}
	next, out := s.Apply(s.Index()+1, &model.Batch{Time: benchTime, Txns: []model.Txn{{Changes: changes}}})
	if err := out.Results[0]; err != nil {
		t.Fatal(err)
	}
	p.Applied(replica.Applied{Before: s, After: next, Outcome: out})
	// The node has memory for eight, the network addresses for five: three are left for those outside.
	s = commit(t, p, next)
	placed := map[model.ServiceID]int{}
	for task := range s.AllTasks() {
		if task.State == model.StateAssigned {
			placed[task.ID.Service]++
		}
	}
	if placed[1] != 5 || placed[2] != 3 {
		t.Errorf("placed by service: %v", placed)
	}
	if more := p.Afresh(s).Plan(s, benchTime, time.Unix(0, int64(benchTime))); len(more) != 0 {
		t.Errorf("planning everything wants more: %+v", more[0].Txns)
	}
}
