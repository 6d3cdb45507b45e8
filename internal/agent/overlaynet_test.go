package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

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
	h.keeper.listen(containerOf(h), dns.UDP, dns.TCP)
	if err := a.setDNS(t.Context(), id, containerOf(h), dns); err != nil {
		t.Fatal(err)
	}
	stop()
	m.disconnect()

	// The daemon that comes next lays the same before it has heard of a manager.
	h.start(t)
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

// A network that this node cannot have rejects its own tasks, with the reason; the node's passes succeed all the same.
func TestImpossibleOverlay(t *testing.T) {
	h := newHost(t)
	m, a := inSession(t, h)
	tell := func(num uint64, options map[string]string) {
		m.set(func() {
			m.index++
			subnet := fmt.Sprintf("10.0.%d.", num)
			m.tellNet(&pb.NetTables{At: m.at(), Num: num, Complete: true, Network: &pb.NetworkInfo{Num: num, Id: "id", Name: "net", Vni: uint32(4096 + num),
				Subnets: []string{subnet + "0/24"}, Gateways: []string{subnet + "1"}, Options: options}})
		})
	}
	in := func(num uint64, addr string) {
		m.set(func() { m.nets = []*pb.TaskNet{{Network: num, Addr4: addr4(t, addr)}} })
	}
	tell(8, nil)
	in(8, "10.0.8.5")
	m.awaitState(m.assign(1, 1, model.StateRunning), model.StateRunning) // the node's first full pass is over
	tell(7, map[string]string{mtuOption: "68"})
	in(7, "10.0.7.5")
	bad := m.assign(2, 1, model.StateRunning)
	m.awaitState(bad, model.StateRejected)
	for _, i := range a.Tasks() {
		if i.ID == bad && !strings.Contains(i.Err, "MTU 68: want 576 to 65535") {
			t.Errorf("rejected with %q", i.Err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if !a.net.awaitPass(ctx, nil) {
		t.Error("no pass succeeds")
	}
}

// What a running task has of the network stays when mending it fails.
func TestFailedMendKeepsTheTask(t *testing.T) {
	h := newHost(t)
	m, a := inSession(t, h)
	id := m.assign(1, 1, model.StateRunning)
	m.awaitState(id, model.StateRunning)
	has := a.net.tasks()[id]
	h.net.mu.Lock()
	h.net.fail = errors.New("no buffer space")
	h.net.mu.Unlock()
	changed := has
	changed.DNS = netplan.DNSPorts{UDP: 1, TCP: 1}
	if _, err := a.net.addTask(t.Context(), id, changed); err == nil {
		t.Error("it did not fail")
	}
	if got, ok := a.net.tasks()[id]; !ok || got.DNS != has.DNS {
		t.Errorf("the task is %+v now, %v", got, ok)
	}
	other := model.TaskID{Service: 9, Num: 9}
	if _, err := a.net.addTask(t.Context(), other, changed); err == nil {
		t.Error("it did not fail")
	}
	if _, ok := a.net.tasks()[other]; ok {
		t.Error("a task that was not made is there")
	}
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
