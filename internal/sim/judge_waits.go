package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// waits judges a task that waits for a node in a healed swarm: there must be none that could take it. It asks all
// nodes all the questions anew, from what the state says of their tasks.
func (j *judge) waits(s *state.Snapshot, svc *model.Service, t *model.Task) string {
	if svc.PortError != "" || svc.NetError != "" || strings.HasPrefix(t.Err, "network ") {
		return "" // for a port, or for an address of an overlay network
	}
	for n := range s.Nodes() {
		if t.Node != 0 && t.Node != n.ID {
			continue
		}
		if ready := n.State == swarm.NodeStateReady && n.Spec.Availability == swarm.NodeAvailabilityActive; ready && matches(s, svc, n) && takes(s, t, n) {
			return fmt.Sprintf("%s waits (%s), and node %d could take it", short(t.ID), t.Err, n.ID)
		}
	}
	return ""
}

// takes reports whether a node has what a task asks for.
func takes(s *state.Snapshot, t *model.Task, n *model.Node) bool {
	tpl, svc := s.Template(t.Template), s.Service(t.ID.Service)
	if tpl == nil {
		return false
	}
	mem, cpu := n.Description.Resources.MemoryBytes, n.Description.Resources.NanoCPUs
	same, addrs := uint64(0), 0
	var generic []swarm.GenericResource
	for o := range s.TasksOnNode(n.ID) {
		if !booked(o) {
			continue
		}
		m, c := reserved(s, o)
		mem, cpu, addrs, generic = mem-m, cpu-c, addrs+1, append(generic, o.Generic...)
		if o.ID.Service == t.ID.Service && o.Desired <= model.StateRunning {
			same++
		}
		if other := s.Template(o.Template); other != nil && slices.ContainsFunc(tpl.FixedHostPorts(), func(p model.HostPort) bool { return slices.Contains(other.FixedHostPorts(), p) }) {
			return false
		}
	}
	if m, c := reserved(s, t); m > 0 && m > mem || c > 0 && c > cpu {
		return false
	}
	asked := map[string]int64{}
	for _, r := range reservations(tpl) {
		asked[model.GenericOf(r).Kind] += model.GenericOf(r).N
	}
	for kind, count := range asked {
		if _, free := model.FreeGeneric(n.Description.Resources.GenericResources, generic, kind); free < count {
			return false
		}
	}
	if p := svc.Spec().TaskTemplate.Placement; p != nil && p.MaxReplicas > 0 && same >= p.MaxReplicas {
		return false
	}
	for _, b := range n.Blocks {
		addrs -= 1<<(32-b.Bits()) - 3 // all but the network, the gateway and the broadcast address
	}
	return addrs < 0 || freeBlock(s)
}

// freeBlock reports whether the gateway pool has a block that is nobody's.
func freeBlock(s *state.Snapshot) bool {
	pool := s.Cluster().GatewayPool
	taken := map[netip.Prefix]bool{}
	for n := range s.Nodes() {
		for _, b := range n.Blocks {
			taken[netip.PrefixFrom(b.Addr(), 24).Masked()] = true
		}
	}
	for t := range s.AllTasks() {
		if booked(t) {
			taken[netip.PrefixFrom(t.Gateway4, 24).Masked()] = true
		}
	}
	return len(taken) < 1<<(24-pool.Bits())
}
