package allocate_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"pgregory.net/rapid"
)

const start = model.Time(1_000_000_000_000_000)

type fixture struct {
	t interface {
		Helper()
		Fatalf(string, ...any)
	}
	snap  *state.Snapshot
	index uint64
	now   model.Time
	seq   uint64
	last  uint64
}

func (f *fixture) apply(txns ...model.Txn) {
	f.t.Helper()
	f.index++
	next, out := f.snap.Apply(f.index, &model.Batch{Time: f.now, Txns: txns})
	for _, err := range out.Results {
		if err != nil {
			f.t.Fatalf("refused: %v", err)
		}
	}
	f.snap = next
}

func (f *fixture) do(changes ...model.Change) { f.t.Helper(); f.apply(model.Txn{Changes: changes}) }

func setUp(t *rapid.T, tt *testing.T, pool string, nodes int) *fixture {
	f := &fixture{snap: state.New(), index: 1, now: start}
	if f.t = tt; t != nil {
		f.t = t
	}
	f.do(model.Change{PutCluster: &model.Cluster{IDKey: [16]byte{7}, GatewayPool: netip.MustParsePrefix(pool)}})
	for i := range nodes {
		n := &model.Node{ID: model.NodeID(i + 1), State: swarm.NodeStateReady, Gateway6: netip.MustParsePrefix(fmt.Sprintf("fd00::%x:0:0:0:0/64", i+1))}
		n.Description.Hostname = fmt.Sprintf("n%d", i+1)
		f.do(model.Change{PutNode: n})
		txn, err := allocate.Node(f.snap, n.ID)
		if err != nil {
			f.t.Fatalf("%v", err)
		}
		f.apply(txn)
	}
	f.service(1, nil)
	return f
}

func (f *fixture) service(id model.ServiceID, ports []swarm.PortConfig) {
	f.t.Helper()
	s := swarm.ServiceSpec{EndpointSpec: &swarm.EndpointSpec{Ports: ports}}
	s.Name = fmt.Sprintf("svc%d", id)
	spec, err := model.MakeSpec(&s)
	if err != nil {
		f.t.Fatalf("%v", err)
	}
	tpl, err := model.NewTemplate(id, spec, "")
	if err != nil {
		f.t.Fatalf("%v", err)
	}
	tpl.ID = f.snap.LastTemplate() + 1
	rev := &model.NewRevision{Service: id, Spec: spec, Template: tpl, TemplateID: tpl.ID}
	if have := f.snap.TemplateByHash(id, tpl.Hash); have != nil {
		rev.Template, rev.TemplateID = nil, have.ID
	}
	if old := f.snap.Service(id); old != nil {
		rev.Ports = old.Ports
	}
	f.do(model.Change{NewRevision: rev})
}

// place puts k new tasks on a node and returns the addresses they got; a task without one has the
// reason.
func (f *fixture) place(node model.NodeID, k int) (addrs []netip.Addr, why string) {
	f.t.Helper()
	var txn model.Txn
	for range k {
		f.last++
		id := model.TaskID{Service: 1, Num: f.last}
		f.do(model.Change{PutTask: &model.Task{ID: id, Slot: 1, Template: f.snap.Service(1).Template, Desired: model.StateRunning}})
		txn.Changes = append(txn.Changes, model.Change{SetTaskPlace: &model.TaskPlaceSet{Task: id, Node: node}})
	}
	r := allocate.Addresses(f.snap, []model.Txn{txn}, f.now)
	f.apply(r.Blocks...)
	f.apply(r.Txns...)
	for _, c := range txn.Changes {
		task := f.snap.Task(c.SetTaskPlace.Task)
		if task.Gateway4.IsValid() {
			addrs = append(addrs, task.Gateway4)
		} else {
			why = task.Err
		}
	}
	return addrs, why
}

func (f *fixture) kill(a netip.Addr) {
	f.t.Helper()
	for task := range f.snap.AllTasks() {
		if task.Gateway4 == a && !task.State.Terminal() {
			f.seq++
			f.do(model.Change{Report: &model.Report{Node: task.Node, Session: 1, Seq: f.seq, Tasks: []model.TaskReport{{Task: task.ID, State: model.StateFailed}}}})
		}
	}
}

