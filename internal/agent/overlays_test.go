package agent

import (
	"net/netip"
	"testing"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

func addr4(t *testing.T, s string) []byte {
	t.Helper()
	return wire.AddrBytes(netip.MustParseAddr(s))
}

// kept is what a store tells of networks to the process that starts next.
func kept(t *testing.T, s *store) *overlays {
	t.Helper()
	o := newOverlays()
	if err := s.each(netPrefix, o.load); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestNetworkTables(t *testing.T) {
	s, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	o := newOverlays()
	w := o.watch()
	take := func(m *pb.NetTables) error {
		t.Helper()
		m.Num = 7
		ops, err := o.takeTables(m)
		if err == nil {
			err = s.write(ops...)
		}
		return err
	}
	must := func(m *pb.NetTables) {
		t.Helper()
		if err := take(m); err != nil {
			t.Fatal(err)
		}
	}
	at := func(i uint64) *pb.Position { return &pb.Position{Incarnation: 1, Index: i} }
	task := func(num uint64, addr string, serving bool) *pb.NetTaskRow {
		return &pb.NetTaskRow{Task: &pb.TaskRef{Service: 1, Num: num}, Node: 1, Addr4: addr4(t, addr), Name: "web.1.x", Serving: serving}
	}
	info := &pb.NetworkInfo{Num: 7, Id: "id", Name: "front", Vni: 4097, Subnets: []string{"10.0.1.0/24"}, Gateways: []string{"10.0.1.1"}}

	if err := take(&pb.NetTables{At: at(5), Tasks: []*pb.NetTaskRow{task(1, "10.0.1.5", true)}}); model.KindOf(err) != model.Invalid {
		t.Errorf("a change of nothing: %v", err)
	}
	must(&pb.NetTables{At: at(5), Complete: true, More: true, Network: info, Tasks: []*pb.NetTaskRow{task(1, "10.0.1.5", false), task(2, "10.0.1.6", true)}})
	if w.take() != nil || len(o.list()) != 0 {
		t.Error("half a table has effect")
	}
	must(&pb.NetTables{At: at(5), Complete: true, Endpoints: []*pb.EndpointRow{{Service: 1, Name: "web", Vip: true, Vip4: addr4(t, "10.0.1.2")}}})
	if due := w.take(); len(due) != 1 || !due[7].whole {
		t.Errorf("%v", due)
	}
	must(&pb.NetTables{At: at(6), Tasks: []*pb.NetTaskRow{task(1, "10.0.1.5", true)}, TasksRemoved: []*pb.TaskRef{{Service: 1, Num: 2}}})
	must(&pb.NetTables{At: at(7), Endpoints: []*pb.EndpointRow{{Service: 2, Name: "db"}}, EndpointsRemoved: []uint64{1}})
	due := w.take()
	if c := due[7]; c == nil || c.whole || len(c.tasks) != 2 || len(c.endpoints) != 2 {
		t.Errorf("merged changes: %+v", due[7])
	}
	select {
	case <-w.wake:
	default:
		t.Error("nobody is woken")
	}
	if err := take(&pb.NetTables{At: at(6), Gone: true}); model.KindOf(err) != model.Stale {
		t.Errorf("an older word: %v", err)
	}
	for _, o := range []*overlays{o, kept(t, s)} {
		o.read(7, func(n *overlay) {
			id := model.TaskID{Service: 1, Num: 1}
			if n == nil || n.info.name != "front" || n.info.vni != 4097 || n.at.Index != 7 || len(n.tasks) != 1 || !n.tasks[id].serving ||
				n.tasks[id].addr4 != netip.MustParseAddr("10.0.1.5") || len(n.endpoints) != 1 || n.endpoints[2].name != "db" {
				t.Errorf("%+v", n)
			}
		})
		if p := o.applied(); p.Index != 7 {
			t.Errorf("applied %+v", p)
		}
	}
	// A complete table takes the place of all, in the store too.
	must(&pb.NetTables{At: at(7), Complete: true, Network: info, Tasks: []*pb.NetTaskRow{task(3, "10.0.1.9", true)}})
	kept(t, s).read(7, func(n *overlay) {
		if len(n.tasks) != 1 || len(n.endpoints) != 0 || n.tasks[model.TaskID{Service: 1, Num: 3}].name == "" {
			t.Errorf("%+v", n)
		}
	})
	// A consumer that comes late begins with everything; one that failed is asked again.
	late := o.watch()
	due = late.take()
	if !due[7].whole || late.take() != nil {
		t.Errorf("%v", due)
	}
	if late.again(due); !late.take()[7].whole {
		t.Error("forgotten")
	}
	if err := s.write(o.keep(map[model.NetworkID]bool{7: true})...); err != nil || len(o.list()) != 1 {
		t.Errorf("a network in use is dropped: %v", err)
	}
	if err := s.write(o.keep(nil)...); err != nil || len(o.list()) != 0 || len(kept(t, s).list()) != 0 {
		t.Errorf("a network without tasks is kept: %v", err)
	}
	if !w.take()[7].whole {
		t.Error("nobody hears that a network is gone")
	}
}
