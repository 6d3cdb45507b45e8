package allocate_test

import (
	"bytes"
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

// network makes a network from what a user gave.
func (f *fixture) network(n model.Network) *model.Network {
	f.t.Helper()
	n.Driver = model.DriverOverlay
	if _, err := allocate.Network(f.snap, &n); err != nil {
		f.t.Fatalf("%v", err)
	}
	f.do(model.Change{PutNetwork: &n})
	return f.snap.Network(n.ID)
}

// attached makes a service whose tasks are in the networks; mode is that of its endpoint.
func (f *fixture) attached(id model.ServiceID, mode swarm.ResolutionMode, nets ...model.NetworkID) {
	f.t.Helper()
	s := swarm.ServiceSpec{EndpointSpec: &swarm.EndpointSpec{Mode: mode}}
	s.Name = fmt.Sprintf("svc%d", id)
	for _, n := range nets {
		s.TaskTemplate.Networks = append(s.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: f.snap.Cluster().Namer().NetworkID(n)})
	}
	spec, err := model.MakeSpec(&s)
	if err != nil {
		f.t.Fatalf("%v", err)
	}
	tpl, err := model.NewTemplate(id, spec, "")
	if err == nil {
		err = tpl.SetNetworks(f.snap.Cluster().Namer())
	}
	if err != nil {
		f.t.Fatalf("%v", err)
	}
	tpl.ID = f.snap.LastTemplate() + 1
	f.do(model.Change{NewRevision: &model.NewRevision{Service: id, Spec: spec, Template: tpl, TemplateID: tpl.ID}})
	if txn := allocate.VIPs(f.snap, id); len(txn.Changes) > 0 {
		f.apply(txn)
	}
	if txn := allocate.VIPs(f.snap, id); len(txn.Changes) > 0 {
		f.t.Fatalf("virtual addresses of service %d are planned twice", id)
	}
}

// run makes k tasks of a service on node 1, in one change as the planner does, and returns them.
func (f *fixture) run(id model.ServiceID, k int) []*model.Task {
	f.t.Helper()
	svc := f.snap.Service(id)
	put := &model.TasksPut{Service: id, Template: svc.Template, First: svc.LastTask + 1, Desired: model.StateRunning}
	put.Text("")
	for range k {
		put.Tasks = append(put.Tasks, model.TaskNew{Slot: 1, State: model.StateAssigned, Node: 1})
	}
	r := allocate.Fresh(f.snap, []*model.TasksPut{put}, f.now)
	f.apply(r.Blocks...)
	f.do(model.Change{PutTasks: put})
	var out []*model.Task
	for t := range f.snap.Tasks(id) {
		if t.ID.Num >= put.First {
			out = append(out, t)
		}
	}
	return out
}

func (f *fixture) end(t *model.Task) {
	f.t.Helper()
	f.seq++
	f.do(model.Change{Report: &model.Report{Node: t.Node, Session: 1, Seq: f.seq, Tasks: []model.TaskReport{{Task: t.ID, State: model.StateFailed}}}})
}

func swarmWithNets(t *rapid.T, tt *testing.T) *fixture {
	f := setUp(t, tt, "10.255.0.0/16", 1)
	c := *f.snap.Cluster()
	c.DefaultAddrPool, c.SubnetSize = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, 24
	c.GatewayULA = netip.MustParsePrefix("fd00:1:2::/48")
	f.do(model.Change{PutCluster: &c})
	return f
}

