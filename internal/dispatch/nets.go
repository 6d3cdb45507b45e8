package dispatch

import (
	"cmp"
	"slices"
	"sync"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

// keptNetDeltaBytes bounds the deltas that are kept of one network, in bytes.
const keptNetDeltaBytes = 256 << 10

// nets are the tables of the overlay networks in which some session's node has tasks. Rows are not stored: a delta is the
// difference of two snapshots, a whole table is read from the newest one; each is encoded once for all sessions. Safe for
// concurrent use.
type nets struct {
	mu      sync.Mutex
	snap    *state.Snapshot // the tables are those of this state
	version uint64          // of the last delta of any network
	feeds   map[model.NetworkID]*feed
}

// feed is one network's table as it is sent.
type feed struct {
	users   map[*session]struct{}
	version uint64 // of the last delta
	oldest  uint64 // a version from which the deltas lead on
	deltas  []delta
	bytes   int      // in deltas
	whole   [][]byte // the complete table at version, made when asked for
	wholeAt uint64   // the index that it says
}

func newNets() *nets { return &nets{feeds: map[model.NetworkID]*feed{}} }

// reset is for a state that came as a whole: every session begins anew.
func (t *nets) reset(snap *state.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.snap = snap
	t.version++
	for _, f := range t.feeds {
		f.version, f.oldest, f.deltas, f.bytes, f.whole = t.version, t.version, nil, 0, nil
	}
}

// update takes in a step and returns the sessions that have something to hear.
func (t *nets) update(before, after *state.Snapshot, touched map[model.Key]struct{}) map[*session]struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.snap = after
	if len(t.feeds) == 0 || after.Cluster() == nil {
		return nil
	}
	due := map[*session]struct{}{}
	for id, list := range netDeltas(before, after, touched, func(id model.NetworkID) bool { return t.feeds[id] != nil }) {
		f := t.feeds[id]
		t.version++
		f.push(t.version, list)
		for n := range f.users {
			due[n] = struct{}{}
		}
	}
	return due
}

func (f *feed) push(version uint64, list [][]byte) {
	f.version, f.whole = version, nil
	for _, b := range list {
		f.deltas = append(f.deltas, delta{version, b})
		f.bytes += len(b)
	}
	for len(f.deltas) > keptDeltas || f.bytes > keptNetDeltaBytes {
		f.bytes -= len(f.deltas[0].encoded)
		f.oldest = f.deltas[0].version // half of a version leads nowhere
		f.deltas = f.deltas[1:]
	}
}

// join makes a session one that hears of a network, leave ends that.
func (t *nets) join(id model.NetworkID, n *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.feeds[id]
	if f == nil {
		t.version++
		f = &feed{users: map[*session]struct{}{}, version: t.version, oldest: t.version}
		t.feeds[id] = f
	}
	f.users[n] = struct{}{}
}

func (t *nets) leave(id model.NetworkID, n *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.feeds[id]; f != nil {
		if delete(f.users, n); len(f.users) == 0 {
			delete(t.feeds, id)
		}
	}
}

// since returns what leads a session that joined from a version (0: nothing) to the one returned, which is 0 when nothing
// can be said of the network yet. A whole table says at least the index floor, which the node has applied.
func (t *nets) since(id model.NetworkID, version, floor uint64) ([][]byte, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.feeds[id]
	if f == nil || version == f.version {
		return nil, version
	}
	if version != 0 && version >= f.oldest {
		var out [][]byte
		for _, d := range f.deltas {
			if d.version > version {
				out = append(out, d.encoded)
			}
		}
		return out, f.version
	}
	if t.snap.Cluster() == nil || t.snap.Network(id) == nil || t.snap.Index() < floor {
		return nil, version
	}
	if f.whole == nil || f.wholeAt < floor {
		f.whole, f.wholeAt = wholeNet(t.snap, id), t.snap.Index()
	}
	return f.whole, f.version
}

