package dispatch

import (
	"cmp"
	"slices"
	"sync"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

const (
	keptDeltas     = 64
	keptDeltaBytes = 4 << 20
)

// portKey is a published port.
type portKey struct {
	proto string
	port  uint32
}

// tables are the rows that all nodes share, with the last deltas. Each version is encoded once for all
// sessions. Safe for concurrent use.
type tables struct {
	mu      sync.Mutex
	version uint64
	at      *pb.Position // the state that the rows are of, whether it changed any or not
	ports   map[portKey]*pb.PortRow
	nodes   map[model.NodeID]*pb.NodeRow
	deltas  []delta
	bytes   int      // in deltas
	whole   [][]byte // the complete tables at version, made when asked for
	wholeAt uint64   // the index that they say
}

// delta leads from the version before it to its own.
type delta struct {
	version uint64
	encoded []byte
}

func newTables() *tables {
	return &tables{ports: map[portKey]*pb.PortRow{}, nodes: map[model.NodeID]*pb.NodeRow{}}
}

// reset computes everything anew; every session gets the complete tables.
func (t *tables) reset(snap *state.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version++
	t.deltas, t.bytes, t.whole = nil, 0, nil
	t.ports, t.nodes = map[portKey]*pb.PortRow{}, map[model.NodeID]*pb.NodeRow{}
	t.at = nil
	if snap.Cluster() == nil {
		return
	}
	t.at = at(snap)
	for s := range snap.Services() {
		for k, row := range rows(snap, s) {
			t.ports[k] = row
		}
	}
	for n := range snap.Nodes() {
		t.nodes[n.ID] = nodeRow(n)
	}
}

// update computes the rows that a step concerns, and reports whether any changed.
func (t *tables) update(before, after *state.Snapshot, touched map[model.Key]struct{}) bool {
	if after.Cluster() == nil {
		return false
	}
	services, nodes := map[model.ServiceID]struct{}{}, []model.NodeID{}
	for k := range touched {
		switch k.Kind {
		case model.KindService:
			services[k.Service()] = struct{}{}
		case model.KindTask:
			id := k.Task()
			if isBackend(before.Task(id)) != isBackend(after.Task(id)) || canServe(before.Task(id)) != canServe(after.Task(id)) {
				services[id.Service] = struct{}{}
			}
		case model.KindNode:
			nodes = append(nodes, k.Node())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at = at(after)
	d := &pb.Tables{At: t.at}
	for id := range services {
		t.updateService(d, before.Service(id), after.Service(id), after)
	}
	for _, id := range nodes {
		t.updateNode(d, id, after.Node(id))
	}
	if len(d.Ports)+len(d.PortsRemoved)+len(d.Nodes)+len(d.NodesRemoved) == 0 {
		return false
	}
	t.push(d)
	return true
}

// updateService replaces a service's rows. Ports that went from one service to another in one step keep the new
// owner's row, whichever of the two is looked at first.
func (t *tables) updateService(d *pb.Tables, old, now *model.Service, after *state.Snapshot) {
	var fresh map[portKey]*pb.PortRow
	if now != nil {
		fresh = rows(after, now)
	}
	if old != nil {
		for _, p := range ingressPorts(old) {
			k := keyOf(p)
			row := t.ports[k]
			if fresh[k] != nil || row == nil || row.Service != uint64(old.ID) {
				continue
			}
			delete(t.ports, k)
			if _, taken := after.PortOwner(k.proto, k.port); !taken {
				d.PortsRemoved = append(d.PortsRemoved, &pb.PortKey{Protocol: k.proto, Port: k.port})
			}
		}
	}
	for k, row := range fresh {
		if !proto.Equal(t.ports[k], row) {
			t.ports[k] = row
			d.Ports = append(d.Ports, row)
		}
	}
}

func (t *tables) updateNode(d *pb.Tables, id model.NodeID, n *model.Node) {
	if n == nil {
		if t.nodes[id] != nil {
			delete(t.nodes, id)
			d.NodesRemoved = append(d.NodesRemoved, uint64(id))
		}
		return
	}
	if row := nodeRow(n); !proto.Equal(t.nodes[id], row) {
		t.nodes[id] = row
		d.Nodes = append(d.Nodes, row)
	}
}

func (t *tables) push(d *pb.Tables) {
	t.version++
	t.whole = nil
	encoded := mustMarshal(d)
	t.deltas = append(t.deltas, delta{t.version, encoded})
	t.bytes += len(encoded)
	for len(t.deltas) > keptDeltas || t.bytes > keptDeltaBytes {
		t.bytes -= len(t.deltas[0].encoded)
		t.deltas = t.deltas[1:]
	}
}

// since returns what leads from a version (0: nothing) to the one returned. Whole tables say at least the index floor, which the
// node has applied: it refuses older ones, also when nothing has changed since.
func (t *tables) since(version, floor uint64) ([][]byte, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if version == t.version || t.at == nil {
		return nil, t.version
	}
	if len(t.deltas) > 0 && version+1 >= t.deltas[0].version && version < t.version {
		var out [][]byte
		for _, d := range t.deltas {
			if d.version > version {
				out = append(out, d.encoded)
			}
		}
		return out, t.version
	}
	if t.whole == nil || t.wholeAt < floor {
		t.whole, t.wholeAt = t.encodeWhole(), t.at.Index
	}
	return t.whole, t.version
}

// encodeWhole makes the complete tables in parts of bounded size.
func (t *tables) encodeWhole() [][]byte {
	var list []*pb.Tables
	size := wire.SoftMessage
	part := func(add int) *pb.Tables {
		if size >= wire.SoftMessage {
			list = append(list, &pb.Tables{At: t.at, Complete: true, More: true})
			size = 0
		}
		size += add
		return list[len(list)-1]
	}
	part(0)
	for _, row := range t.ports {
		p := part(proto.Size(row))
		p.Ports = append(p.Ports, row)
	}
	for _, row := range t.nodes {
		p := part(proto.Size(row))
		p.Nodes = append(p.Nodes, row)
	}
	list[len(list)-1].More = false
	out := make([][]byte, 0, len(list))
	for _, m := range list {
		out = append(out, mustMarshal(m))
	}
	return out
}

// mustMarshal encodes a message made here, which cannot fail: strings come from the state, which checked them.
func mustMarshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func ingressPorts(s *model.Service) []swarm.PortConfig {
	return slices.DeleteFunc(slices.Clone(s.Ports), func(p swarm.PortConfig) bool {
		return p.PublishMode == swarm.PortConfigPublishModeHost || p.PublishedPort == 0 || p.TargetPort == 0
	})
}

func keyOf(p swarm.PortConfig) portKey {
	return portKey{string(cmp.Or(p.Protocol, network.TCP)), p.PublishedPort}
}

// rows are a service's published ports in ingress mode with the tasks behind them.
func rows(snap *state.Snapshot, s *model.Service) map[portKey]*pb.PortRow {
	ports := ingressPorts(s)
	if len(ports) == 0 {
		return nil
	}
	out := make(map[portKey]*pb.PortRow, len(ports))
	for _, p := range ports {
		k := keyOf(p)
		out[k] = &pb.PortRow{Key: &pb.PortKey{Protocol: k.proto, Port: k.port}, Service: uint64(s.ID)}
	}
	for t := range serving(snap, s.ID) {
		if !t.Gateway4.IsValid() && !t.Gateway6.IsValid() {
			continue
		}
		for _, p := range ports {
			row := out[keyOf(p)]
			row.Backends = append(row.Backends, &pb.Backend{Task: wire.Ref(t.ID), Node: uint64(t.Node), Port: p.TargetPort,
				Addr4: wire.AddrBytes(t.Gateway4), Addr6: wire.AddrBytes(t.Gateway6)})
		}
	}
	return out
}

func nodeRow(n *model.Node) *pb.NodeRow {
	return &pb.NodeRow{Num: uint64(n.ID), Addr: n.Addr, GatewayBlocks: wire.PrefixTexts(n.Blocks), Gateway6: wire.PrefixText(n.Gateway6)}
}