func TestSubnetsOfNetworks(t *testing.T) {
	f := swarmWithNets(nil, t)
	f.do(model.Change{SetNodeDesc: &model.NodeDescSet{Node: 1, Description: f.snap.Node(1).Description,
		Routes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.1.0/25")}}})
	for _, tt := range []struct {
		n    model.Network
		want string
		err  string
	}{
		{n: model.Network{Name: "a"}, want: "10.0.0.0/24 10.0.0.1"},
		{n: model.Network{Name: "b"}, want: "10.0.2.0/24 10.0.2.1"}, // 10.0.1.0/25 is routed elsewhere
		{n: model.Network{Name: "six", EnableIPv6: true}, want: "10.0.3.0/24 10.0.3.1 fd00:1:2:8003::/64 fd00:1:2:8003::1"},
		{n: model.Network{Name: "own", IPAM: []model.IPAMConfig{{Subnet: netip.MustParsePrefix("10.0.4.0/23"), Gateway: netip.MustParseAddr("10.0.5.9")}}},
			want: "10.0.4.0/23 10.0.5.9"},
		{n: model.Network{Name: "range", IPAM: []model.IPAMConfig{{Subnet: netip.MustParsePrefix("10.0.6.0/24"), Range: netip.MustParsePrefix("10.0.6.128/25")}}},
			want: "10.0.6.0/24 10.0.6.128"},
		{n: model.Network{Name: "same", IPAM: []model.IPAMConfig{{Subnet: netip.MustParsePrefix("10.0.4.0/24")}}}, want: "10.0.4.0/24 10.0.4.1 over own"},
		{n: model.Network{Name: "gw", IPAM: []model.IPAMConfig{{Subnet: netip.MustParsePrefix("10.255.7.0/24")}}}, err: "Pool overlaps with other one on this address space"},
		{n: model.Network{Name: "vni", Options: map[string]string{allocate.VXLANOption: "300"}}, want: "10.0.7.0/24 10.0.7.1 vni 300"},
		{n: model.Network{Name: "vni2", Options: map[string]string{allocate.VXLANOption: "300"}}, err: "vxlan id 300 is in use by network vni"},
	} {
		n := tt.n
		over, err := allocate.Network(f.snap, &n)
		if err != nil || tt.err != "" {
			if tt.err == "" || err == nil || !strings.Contains(err.Error(), tt.err) || model.KindOf(err) != model.Forbidden {
				t.Errorf("%s: %v", n.Name, err)
			}
			continue
		}
		var got []string
		for _, c := range n.IPAM {
			got = append(got, c.Subnet.String(), c.Gateway.String())
		}
		for _, o := range over {
			got = append(got, "over", o.Name)
		}
		if n.VNI < 4097 {
			got = append(got, "vni", fmt.Sprint(n.VNI))
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s: %s, want %s", n.Name, s, tt.want)
		}
		f.do(model.Change{PutNetwork: &n})
	}
}

func TestPoolsOfTheSwarmRunOut(t *testing.T) {
	f := swarmWithNets(nil, t)
	c := *f.snap.Cluster()
	c.DefaultAddrPool, c.SubnetSize = []netip.Prefix{netip.MustParsePrefix("10.20.0.0/23"), netip.MustParsePrefix("10.30.0.0/25")}, 24
	f.do(model.Change{PutCluster: &c})
	var got []string
	for i := range 3 {
		got = append(got, f.network(model.Network{Name: fmt.Sprint("n", i)}).IPAM[0].Subnet.String())
	}
	if fmt.Sprint(got) != "[10.20.0.0/24 10.20.1.0/24 10.30.0.0/25]" {
		t.Errorf("%v", got)
	}
	if _, err := allocate.Network(f.snap, &model.Network{Name: "more"}); model.KindOf(err) != model.Exhausted || !strings.Contains(err.Error(), "10.20.0.0/23, 10.30.0.0/25") {
		t.Errorf("%v", err)
	}
}

func TestAddressesOfTasksAndServices(t *testing.T) {
	f := swarmWithNets(nil, t)
	a := f.network(model.Network{Name: "front", EnableIPv6: true, IPAM: []model.IPAMConfig{
		{Subnet: netip.MustParsePrefix("10.9.0.0/28"), Aux: map[string]netip.Addr{"router": netip.MustParseAddr("10.9.0.4")}},
		{Subnet: netip.MustParsePrefix("fd00:9::/64"), Gateway: netip.MustParseAddr("fd00:9::5")}}})
	b := f.network(model.Network{Name: "back"})
	f.attached(2, "", a.ID, b.ID)
	f.attached(3, swarm.ResolutionModeDNSRR, a.ID)
	if vips := f.snap.Service(2).VIPs; fmt.Sprint(vips) != "[{1 10.9.0.2 fd00:9::2} {2 10.0.0.2 invalid IP}]" {
		t.Errorf("%v", vips)
	}
	if vips := f.snap.Service(3).VIPs; vips != nil {
		t.Errorf("dnsrr has %v", vips)
	}
	tasks := f.run(2, 2)
	// .4 is reserved, and .5 has the IPv6 gateway's place.
	if fmt.Sprint(tasks[0].Nets, tasks[1].Nets) != "[{1 10.9.0.3 fd00:9::3} {2 10.0.0.3 invalid IP}] [{1 10.9.0.6 fd00:9::6} {2 10.0.0.4 invalid IP}]" {
		t.Errorf("%v %v", tasks[0].Nets, tasks[1].Nets)
	}
	if !tasks[0].Gateway4.IsValid() {
		t.Error("a task in overlay networks has no gateway address")
	}
	// Twelve places: a subnet's own, broadcast, gateway, aux, IPv6 gateway are none.
	more := f.run(3, 10)
	waiting := 0
	for _, task := range more {
		if len(task.Nets) == 0 {
			waiting++
			if task.State != model.StatePending || task.Err != "network front: no free address in 10.9.0.0/28 (11 in use)" || task.Node != 0 {
				t.Errorf("%s %q on %d", task.State, task.Err, task.Node)
			}
		}
	}
	if waiting != 2 {
		t.Errorf("%d tasks wait", waiting)
	}
	// A fresh address is better than none; the oldest comes first.
	f.end(more[3])
	f.now += model.Time(time.Second)
	f.end(more[0])
	if got := f.run(3, 1)[0].Nets; len(got) != 1 || got[0] != more[3].Nets[0] {
		t.Errorf("%v, want %v", got, more[3].Nets)
	}
}

func TestHostNetworkTakesNoAddress(t *testing.T) {
	f := swarmWithNets(nil, t)
	f.attached(2, "", model.NetworkHost)
	if task := f.run(2, 1)[0]; task.Gateway4.IsValid() || task.Gateway6.IsValid() || task.State != model.StateAssigned {
		t.Errorf("%+v", task)
	}
}

func TestRemovedNetworkStaysUntilItsLastTask(t *testing.T) {
	f := swarmWithNets(nil, t)
	n := f.network(model.Network{Name: "front"})
	f.attached(2, "", n.ID)
	task := f.run(2, 1)[0]
	remove := func() error {
		f.index++
		next, out := f.snap.Apply(f.index, &model.Batch{Time: f.now, Txns: []model.Txn{{Changes: []model.Change{{DeleteNetwork: n.ID}}}}})
		f.snap = next
		return out.Results[0]
	}
	if err := remove(); model.KindOf(err) != model.FailedPrecondition || !strings.Contains(err.Error(), "is in use by service") {
		t.Errorf("%v", err)
	}
	f.do(model.Change{DeleteService: 2})
	if err := remove(); err != nil {
		t.Errorf("right after its service: %v", err)
	}
	if f.snap.NetworkByName("front") != nil || f.snap.Network(n.ID) == nil {
		t.Error("the network is not hidden")
	}
	if err := remove(); model.KindOf(err) != model.NotFound {
		t.Errorf("removed twice: %v", err)
	}
	again := f.network(model.Network{Name: "front"})
	if again.IPAM[0].Subnet == n.IPAM[0].Subnet || again.VNI == n.VNI {
		t.Error("the new network shares with one that still has a task")
	}
	f.end(task)
	if f.snap.Network(n.ID) != nil {
		t.Error("the network outlives its last task")
	}
}

// TestNoNetworkAddressTwice: whatever comes and goes, in one pass or many, no address of a network is given twice, none
// that is reserved, and a snapshot that was written and read again gives out the same.
func TestNoNetworkAddressTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := swarmWithNets(rt, nil)
		bits := rapid.IntRange(24, 29).Draw(rt, "bits")
		n := f.network(model.Network{Name: "n", IPAM: []model.IPAMConfig{{Subnet: netip.PrefixFrom(netip.MustParseAddr("10.7.0.0"), bits)},
			{Subnet: netip.PrefixFrom(netip.MustParseAddr("10.8.0.0"), 28)}}})
		f.attached(2, "", n.ID)
		room := 1<<(32-bits) - 3 + 16 - 3 - 1
		live := map[netip.Addr]*model.Task{}
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			for _, task := range f.run(2, rapid.IntRange(1, 90).Draw(rt, "tasks")) {
				if len(task.Nets) == 0 {
					if len(live) != room {
						rt.Fatalf("%d of %d addresses are in use, and a task waits: %s", len(live), room, task.Err)
					}
					continue
				}
				a := task.Nets[0].Addr4
				if live[a] != nil || a == f.snap.Service(2).VIPs[0].Addr4 {
					rt.Fatalf("%s given twice", a)
				}
				c, _ := n.Subnet4(a)
				if c == nil || c.Reserved(a) {
					rt.Fatalf("%s is no task's", a)
				}
				live[a] = task
			}
			for _, a := range sorted(live) {
				if rapid.IntRange(0, 2).Draw(rt, "ends") == 0 {
					f.end(live[a])
					delete(live, a)
				}
			}
			f.now += model.Time(time.Duration(rapid.IntRange(0, 90).Draw(rt, "seconds")) * time.Second)
			f.reread()
		}
	})
}

