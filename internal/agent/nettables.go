package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

// Keys of a network in the store: net/NUM/at, …/info, …/e/SERVICE, …/t/SERVICE.NUM.
const netPrefix = "net/"

func netKey(id model.NetworkID, rest string) string {
	return netPrefix + strconv.FormatUint(uint64(id), 10) + "/" + rest
}

func endpointKey(id model.NetworkID, svc model.ServiceID) string {
	return netKey(id, "e/"+strconv.FormatUint(uint64(svc), 10))
}

func netTaskKey(id model.NetworkID, t model.TaskID) string { return netKey(id, "t/"+idText(t)) }

// takeNetTables applies what the managers say of an overlay network and writes it down. An older word than the last one of
// that network is refused.
func (a *Agent) takeNetTables(encoded []byte) error {
	m := &pb.NetTables{}
	if err := proto.Unmarshal(encoded, m); err != nil {
		return model.Invalidf("tables of a network: %v", err)
	}
	ops, err := a.overlays.takeTables(m)
	if err == nil {
		a.saved(a.store.write(ops...))
	}
	return err
}

// takeTables changes the networks as m says and returns what the store must be told.
func (o *overlays) takeTables(m *pb.NetTables) ([]op, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	id, at := model.NetworkID(m.Num), placeOf(m.At)
	have := o.nets[id]
	switch {
	case have != nil && at.before(have.at):
		return nil, model.Stalef("tables of network %d of index %d, and the node has applied %d", id, at.Index, have.at.Index)
	case m.Gone:
		return o.drop(id), nil
	case m.Complete:
		return o.takeWhole(m, id, at)
	case have == nil || o.drafts[id] != nil:
		return nil, model.Invalidf("a change of network %d, of which the node has no complete table", id)
	}
	c := &overlayChange{endpoints: map[model.ServiceID]struct{}{}, tasks: map[model.TaskID]struct{}{}}
	var ops []op
	if m.Network != nil {
		info, err := readInfo(m.Network)
		if err != nil {
			return nil, err
		}
		have.info, c.whole = info, true
		ops = append(ops, op{netKey(id, "info"), encode(m.Network)})
	}
	if have.takesBack(m) {
		o.back[id] = at
	}
	ops, err := have.rows(ops, m, c)
	if err != nil {
		return nil, err
	}
	for _, svc := range m.EndpointsRemoved {
		delete(have.endpoints, model.ServiceID(svc))
		c.endpoints[model.ServiceID(svc)] = struct{}{}
		ops = append(ops, op{Key: endpointKey(id, model.ServiceID(svc))})
	}
	for _, ref := range m.TasksRemoved {
		t := wire.TaskID(ref)
		delete(have.tasks, t)
		c.tasks[t] = struct{}{}
		ops = append(ops, op{Key: netTaskKey(id, t)})
	}
	have.at = at
	o.tell(id, c)
	return append(ops, op{netKey(id, "at"), encode(at)}), nil
}

// takeWhole gathers the parts of a complete table and puts the whole in the place of what was known.
func (o *overlays) takeWhole(m *pb.NetTables, id model.NetworkID, at place) ([]op, error) {
	d := o.drafts[id]
	if d == nil {
		if m.Network == nil {
			return nil, model.Invalidf("a complete table that does not say which network it is of")
		}
		if o.nets[id] == nil && len(o.nets) >= maxOverlays {
			return nil, model.Errorf(model.Exhausted, "more than %d networks on one node", maxOverlays)
		}
		info, err := readInfo(m.Network)
		if err != nil {
			return nil, err
		}
		d = &overlay{num: id, info: info, endpoints: map[model.ServiceID]overlayEndpoint{}, tasks: map[model.TaskID]overlayTask{}}
		d.draftOps = []op{{netKey(id, "info"), encode(m.Network)}}
	}
	ops, err := d.rows(d.draftOps, m, nil)
	if err != nil {
		delete(o.drafts, id)
		return nil, err
	}
	if m.More {
		d.draftOps = ops
		o.drafts[id] = d
		return nil, nil
	}
	delete(o.drafts, id)
	if old := o.nets[id]; old != nil {
		for svc := range old.endpoints {
			if _, ok := d.endpoints[svc]; !ok {
				ops = append(ops, op{Key: endpointKey(id, svc)})
			}
		}
		for t := range old.tasks {
			if _, ok := d.tasks[t]; !ok {
				ops = append(ops, op{Key: netTaskKey(id, t)})
			}
		}
	}
	d.at, d.draftOps = at, nil
	if o.nets[id] != nil {
		o.back[id] = at
	}
	o.nets[id] = d
	o.tell(id, &overlayChange{whole: true})
	return append(ops, op{netKey(id, "at"), encode(at)}), nil
}

// drop forgets a network; o.mu is held.
func (o *overlays) drop(id model.NetworkID) []op {
	delete(o.drafts, id)
	old := o.nets[id]
	if old == nil {
		return nil
	}
	delete(o.nets, id)
	delete(o.back, id) // nobody here goes by its tables
	ops := []op{{Key: netKey(id, "at")}, {Key: netKey(id, "info")}}
	for svc := range old.endpoints {
		ops = append(ops, op{Key: endpointKey(id, svc)})
	}
	for t := range old.tasks {
		ops = append(ops, op{Key: netTaskKey(id, t)})
	}
	o.tell(id, &overlayChange{whole: true})
	return ops
}

// keep drops every network that is not used: after a complete set of tasks it is known which are.
func (o *overlays) keep(used map[model.NetworkID]bool) (ops []op) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(o.nets)) {
		if !used[id] {
			ops = append(ops, o.drop(id)...)
		}
	}
	return ops
}