func TestAddressesStartBehindTheGatewayAndRotate(t *testing.T) {
	f := setUp(nil, t, "10.1.0.0/16", 2)
	got, _ := f.place(2, 3)
	if fmt.Sprint(got) != "[10.1.1.2 10.1.1.3 10.1.1.4]" {
		t.Errorf("%v", got)
	}
	task := f.snap.Task(model.TaskID{Service: 1, Num: 1})
	if task.Gateway6 != netip.MustParseAddr("fd00:0:0:2::a01:102") && task.Gateway6.Unmap().Is4() {
		t.Errorf("IPv6 %s", task.Gateway6)
	}
	// A freed address rests: the search goes on behind the last one.
	f.kill(got[1])
	f.now += model.Time(time.Hour)
	next, _ := f.place(2, 1)
	if next[0] != netip.MustParseAddr("10.1.1.5") {
		t.Errorf("%v", next)
	}
}

func TestFullBlockGetsAnotherBeforeFreshAddressesAreReused(t *testing.T) {
	f := setUp(nil, t, "10.1.0.0/22", 2)
	first, _ := f.place(1, 253)
	f.kill(first[0])
	got, _ := f.place(1, 1)
	if got[0] != netip.MustParseAddr("10.1.2.2") {
		t.Errorf("%v, want one from a second block", got)
	}
	n := f.snap.Node(1)
	if fmt.Sprint(n.Blocks) != "[10.1.0.0/24 10.1.2.0/24]" {
		t.Errorf("%v", n.Blocks)
	}
}

func TestFreshAddressesAreBetterThanNone(t *testing.T) {
	f := setUp(nil, t, "10.1.0.0/24", 1)
	first, why := f.place(1, 254)
	if len(first) != 253 || why != "no free address on node n1: gateway pool 10.1.0.0/24 has no free /24: all 1 given to nodes; give the swarm a larger pool" {
		t.Errorf("%d addresses, then %q", len(first), why)
	}
	f.kill(first[7])
	if got, why := f.place(1, 1); len(got) != 1 || got[0] != first[7] {
		t.Errorf("%v %q", got, why)
	}
}

func TestBlocksAvoidRoutes(t *testing.T) {
	f := setUp(nil, t, "10.1.0.0/22", 1)
	f.do(model.Change{SetNodeDesc: &model.NodeDescSet{Node: 1, Description: f.snap.Node(1).Description,
		Routes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.1.1.128/25"), netip.MustParsePrefix("192.168.0.0/16")}}})
	b, err := allocate.NodeBlock(f.snap, nil)
	if err != nil || b != netip.MustParsePrefix("10.1.2.0/24") {
		t.Errorf("%v %v", b, err)
	}
	_, err = allocate.NodeBlock(f.snap, []netip.Prefix{netip.MustParsePrefix("10.1.2.0/23")})
	if model.KindOf(err) != model.Exhausted || !strings.Contains(err.Error(), "this node reaches 10.1.2.0/23 by another way") {
		t.Errorf("%v", err)
	}
}

// What is counted as free is what nodes then get.
func TestFreeBlocksAreThoseThatNodesGet(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := setUp(rt, nil, "10.1.0.0/20", 2)
		f.place(1, rapid.IntRange(0, 600).Draw(rt, "tasks"))
		if rapid.Bool().Draw(rt, "removed") {
			f.do(model.Change{DeleteNode: 1}) // its tasks live on for now
		}
		var routes []netip.Prefix
		for range rapid.IntRange(0, 3).Draw(rt, "routes") {
			at := netip.AddrFrom4([4]byte{10, 1, byte(rapid.IntRange(2, 15).Draw(rt, "at")), 0})
			routes = append(routes, netip.PrefixFrom(at, rapid.IntRange(22, 26).Draw(rt, "bits")).Masked())
		}
		f.do(model.Change{SetNodeDesc: &model.NodeDescSet{Node: 2, Description: f.snap.Node(2).Description, Routes: routes}})
		count := allocate.FreeBlocks(f.snap)
		for k := range count + 1 {
			id := f.snap.LastNode() + 1
			f.do(model.Change{PutNode: &model.Node{ID: id, State: swarm.NodeStateReady}})
			txn, err := allocate.Node(f.snap, id)
			if got := err == nil; got != (k < count) {
				rt.Fatalf("%d blocks are counted, and node %d gets one: %t", count, k+1, got)
			}
			if err == nil {
				f.apply(txn)
			}
		}
	})
}

func TestNoAddressTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := setUp(rt, nil, "10.1.0.0/21", 2)
		given := map[netip.Addr]bool{}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			got, _ := f.place(model.NodeID(rapid.IntRange(1, 2).Draw(rt, "node")), rapid.IntRange(0, 120).Draw(rt, "tasks"))
			for _, a := range got {
				if given[a] {
					rt.Fatalf("%s given twice", a)
				}
				given[a] = true
				if low := a.As4()[3]; low < 2 || low == 255 {
					rt.Fatalf("%s is not a task's address", a)
				}
			}
			for _, a := range got {
				if rapid.IntRange(0, 3).Draw(rt, "dies") == 0 {
					f.kill(a)
					delete(given, a)
				}
			}
			f.now += model.Time(time.Duration(rapid.IntRange(0, 90).Draw(rt, "seconds")) * time.Second)
		}
	})
}

