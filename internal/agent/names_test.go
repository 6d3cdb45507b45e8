package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/keeper/dns"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

// sendNet tells the node of network 7.
func (m *scripted) sendNet(t *pb.NetTables) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index++
	t.Num, t.At = 7, m.at()
	b, err := proto.Marshal(t)
	if err != nil {
		m.t.Fatal(err)
	}
	m.out <- &pb.ToAgent{Kind: &pb.ToAgent_NetTables{NetTables: b}}
}

// TestNames follows one task's names over its life, a restart of the daemon, and a keeper that forgot.
func TestNames(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	spec := simpleSpec()
	spec.ContainerSpec.DNSConfig = &swarm.DNSConfig{Nameservers: []netip.Addr{netip.MustParseAddr("127.0.0.11"), netip.MustParseAddr("10.9.9.9")}}
	m.template(1, spec)
	id := m.assign(1, 1, model.StateRunning)
	m.set(func() {
		m.tasks[id].Nets = []*pb.TaskNet{{Network: 7, Addr4: addr4(t, "10.0.1.5")}}
	})
	_, stop := h.start(t)
	row := func(num uint64, serving bool) *pb.NetTaskRow {
		return &pb.NetTaskRow{Task: &pb.TaskRef{Service: 1, Num: num}, Addr4: addr4(t, "10.0.1.5"), Name: "web.1.x", Aliases: []string{"abc"}, Serving: serving}
	}
	eventually(t, "a session", m.connected)
	m.sendNet(&pb.NetTables{Complete: true, Network: &pb.NetworkInfo{Num: 7, Id: "id", Name: "front", Vni: 4097, Subnets: []string{"10.0.1.0/24"}, Gateways: []string{""}, Internal: true},
		Endpoints: []*pb.EndpointRow{{Service: 1, Name: "web", Aliases: []string{"www"}, Vip: true, Vip4: addr4(t, "10.0.1.2")}}, Tasks: []*pb.NetTaskRow{row(1, false)}})
	m.awaitState(id, model.StateRunning)
	cid := ContainerID(externalID(1))
	cfg, ports, ok := h.keeper.names(cid)
	want := dns.TaskNames{ID: cid, NetNS: "/netns/" + cid[:12], Networks: []uint64{7}, Self: dns.TaskKey{Service: 1, Num: 1},
		Servers: []netip.Addr{netip.MustParseAddr("10.9.9.9")}, ResolvConf: h.config().ResolvConf}
	if want.ResolvConf == "" {
		want.ResolvConf = "/etc/resolv.conf"
	}
	if d := cmp.Diff(want, cfg, cmpopts.EquateComparable(netip.Addr{})); !ok || d != "" {
		t.Errorf("the keeper answers: %v %s", ok, d)
	}
	if got := h.net.dns(cid); got != netplan.DNSPorts(ports) || got.UDP == 0 {
		t.Errorf("questions are led to %v, the keeper answers on %v", got, ports)
	}

	eventually(t, "the table", func() bool { return len(h.keeper.table(7)) == 1 })
	whole := dns.Table{Network: 7, Complete: true, Name: "front", Internal: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")},
		Services: []dns.ServiceRow{{Service: 1, Names: []string{"web", "www"}, VIP: true, Addr4: netip.MustParseAddr("10.0.1.2")}},
		Tasks:    []dns.TaskRow{{Key: dns.TaskKey{Service: 1, Num: 1}, Names: []string{"web.1.x", "abc"}, Addr4: netip.MustParseAddr("10.0.1.5")}}}
	same := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
	if d := cmp.Diff(whole, h.keeper.table(7)[0], same); d != "" {
		t.Error(d)
	}
	m.sendNet(&pb.NetTables{Tasks: []*pb.NetTaskRow{row(1, true)}, EndpointsRemoved: []uint64{1}})
	eventually(t, "the change", func() bool { return len(h.keeper.table(7)) == 2 })
	change := dns.Table{Network: 7, ServicesRemoved: []uint64{1}, Tasks: slices.Clone(whole.Tasks)}
	change.Tasks[0].Serving = true
	if d := cmp.Diff(change, h.keeper.table(7)[1], same); d != "" {
		t.Error(d)
	}

	// The next process finds the ports before its first full pass, and gives the whole table again.
	stop()
	h.keeper.mu.Lock()
	clear(h.keeper.tables)
	h.keeper.named["stranger"], h.keeper.tables[9] = dns.TaskNames{ID: "stranger"}, []dns.Table{{Network: 9}}
	h.keeper.mu.Unlock()
	_, stop = h.start(t)
	eventually(t, "the table again", func() bool { return len(h.keeper.table(7)) == 1 && len(h.keeper.table(9)) == 0 })
	eventually(t, "the stranger to be gone", func() bool { return h.keeper.numNamed() == 2 })
	if got := h.net.dns(cid); got != netplan.DNSPorts(ports) {
		t.Errorf("after a restart questions are led to %v", got)
	}

	// A keeper that lost everything.
	stop()
	h.keeper.mu.Lock()
	clear(h.keeper.named)
	h.keeper.mu.Unlock()
	h.start(t)
	eventually(t, "the names to be answered again", func() bool {
		_, now, ok := h.keeper.names(cid)
		return ok && now != ports && h.net.dns(cid) == netplan.DNSPorts(now)
	})

	m.assign(1, 1, model.StateShutdown)
	m.awaitState(id, model.StateShutdown)
	eventually(t, "the names to be closed", func() bool { _, _, ok := h.keeper.names(cid); return !ok })
	m.sendNet(&pb.NetTables{Gone: true})
	eventually(t, "the network to be forgotten", func() bool { return h.keeper.numNamed() == 0 })
}

// TestNamesRefused has a keeper that does not know what changed: it gets the whole.
func TestNamesRefused(t *testing.T) {
	k := newFakeKeeper()
	n := newNames(Config{Keeper: k})
	o := newOverlays()
	w := o.watch()
	at := &pb.Position{Incarnation: 1, Index: 1}
	take := func(m *pb.NetTables) {
		t.Helper()
		if _, err := o.takeTables(m); err != nil {
			t.Fatal(err)
		}
		if err := n.tell(t.Context(), o, w); err != nil {
			t.Fatal(err)
		}
	}
	take(&pb.NetTables{At: at, Num: 3, Complete: true, Network: &pb.NetworkInfo{Num: 3, Name: "n"}})
	clear(k.tables)
	take(&pb.NetTables{At: at, Num: 3, Endpoints: []*pb.EndpointRow{{Service: 1, Name: "web"}}})
	if got := k.table(3); len(got) != 1 || !got[0].Complete || len(got[0].Services) != 1 {
		t.Errorf("the keeper has %+v", got)
	}
}