// begin forgets half tables of the last session.
func (o *overlays) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.drafts)
}

// takesBack reports whether a change takes away something that new connections were led to.
func (n *overlay) takesBack(m *pb.NetTables) bool {
	return len(m.EndpointsRemoved) > 0 ||
		slices.ContainsFunc(m.TasksRemoved, func(r *pb.TaskRef) bool { return n.tasks[wire.TaskID(r)].serving }) ||
		slices.ContainsFunc(m.Tasks, func(r *pb.NetTaskRow) bool { return !r.Serving && n.tasks[wire.TaskID(r.Task)].serving })
}

// rows takes in the rows of a message, and notes them in c.
func (n *overlay) rows(ops []op, m *pb.NetTables, c *overlayChange) ([]op, error) {
	if len(n.endpoints)+len(m.Endpoints)+len(n.tasks)+len(m.Tasks) > maxOverlayRows {
		return nil, model.Errorf(model.Exhausted, "more than %d rows of network %d", maxOverlayRows, n.num)
	}
	for _, r := range m.Endpoints {
		e, err := readEndpoint(r)
		if err != nil {
			return nil, err
		}
		id := model.ServiceID(r.Service)
		n.endpoints[id] = e
		ops = append(ops, op{endpointKey(n.num, id), encode(r)})
		if c != nil {
			c.endpoints[id] = struct{}{}
		}
	}
	for _, r := range m.Tasks {
		t, err := readNetTask(r)
		if err != nil {
			return nil, err
		}
		id := wire.TaskID(r.Task)
		n.tasks[id] = t
		ops = append(ops, op{netTaskKey(n.num, id), encode(r)})
		if c != nil {
			c.tasks[id] = struct{}{}
		}
	}
	return ops, nil
}

func readInfo(m *pb.NetworkInfo) (overlayInfo, error) {
	i := overlayInfo{id: m.Id, name: m.Name, vni: m.Vni, internal: m.Internal, ipv6: m.Ipv6, attachable: m.Attachable, options: m.Options}
	var err error
	if i.subnets, err = wire.Prefixes(m.Subnets); err != nil {
		return i, model.Invalidf("the subnets of network %s: %v", m.Name, err)
	}
	for _, text := range m.Gateways {
		var g netip.Addr
		if text != "" {
			if g, err = netip.ParseAddr(text); err != nil {
				return i, model.Invalidf("the gateways of network %s: %v", m.Name, err)
			}
		}
		i.gateways = append(i.gateways, g)
	}
	if len(i.gateways) != len(i.subnets) {
		return i, model.Invalidf("network %s has %d subnets and %d gateways", m.Name, len(i.subnets), len(i.gateways))
	}
	return i, nil
}

func readEndpoint(m *pb.EndpointRow) (overlayEndpoint, error) {
	e := overlayEndpoint{name: m.Name, aliases: m.Aliases[:min(len(m.Aliases), maxOverlayNames)], vip: m.Vip}
	var err error
	if e.vip4, e.vip6, err = addrs(m.Vip4, m.Vip6); err != nil {
		return e, model.Invalidf("the virtual address of service %s: %v", m.Name, err)
	}
	return e, nil
}

func readNetTask(m *pb.NetTaskRow) (overlayTask, error) {
	t := overlayTask{node: model.NodeID(m.Node), name: m.Name, aliases: m.Aliases[:min(len(m.Aliases), maxOverlayNames)], serving: m.Serving}
	var err error
	if t.addr4, t.addr6, err = addrs(m.Addr4, m.Addr6); err != nil {
		return t, model.Invalidf("the address of task %s: %v", m.Name, err)
	}
	return t, nil
}

func addrs(b4, b6 []byte) (a4, a6 netip.Addr, err error) {
	if a4, err = wire.Addr(b4); err != nil {
		return a4, a6, err
	}
	if a6, err = wire.Addr(b6); err == nil && (a4.IsValid() && !a4.Is4() || a6.IsValid() && !a6.Is6()) {
		err = fmt.Errorf("addresses %s and %s are of other kinds", a4, a6)
	}
	return a4, a6, err
}

// load restores one stored value of a network.
func (o *overlays) load(key string, value []byte) error {
	num, rest, _ := strings.Cut(strings.TrimPrefix(key, netPrefix), "/")
	v, err := strconv.ParseUint(num, 10, 64)
	if err != nil {
		return fmt.Errorf("stored %s: %w", key, err)
	}
	id := model.NetworkID(v)
	n := o.nets[id]
	if n == nil {
		n = &overlay{num: id, endpoints: map[model.ServiceID]overlayEndpoint{}, tasks: map[model.TaskID]overlayTask{}}
		o.nets[id] = n
	}
	switch kind, _, _ := strings.Cut(rest, "/"); kind {
	case "at":
		err = cbor.Unmarshal(value, &n.at)
	case "info":
		m := &pb.NetworkInfo{}
		if err = proto.Unmarshal(value, m); err == nil {
			n.info, err = readInfo(m)
		}
	case "e":
		m := &pb.EndpointRow{}
		if err = proto.Unmarshal(value, m); err == nil {
			_, err = n.rows(nil, &pb.NetTables{Endpoints: []*pb.EndpointRow{m}}, nil)
		}
	case "t":
		m := &pb.NetTaskRow{}
		if err = proto.Unmarshal(value, m); err == nil {
			_, err = n.rows(nil, &pb.NetTables{Tasks: []*pb.NetTaskRow{m}}, nil)
		}
	}
	if err != nil {
		return fmt.Errorf("stored %s: %w", key, err)
	}
	return nil
}
