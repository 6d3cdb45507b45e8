package dispatch

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// netRevision makes a service with the networks and aliases.
func netRevision(t interface{ Fatal(...any) }, snap *state.Snapshot, id model.ServiceID, mode swarm.ResolutionMode, alias string, nets ...model.NetworkID) model.Change {
	s := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: fmt.Sprintf("svc%d", id)}, EndpointSpec: &swarm.EndpointSpec{Mode: mode}}
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "img", Hostname: "h-{{.Task.Slot}}"}
	for _, n := range nets {
		s.TaskTemplate.Networks = append(s.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: snap.Cluster().Namer().NetworkID(n), Aliases: []string{alias}})
	}
	spec, err := model.MakeSpec(&s)
	if err != nil {
		t.Fatal(err)
	}
	tpl, err := model.NewTemplate(id, spec, "")
	if err == nil {
		err = tpl.SetNetworks(snap.Cluster().Namer())
	}
	if err != nil {
		t.Fatal(err)
	}
	tpl.ID = snap.LastTemplate() + 1
	return model.Change{NewRevision: &model.NewRevision{Service: id, Spec: spec, Template: tpl, TemplateID: tpl.ID}}
}

// netTable is what a node makes of the messages about one network.
type netTable struct {
	info      *pb.NetworkInfo
	endpoints map[uint64]*pb.EndpointRow
	tasks     map[model.TaskID]*pb.NetTaskRow
	at        uint64
	more      bool
}

func (n *netTable) take(t interface{ Fatalf(string, ...any) }, encoded []byte) {
	m := &pb.NetTables{}
	if err := proto.Unmarshal(encoded, m); err != nil {
		t.Fatalf("%v", err)
	}
	if m.At.GetIndex() < n.at {
		t.Fatalf("index %d after %d", m.At.GetIndex(), n.at)
	}
	n.at = m.At.GetIndex()
	if m.Complete && !n.more {
		n.info, n.endpoints, n.tasks = nil, map[uint64]*pb.EndpointRow{}, map[model.TaskID]*pb.NetTaskRow{}
	}
	n.more = m.More
	if m.Network != nil {
		n.info = m.Network
	}
	for _, r := range m.Endpoints {
		n.endpoints[r.Service] = r
	}
	for _, id := range m.EndpointsRemoved {
		delete(n.endpoints, id)
	}
	for _, r := range m.Tasks {
		n.tasks[wire.TaskID(r.Task)] = r
	}
	for _, r := range m.TasksRemoved {
		delete(n.tasks, wire.TaskID(r))
	}
}

func (n *netTable) String() string {
	return fmt.Sprint(n.info, n.endpoints, n.tasks)
}

