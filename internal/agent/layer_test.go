package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// overlayTable tells of a network 10.0.NUM.0/24 with a service whose tasks are 10.0.NUM.5 and, while it serves, 10.0.NUM.6.
func (m *scripted) overlayTable(num uint64, six bool) {
	m.t.Helper()
	at := func(i int) []byte { return netip.AddrFrom4([4]byte{10, 0, byte(num), byte(i)}).AsSlice() }
	row := func(i int, serving bool) *pb.NetTaskRow {
		return &pb.NetTaskRow{Task: &pb.TaskRef{Service: 1, Num: num<<8 + uint64(i)}, Node: 1, Addr4: at(i), Name: fmt.Sprint("web.", i), Serving: serving}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index++
	m.tellNet(&pb.NetTables{At: m.at(), Num: num, Complete: true,
		Network: &pb.NetworkInfo{Num: num, Id: "id", Name: fmt.Sprint("net", num), Vni: uint32(4096 + num), Subnets: []string{fmt.Sprintf("10.0.%d.0/24", num)},
			Gateways: []string{fmt.Sprintf("10.0.%d.1", num)}},
		Endpoints: []*pb.EndpointRow{{Service: 1, Name: "web", Vip: true, Vip4: at(2)}},
		Tasks:     []*pb.NetTaskRow{row(5, true), row(6, six)}})
}

// takeBack tells that the second task of overlayTable serves no more, and fences it.
func (m *scripted) takeBack(num, fence uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index++
	m.tellNet(&pb.NetTables{At: m.at(), Num: num, TasksRemoved: []*pb.TaskRef{{Service: 1, Num: num<<8 + 6}}})
	m.fence(fence)
}

func (n *fakeNet) backends(num uint64) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.nets[num][netip.AddrFrom4([4]byte{10, 0, byte(num), 2})])
}

func (m *scripted) assignIn(num, network uint64) model.TaskID {
	m.set(func() {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(network), byte(100 + num)})
		m.nets = []*pb.TaskNet{{Network: network, Addr4: addr.AsSlice()}}
	})
	return m.assign(num, 1, model.StateRunning)
}

// A network that the kernel refuses rejects its own tasks with the reason. Other networks, ports and fences do not notice, and the
// network is there as soon as the kernel takes it.
func TestNetworkThatTheKernelRefuses(t *testing.T) {
	h := newHost(t)
	h.net.refused[7] = true
	m, a := inSession(t, h)
	m.overlayTable(7, true)
	m.overlayTable(8, true)
	bad := m.assignIn(1, 7)
	m.awaitState(m.assignIn(2, 8), model.StateRunning)
	m.publish(emptyWeb())
	eventually(t, "the port", func() bool { _, ok := h.net.port(webPort); return ok })
	begun := time.Now()
	m.takeBack(8, 1)
	m.takeBack(7, 2) // its tasks' tables are written all the same
	for range 2 {
		<-m.passed
	}
	if took := time.Since(begun); took > withdrawalWait/2 {
		t.Errorf("the fences took %v", took)
	}
	if got := []int{h.net.backends(7), h.net.backends(8)}; got[0] != 1 || got[1] != 1 {
		t.Errorf("backends after the fences: %v", got)
	}
	m.awaitState(bad, model.StateRejected)
	for _, i := range a.Tasks() {
		if i.ID == bad && !strings.Contains(i.Err, "network net7: another program of this host uses it") {
			t.Errorf("rejected with %q", i.Err)
		}
	}
	h.net.set(func() { h.net.refused[7] = false })
	m.awaitState(m.assignIn(3, 7), model.StateRunning)
}

// A fence waits for a network in which some task may still be led to what was taken back, and for no other.
func TestFenceWaitsForItsNetworks(t *testing.T) {
	h := newHost(t)
	m, _ := inSession(t, h)
	m.overlayTable(7, true)
	m.overlayTable(8, true)
	m.awaitState(m.assignIn(1, 7), model.StateRunning)
	m.awaitState(m.assignIn(2, 8), model.StateRunning)
	h.net.set(func() { h.net.locked[7] = true })
	m.takeBack(7, 1)
	m.takeBack(8, 2)
	if got := <-m.passed; got != 2 {
		t.Fatalf("passed fence %d, and a task goes by the old tables of its network", got)
	}
	m.set(func() { m.fence(3) })
	if got := <-m.passed; got != 3 {
		t.Fatalf("passed fence %d after it", got)
	}
	h.net.set(func() { h.net.locked[7] = false })
	if got := <-m.passed; got != 1 {
		t.Fatalf("passed fence %d at last", got)
	}
	if got := h.net.backends(7); got != 1 {
		t.Errorf("%d backends", got)
	}
}