func TestDynamicPortsEnd(t *testing.T) {
	f := setUp(nil, t, "10.1.0.0/22", 0)
	var all []swarm.PortConfig
	for p := uint32(30000); p <= 32767; p++ {
		all = append(all, swarm.PortConfig{Protocol: "tcp", TargetPort: p, PublishedPort: p})
	}
	f.service(2, all)
	f.apply(allocate.Ports(f.snap, 2))
	f.service(3, []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80}, {Protocol: "udp", TargetPort: 53}})
	f.apply(allocate.Ports(f.snap, 3))
	if got := f.snap.Service(3).PortError; got != "no free tcp port between 30000 and 32767 for target port 80" {
		t.Errorf("%q", got)
	}
	if txn := allocate.Ports(f.snap, 3); len(txn.Changes) != 0 {
		t.Error("planned twice")
	}
	f.service(2, nil)
	f.apply(allocate.Ports(f.snap, 2))
	f.apply(allocate.Ports(f.snap, 3))
	s := f.snap.Service(3)
	if s.PortError != "" || s.Ports[0].PublishedPort != 30000 || s.Ports[1].PublishedPort != 30000 {
		t.Errorf("%+v %q", s.Ports, s.PortError)
	}
}

func TestPortsOfAnotherServiceAreRefused(t *testing.T) {
	f := setUp(nil, t, "10.1.0.0/22", 0)
	f.service(2, []swarm.PortConfig{
		{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeIngress},
		{Protocol: "tcp", TargetPort: 81, PublishedPort: 8081, PublishMode: swarm.PortConfigPublishModeHost},
	})
	id := f.snap.Cluster().Namer().ServiceID(2)
	port := func(n uint32, mode swarm.PortConfigPublishMode) []swarm.PortConfig {
		return []swarm.PortConfig{{Protocol: "tcp", TargetPort: 1, PublishedPort: n, PublishMode: mode}}
	}
	for _, tt := range []struct {
		ports []swarm.PortConfig
		want  string
	}{
		{port(8080, "ingress"), "port '8080' is already in use by service 'svc2' (" + id + ") as an ingress port"},
		{port(8080, "host"), "port '8080' is already in use by service 'svc2' (" + id + ") as an ingress port"},
		{port(8081, "ingress"), "port '8081' is already in use by service 'svc2' (" + id + ") as a host-published port"},
		{port(8081, "host"), ""},
		{port(0, "ingress"), ""},
		{[]swarm.PortConfig{{Protocol: "udp", TargetPort: 1, PublishedPort: 8080}}, ""},
	} {
		err := allocate.CheckPorts(f.snap, 0, tt.ports)
		if got := fmt.Sprint(err); err == nil && tt.want != "" || err != nil && (got != tt.want || model.KindOf(err) != model.Invalid) {
			t.Errorf("%+v: %v, want %q", tt.ports, err, tt.want)
		}
		if err := allocate.CheckPorts(f.snap, 2, tt.ports); err != nil {
			t.Errorf("a service clashes with itself: %v", err)
		}
	}
}

func TestRevisionKeepsItsDynamicPorts(t *testing.T) {
	f := setUp(nil, t, "10.1.0.0/22", 0)
	spec := &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80}, {Protocol: "tcp", TargetPort: 81}}}
	f.service(2, spec.Ports)
	f.apply(allocate.Ports(f.snap, 2))
	spec.Ports = []swarm.PortConfig{{Protocol: "tcp", TargetPort: 79}, spec.Ports[1]}
	got, err := allocate.PortsFor(f.snap, 2, spec)
	if err != nil || got[0].PublishedPort != 30000 || got[1].PublishedPort != 30001 {
		t.Errorf("%+v %v", got, err)
	}
	// The fixed port of one entry is not given to another.
	spec.Ports = append(spec.Ports, swarm.PortConfig{Protocol: "tcp", TargetPort: 82, PublishedPort: 30000})
	if got, err = allocate.PortsFor(f.snap, 9, spec); err == nil {
		t.Errorf("port 30000 is another service's: %+v", got)
	}
	if got, err = allocate.PortsFor(f.snap, 2, spec); err != nil || got[0].PublishedPort != 30002 || got[2].PublishedPort != 30000 {
		t.Errorf("%+v %v", got, err)
	}
}