// TestNetDeltasAreTheWhole: whoever follows the deltas of a network from any point on knows what the whole table says.
func TestNetDeltasAreTheWhole(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		snap := state.New()
		tables := newNets()
		tables.reset(snap)
		seq := uint64(0)
		step := func(changes ...model.Change) {
			before := snap
			next, out := snap.Apply(snap.Index()+1, &model.Batch{Time: model.Time(1e18 + snap.Index()), Txns: []model.Txn{{Changes: changes}}})
			snap = next
			touched := map[model.Key]struct{}{}
			for _, k := range out.Touched {
				touched[k] = struct{}{}
			}
			tables.update(before, snap, touched)
		}
		step(model.Change{PutCluster: &model.Cluster{IDKey: [16]byte{3}, GatewayPool: netip.MustParsePrefix("10.255.0.0/16"), GatewayULA: netip.MustParsePrefix("fd00::/48")}})
		step(model.Change{PutNode: &model.Node{ID: 1, State: swarm.NodeStateReady, Blocks: []netip.Prefix{netip.MustParsePrefix("10.255.0.0/24")}}})
		sessions := []*session{{}, {}}
		seen := map[*session]map[model.NetworkID]*netTable{}
		versions := map[*session]map[model.NetworkID]uint64{}
		for _, n := range sessions {
			seen[n], versions[n] = map[model.NetworkID]*netTable{}, map[model.NetworkID]uint64{}
		}
		for id := model.NetworkID(1); id <= 3; id++ {
			n := model.Network{Name: fmt.Sprint("n", id), EnableIPv6: id == 2}
			if _, err := allocate.Network(snap, &n); err != nil {
				rt.Fatal(err)
			}
			step(model.Change{PutNetwork: &n})
			for _, s := range sessions {
				tables.join(id, s)
				seen[s][id] = &netTable{}
			}
		}
		hear := func(n *session) {
			for id, table := range seen[n] {
				list, version := tables.since(id, versions[n][id], 0)
				for _, b := range list {
					table.take(rt, b)
				}
				versions[n][id] = version
			}
		}
		services := map[model.ServiceID]bool{}
		for range rapid.IntRange(1, 120).Draw(rt, "steps") {
			id := model.ServiceID(rapid.IntRange(1, 3).Draw(rt, "service"))
			switch what := rapid.IntRange(0, 9).Draw(rt, "what"); {
			case what <= 1:
				if !services[id] {
					id = snap.LastService() + 1
				}
				var nets []model.NetworkID
				for n := model.NetworkID(1); n <= 3; n++ {
					if rapid.Bool().Draw(rt, "in") {
						nets = append(nets, n)
					}
				}
				mode := rapid.SampledFrom([]swarm.ResolutionMode{"vip", "dnsrr"}).Draw(rt, "mode")
				step(netRevision(rt, snap, id, mode, rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "alias"), nets...))
				services[id] = true
				if txn := allocate.VIPs(snap, id); len(txn.Changes) > 0 {
					step(txn.Changes...)
				}
			case what == 2 && services[id]:
				step(model.Change{DeleteService: id})
				delete(services, id)
			case what <= 5 && services[id]:
				svc := snap.Service(id)
				put := &model.TasksPut{Service: id, Template: svc.Template, First: svc.LastTask + 1, Desired: model.StateRunning}
				put.Text("")
				for k := range rapid.IntRange(1, 4).Draw(rt, "tasks") {
					put.Tasks = append(put.Tasks, model.TaskNew{Slot: uint32(k + 1), State: model.StateAssigned, Node: 1})
				}
				allocate.Fresh(snap, []*model.TasksPut{put}, snap.Time())
				step(model.Change{PutTasks: put})
			case what <= 8:
				var tasks []*model.Task
				for task := range snap.AllTasks() {
					tasks = append(tasks, task)
				}
				if len(tasks) == 0 {
					continue
				}
				task := rapid.SampledFrom(tasks).Draw(rt, "task")
				if rapid.IntRange(0, 4).Draw(rt, "goes") == 0 {
					step(model.Change{DeleteTask: &task.ID})
					continue
				}
				seq++
				step(model.Change{Report: &model.Report{Node: 1, Session: 1, Seq: seq, Tasks: []model.TaskReport{{Task: task.ID,
					State: rapid.SampledFrom([]model.TaskState{model.StateStarting, model.StateRunning, model.StateFailed}).Draw(rt, "state")}}}})
			default:
				hear(sessions[0])
			}
		}
		hear(sessions[0])
		hear(sessions[1])
		for id := range seen[sessions[0]] {
			want := &netTable{}
			for _, b := range wholeNet(snap, id) {
				want.take(rt, b)
			}
			for i, n := range sessions {
				if got := seen[n][id]; got.String() != want.String() {
					rt.Fatalf("network %d, session %d:\n%s\nwant\n%s", id, i, got, want)
				}
			}
		}
	})
}

func netTablesOf(m *pb.ToAgent) (*pb.NetTables, bool) {
	if m.GetNetTables() == nil {
		return nil, false
	}
	t := &pb.NetTables{}
	return t, proto.Unmarshal(m.GetNetTables(), t) == nil
}