// gone is the word to a node that has no task in a network any more.
func (t *nets) gone(id model.NetworkID) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return mustMarshal(&pb.NetTables{At: at(t.snap), Num: uint64(id), Gone: true})
}

// netParts gathers rows in messages of bounded size.
type netParts struct {
	id       model.NetworkID
	at       *pb.Position
	complete bool
	list     []*pb.NetTables
	size     int
}

func (p *netParts) part(add int) *pb.NetTables {
	if len(p.list) == 0 || p.size >= wire.SoftMessage {
		p.list = append(p.list, &pb.NetTables{At: p.at, Num: uint64(p.id), Complete: p.complete, More: p.complete})
		p.size = 0
	}
	p.size += add
	return p.list[len(p.list)-1]
}

func (p *netParts) endpoint(r *pb.EndpointRow) {
	m := p.part(proto.Size(r))
	m.Endpoints = append(m.Endpoints, r)
}

func (p *netParts) task(r *pb.NetTaskRow) {
	m := p.part(proto.Size(r))
	m.Tasks = append(m.Tasks, r)
}

func (p *netParts) encode() [][]byte {
	if len(p.list) == 0 {
		return nil
	}
	p.list[len(p.list)-1].More = false
	out := make([][]byte, 0, len(p.list))
	for _, m := range p.list {
		out = append(out, mustMarshal(m))
	}
	return out
}

func wholeNet(snap *state.Snapshot, id model.NetworkID) [][]byte {
	p := &netParts{id: id, at: at(snap), complete: true}
	p.part(0).Network = networkInfo(snap, snap.Network(id))
	for svc := range snap.NetworkServices(id) {
		p.endpoint(endpointRow(snap, svc, id))
	}
	w := &netRows{snap: snap}
	for t := range snap.NetworkTasks(id) {
		p.task(w.row(t, id))
	}
	return p.encode()
}

// netDeltas are the differences of two states, for the networks that wanted asks for.
func netDeltas(before, after *state.Snapshot, touched map[model.Key]struct{}, wanted func(model.NetworkID) bool) map[model.NetworkID][][]byte {
	d := &netDiff{before: &netRows{snap: before}, after: &netRows{snap: after}, wanted: wanted, parts: map[model.NetworkID]*netParts{}, seen: map[model.TaskID]struct{}{}}
	for k := range touched {
		switch k.Kind {
		case model.KindService:
			d.service(k.Service())
		case model.KindTask:
			d.touchedTask(k.Task())
		}
	}
	out := make(map[model.NetworkID][][]byte, len(d.parts))
	for id, p := range d.parts {
		out[id] = p.encode()
	}
	return out
}

type netDiff struct {
	before, after *netRows
	wanted        func(model.NetworkID) bool
	parts         map[model.NetworkID]*netParts
	seen          map[model.TaskID]struct{}
}

func (d *netDiff) of(id model.NetworkID) *netParts {
	p := d.parts[id]
	if p == nil {
		p = &netParts{id: id, at: at(d.after.snap)}
		d.parts[id] = p
	}
	return p
}

func (d *netDiff) service(id model.ServiceID) {
	old, now := d.before.snap.Service(id), d.after.snap.Service(id)
	had, has := attachments(d.before.snap, old), attachments(d.after.snap, now)
	for _, a := range has {
		if !d.wanted(a.Network) {
			continue
		}
		row := endpointRow(d.after.snap, now, a.Network)
		if !attached(had, a.Network) || !proto.Equal(row, endpointRow(d.before.snap, old, a.Network)) {
			d.of(a.Network).endpoint(row)
		}
	}
	for _, a := range had {
		if d.wanted(a.Network) && !attached(has, a.Network) {
			m := d.of(a.Network).part(8)
			m.EndpointsRemoved = append(m.EndpointsRemoved, uint64(id))
		}
	}
}