func sorted(m map[netip.Addr]*model.Task) []netip.Addr {
	var out []netip.Addr
	for a := netip.MustParseAddr("10.7.0.0"); len(out) < len(m); a = a.Next() {
		if m[a] != nil {
			out = append(out, a)
		}
	}
	return out
}

// reread goes on with the snapshot as it is read from its encoding.
func (f *fixture) reread() {
	f.t.Helper()
	var one, two bytes.Buffer
	if err := f.snap.Encode(&one); err != nil {
		f.t.Fatalf("%v", err)
	}
	raw := bytes.Clone(one.Bytes())
	s, err := state.Decode(&one)
	if err != nil {
		f.t.Fatalf("%v", err)
	}
	if err := s.Encode(&two); err != nil || !bytes.Equal(raw, two.Bytes()) {
		f.t.Fatalf("the encoding of what was read differs: %v", err)
	}
	f.snap = s
}

// BenchmarkFullNetwork gives ten tasks an address in a network with 60,000 in use.
func BenchmarkFullNetwork(b *testing.B) {
	f := &fixture{t: b, snap: state.New(), index: 1, now: start}
	f.do(model.Change{PutCluster: &model.Cluster{IDKey: [16]byte{7}, GatewayPool: netip.MustParsePrefix("172.16.0.0/12"), GatewayULA: netip.MustParsePrefix("fd00::/48")}})
	n := &model.Node{ID: 1, State: swarm.NodeStateReady}
	for i := range 260 {
		n.Blocks = append(n.Blocks, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i/256), byte(i), 0}), 24))
	}
	f.do(model.Change{PutNode: n}, model.Change{PutNode: &model.Node{ID: 2, State: swarm.NodeStateReady, Blocks: []netip.Prefix{netip.MustParsePrefix("172.20.0.0/24")}}})
	net := f.network(model.Network{Name: "n", IPAM: []model.IPAMConfig{{Subnet: netip.MustParsePrefix("10.8.0.0/16")}}})
	f.attached(2, "", net.ID)
	for range 25 {
		f.run(2, 2400)
	}
	if used, _ := f.snap.NetAddrs(net.ID); used != 60_001 {
		b.Fatalf("%d in use", used)
	}
	f.attached(3, "", net.ID)
	b.ResetTimer()
	for b.Loop() {
		put := &model.TasksPut{Service: 3, Template: f.snap.Service(3).Template, First: 1, Desired: model.StateRunning}
		put.Text("")
		for range 10 {
			put.Tasks = append(put.Tasks, model.TaskNew{Slot: 1, State: model.StateAssigned, Node: 2})
		}
		allocate.Fresh(f.snap, []*model.TasksPut{put}, f.now)
		if _, err := f.snap.With(model.Change{PutTasks: put}); err != nil || len(put.Tasks[9].Nets) != 1 {
			b.Fatal(err, put.Tasks[9])
		}
	}
}