// TestSessionTellsOfItsNetworks: a node hears of a network before its first task in it, then what changes, and that it is
// gone after the last; of others' networks it hears nothing.
func TestSessionTellsOfItsNetworks(t *testing.T) {
	c := newCluster(t, 2)
	for _, name := range []string{"front", "back"} {
		n := model.Network{Name: name, Labels: map[string]string{}}
		if _, err := allocate.Network(c.rep.Snapshot(), &n); err != nil {
			t.Fatal(err)
		}
		c.apply(model.Change{PutNetwork: &n})
	}
	c.apply(netRevision(t, c.rep.Snapshot(), 1, "vip", "www", 1))
	c.apply(netRevision(t, c.rep.Snapshot(), 2, "vip", "db", 2))
	for id := model.ServiceID(1); id <= 2; id++ {
		c.apply(allocate.VIPs(c.rep.Snapshot(), id).Changes...)
	}
	place := func(svc model.ServiceID, num uint64, node model.NodeID) model.TaskID {
		id := model.TaskID{Service: svc, Num: num}
		net := model.NetworkID(svc)
		addr := c.rep.Snapshot().Network(net).IPAM[0].Subnet.Addr()
		for range 10 + num {
			addr = addr.Next()
		}
		c.apply(model.Change{PutTask: &model.Task{ID: id, Slot: uint32(num), Template: c.rep.Snapshot().Service(svc).Template, Node: node,
			State: model.StateAssigned, Desired: model.StateRunning, Nets: []model.TaskNet{{Network: net, Addr4: addr}}}})
		return id
	}
	place(2, 1, 2)
	p := c.mustJoin(1)
	next(p, "empty assignments", assignments)
	id := place(1, 1, 1)
	var tab *pb.NetTables
	a := next(p, "the task", func(m *pb.ToAgent) (*pb.Assignments, bool) {
		if n, ok := netTablesOf(m); ok {
			tab = n
		}
		return assignments(m)
	})
	if tab == nil || !tab.Complete || tab.More || tab.Num != 1 || tab.Network.GetName() != "front" || tab.Network.Vni != 4097 || len(tab.Tasks) != 1 || len(tab.Endpoints) != 1 {
		t.Fatalf("before the task: %v", tab)
	}
	if e := tab.Endpoints[0]; e.Name != "svc1" || !e.Vip || fmt.Sprint(e.Aliases) != "[www]" || len(e.Vip4) != 4 {
		t.Errorf("endpoint %v", e)
	}
	namer := c.rep.Snapshot().Cluster().Namer()
	row := tab.Tasks[0]
	if row.Name != "svc1.1."+namer.TaskID(id) || row.Serving || fmt.Sprint(row.Aliases) != fmt.Sprintf("[%s h-1]", model.ContainerID(namer.TaskID(id))[:12]) {
		t.Errorf("row %v", row)
	}
	if m := a.Tasks[0]; len(m.Nets) != 1 || m.Nets[0].Network != 1 || string(m.Nets[0].Addr4) != string(row.Addr4) || len(a.Templates[0].Nets) != 1 {
		t.Errorf("task %v", a)
	}
	other := place(1, 2, 2)
	if tab = next(p, "a task elsewhere", netTablesOf); tab.Complete || len(tab.Tasks) != 1 || wire.TaskID(tab.Tasks[0].Task) != other || tab.Tasks[0].Node != 2 {
		t.Errorf("%v", tab)
	}
	p.report(p.welcome.Session, 1, id, model.StateRunning)
	if tab = next(p, "it serves", netTablesOf); len(tab.Tasks) != 1 || !tab.Tasks[0].Serving {
		t.Errorf("%v", tab)
	}
	c.apply(model.Change{SetTaskDesired: &model.TaskDesiredSet{Task: id, Desired: model.StateShutdown}})
	if tab = next(p, "withdrawn, with its addresses", netTablesOf); len(tab.Tasks) != 1 || tab.Tasks[0].Serving || len(tab.Tasks[0].Addr4) != 4 {
		t.Errorf("%v", tab)
	}
	p.report(p.welcome.Session, 2, id, model.StateShutdown)
	if tab = next(p, "gone", netTablesOf); !tab.Gone || tab.Num != 1 || tab.At.GetIndex() == 0 {
		t.Errorf("%v", tab)
	}
	place(1, 3, 1)
	if tab = next(p, "back again", netTablesOf); !tab.Complete || len(tab.Tasks) != 2 {
		t.Errorf("%v", tab)
	}
}