// touchedTask compares a task's rows, and those of its siblings when the rule of who serves changed with it.
func (d *netDiff) touchedTask(id model.TaskID) {
	if netless(d.before.snap.Task(id)) && netless(d.after.snap.Task(id)) {
		return
	}
	d.task(id)
	if d.before.rule(id.Service) == d.after.rule(id.Service) {
		return
	}
	for t := range d.after.snap.Tasks(id.Service) {
		d.task(t.ID)
	}
}

func netless(t *model.Task) bool { return t == nil || len(t.Nets) == 0 }

func (d *netDiff) task(id model.TaskID) {
	if _, twice := d.seen[id]; twice {
		return
	}
	d.seen[id] = struct{}{}
	old, now := d.before.snap.Task(id), d.after.snap.Task(id)
	if holdsNets(now) {
		for i := range now.Nets {
			net := now.Nets[i].Network
			if !d.wanted(net) {
				continue
			}
			row := d.after.row(now, net)
			if !holdsNets(old) || !proto.Equal(row, d.before.row(old, net)) {
				d.of(net).task(row)
			}
		}
		return
	}
	if !holdsNets(old) {
		return
	}
	for i := range old.Nets {
		if net := old.Nets[i].Network; d.wanted(net) {
			m := d.of(net).part(16)
			m.TasksRemoved = append(m.TasksRemoved, wire.Ref(id))
		}
	}
}

// holdsNets reports whether a task has its addresses in overlay networks, as the state books them.
func holdsNets(t *model.Task) bool {
	return t != nil && len(t.Nets) > 0 && t.Node != 0 && t.State >= model.StateAssigned && !t.State.Terminal()
}

func attached(list []model.NetAttach, id model.NetworkID) bool {
	return slices.ContainsFunc(list, func(a model.NetAttach) bool { return a.Network == id })
}

func attachments(snap *state.Snapshot, svc *model.Service) []model.NetAttach {
	if svc == nil {
		return nil
	}
	if t := snap.Template(svc.Template); t != nil {
		return t.Nets
	}
	return nil
}

// trackNets notes which networks the node's tasks are in. It is called for every task that is looked at.
func (v *view) trackNets(t *model.Task, id model.TaskID) {
	var now []model.TaskNet
	if holdsNets(t) {
		now = t.Nets
	}
	old := v.taskNets[id]
	if len(old) == 0 && len(now) == 0 {
		return
	}
	for _, n := range now {
		v.netRefs[n.Network]++
	}
	for _, n := range old {
		if v.netRefs[n.Network]--; v.netRefs[n.Network] == 0 {
			delete(v.netRefs, n.Network)
		}
	}
	if v.taskNets[id] = now; len(now) == 0 {
		delete(v.taskNets, id)
	}
}

// dueNets makes what a node does not know of its networks yet: tables go before the tasks that need them, the word that a
// network is not the node's any more after them.
func (n *session) dueNets() (tables, gone []*pb.ToAgent) {
	message := func(b []byte) *pb.ToAgent { return &pb.ToAgent{Kind: &pb.ToAgent_NetTables{NetTables: b}} }
	v := &n.view
	ids := make([]model.NetworkID, 0, len(v.netRefs))
	for id := range v.netRefs {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b model.NetworkID) int { return cmp.Compare(a, b) })
	for _, id := range ids {
		if _, known := v.nets[id]; !known {
			n.srv.nets.join(id, n)
		}
		var list [][]byte
		if list, v.nets[id] = n.srv.nets.since(id, v.nets[id], n.floor); len(list) > 0 {
			for _, b := range list {
				tables = append(tables, message(b))
			}
		}
	}
	for id, version := range v.nets {
		if v.netRefs[id] > 0 {
			continue
		}
		delete(v.nets, id)
		n.srv.nets.leave(id, n)
		if version != 0 {
			gone = append(gone, message(n.srv.nets.gone(id)))
		}
	}
	return tables, gone
}

// leaveNets ends the session's part in all networks.
func (n *session) leaveNets() {
	for id := range n.view.nets {
		n.srv.nets.leave(id, n)
	}
}
