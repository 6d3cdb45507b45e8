package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

// tellNet sends tables of a network; m.mu is held.
func (m *scripted) tellNet(t *pb.NetTables) {
	b, err := proto.Marshal(t)
	if err != nil {
		panic(err)
	}
	m.out <- &pb.ToAgent{Kind: &pb.ToAgent_NetTables{NetTables: b}}
}

func TestTaskInOverlay(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	a, stop := h.start(t)
	vip := netip.MustParseAddr("10.0.1.2")
	row := func(num uint64, addr string, serving bool) *pb.NetTaskRow {
		return &pb.NetTaskRow{Task: &pb.TaskRef{Service: 1, Num: num}, Node: 1, Addr4: addr4(t, addr), Name: "web.1.x", Serving: serving}
	}
	eventually(t, "a session", m.connected)
	m.template(1, simpleSpec())
	m.set(func() {
		m.index++
		m.tellNet(&pb.NetTables{At: m.at(), Num: 7, Complete: true,
			Network:   &pb.NetworkInfo{Num: 7, Id: "id", Name: "front", Vni: 4097, Subnets: []string{"10.0.1.0/24"}, Gateways: []string{"10.0.1.1"}},
			Endpoints: []*pb.EndpointRow{{Service: 1, Name: "web", Vip: true, Vip4: addr4(t, vip.String())}},
			Tasks:     []*pb.NetTaskRow{row(1, "10.0.1.5", false)}})
	})
	m.set(func() { m.nets = []*pb.TaskNet{{Network: 7, Addr4: addr4(t, "10.0.1.5")}} })
	id := m.assign(1, 1, model.StateRunning)
	m.awaitState(id, model.StateRunning)
	backends := func() (out []string, known bool) {
		h.net.mu.Lock()
		defer h.net.mu.Unlock()
		list, known := h.net.nets[7][vip]
		for _, b := range list {
			out = append(out, b.String())
		}
		return out, known
	}
	want := func(what string, list ...string) {
		t.Helper()
		eventually(t, what, func() bool { got, known := backends(); return known && slices.Equal(got, list) })
	}
	want("no backend before it serves")
	h.net.mu.Lock()
	for _, task := range h.net.tasks {
		if len(task.Nets) != 1 || task.Nets[0].Addr4.String() != "10.0.1.5" {
			t.Errorf("the task has %v", task.Nets)
		}
	}
	h.net.mu.Unlock()
	tell := func(nt *pb.NetTables) {
		m.set(func() {
			m.index++
			nt.At, nt.Num = m.at(), 7
			m.tellNet(nt)
		})
	}
	tell(&pb.NetTables{Tasks: []*pb.NetTaskRow{row(1, "10.0.1.5", true), row(2, "10.0.1.6", true), row(3, "10.9.9.9", true)}})
	want("both serve, and an impossible row is left out", "10.0.1.5", "10.0.1.6")
	dns := netplan.DNSPorts{UDP: 4001, TCP: 4002}
	if err := a.setDNS(t.Context(), id, containerOf(h), dns); err != nil {
		t.Fatal(err)
	}
	stop()
	m.disconnect()

	// The daemon that comes next lays the same before it has heard of a manager.
	_, stop = h.start(t)
	defer stop()
	want("adopted", "10.0.1.5", "10.0.1.6")
	eventually(t, "the resolver is not forgotten", func() bool {
		h.net.mu.Lock()
		defer h.net.mu.Unlock()
		return len(h.net.tasks) == 1 && h.net.tasks[containerLocked(h)].DNS == dns
	})
	eventually(t, "a session", m.connected)
	tell(&pb.NetTables{Tasks: []*pb.NetTaskRow{row(2, "10.0.1.6", false)}, EndpointsRemoved: []uint64{9}})
	want("one left", "10.0.1.5")
	m.assign(1, 1, model.StateShutdown)
	m.awaitState(id, model.StateShutdown)
	tell(&pb.NetTables{Gone: true})
	eventually(t, "the network is gone", func() bool {
		h.net.mu.Lock()
		defer h.net.mu.Unlock()
		return h.net.nets[7] == nil
	})
}

func containerOf(h *host) string {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return containerLocked(h)
}

func containerLocked(h *host) string {
	for id := range h.net.tasks {
		return id
	}
	return ""
}
