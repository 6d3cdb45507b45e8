package dispatch

import (
	"cmp"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

// view is what one node has been told in this session, so that only differences are sent.
type view struct {
	snap   *state.Snapshot
	sent   map[model.TaskID]sentTask
	refs   map[model.TemplateID]int // sent tasks of each template; the node forgets a template with its last task
	needs  needs
	node   *pb.NodeInfo
	tables uint64 // version of the tables, 0 for none
	// Overlay networks: of each task, how many tasks are in each, and the version sent of each (0: none yet).
	taskNets map[model.TaskID][]model.TaskNet
	netRefs  map[model.NetworkID]int
	nets     map[model.NetworkID]uint64
}

// sentTask is what of a task the node acts on.
type sentTask struct {
	desired  model.TaskState
	placeVer uint64
	template model.TemplateID
	live     bool // it needs its secrets and configs; says nothing to the node by itself
}

func (v *view) reset() {
	*v = view{snap: v.snap, tables: v.tables, sent: map[model.TaskID]sentTask{}, refs: map[model.TemplateID]int{}, needs: newNeeds(),
		taskNets: map[model.TaskID][]model.TaskNet{}, netRefs: map[model.NetworkID]int{}, nets: map[model.NetworkID]uint64{}}
}

// parts gathers messages of bounded size.
type parts struct {
	at       *pb.Position
	complete bool
	list     []*pb.Assignments
	size     int
}

func (p *parts) last() *pb.Assignments {
	if len(p.list) == 0 || p.size >= wire.SoftMessage {
		p.list = append(p.list, &pb.Assignments{At: p.at, Complete: p.complete})
		p.size = 0
	}
	return p.list[len(p.list)-1]
}

func (p *parts) done() []*pb.Assignments {
	for i := range p.list {
		p.list[i].More = i < len(p.list)-1
	}
	return p.list
}

// complete makes the whole set of a node's tasks; the view has been reset.
func (v *view) complete(snap *state.Snapshot, node model.NodeID) []*pb.Assignments {
	p := &parts{at: at(snap), complete: true}
	v.node = nodeInfo(snap, node)
	p.last().Node = v.node
	for t := range snap.TasksOnNode(node) {
		v.trackNets(t, t.ID)
		v.add(p, snap, t)
	}
	return p.done()
}

// changed makes what of some tasks the node does not know yet.
func (v *view) changed(snap *state.Snapshot, node model.NodeID, due map[model.TaskID]struct{}, nodeDue bool) []*pb.Assignments {
	p := &parts{at: at(snap)}
	if nodeDue {
		if info := nodeInfo(snap, node); !proto.Equal(info, v.node) {
			v.node = info
			p.last().Node = info
		}
	}
	ids := make([]model.TaskID, 0, len(due))
	for id := range due {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b model.TaskID) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Num, b.Num))
	})
	for _, id := range ids {
		t := snap.Task(id)
		if t != nil && t.Node != node {
			t = nil
		}
		v.trackNets(t, id)
		if t != nil {
			v.add(p, snap, t)
		} else if old, ok := v.sent[id]; ok {
			v.forget(id, old)
			m := p.last()
			m.Removed = append(m.Removed, wire.Ref(id))
			p.size += 16
		}
	}
	v.needs.drop(p)
	return p.done()
}

func (v *view) forget(id model.TaskID, old sentTask) {
	if old.live {
		v.needs.remove(old.template)
	}
	delete(v.sent, id)
	if v.refs[old.template]--; v.refs[old.template] <= 0 {
		delete(v.refs, old.template)
	}
}

// add sends a task unless the node knows it as it is.
func (v *view) add(p *parts, snap *state.Snapshot, t *model.Task) {
	now := sentTask{t.Desired, t.PlaceVer, t.Template, t.Desired <= model.StateRunning && !t.State.Terminal()}
	old, known := v.sent[t.ID]
	if t.State < model.StateAssigned || known && old == now {
		return
	}
	var tpl *pb.Template
	if !known && v.refs[t.Template] == 0 {
		if tpl = templateMessage(snap, t.Template); tpl == nil {
			return // its service was deleted in the same moment; the task will be, too
		}
	}
	switch {
	case now.live && !old.live:
		v.needs.add(p, snap, t.Template)
	case old.live && !now.live:
		v.needs.remove(t.Template)
	}
	v.sent[t.ID] = now
	if old.live = now.live; known && old == now {
		return
	}
	m := p.last()
	if tpl != nil { // with its first task: a node forgets templates without tasks
		m.Templates = append(m.Templates, tpl)
		p.size += proto.Size(tpl)
	}
	if !known {
		v.refs[t.Template]++
	}
	msg := withRegistryAuth(taskMessage(snap, t), snap, t)
	m.Tasks = append(m.Tasks, msg)
	p.size += proto.Size(msg)
}

func taskMessage(snap *state.Snapshot, t *model.Task) *pb.Task {
	return &pb.Task{
		Ref: wire.Ref(t.ID), Id: snap.Cluster().Namer().TaskID(t.ID), Slot: t.Slot, Template: uint64(t.Template),
		Desired: uint32(t.Desired), State: uint32(t.State), JobIteration: t.JobIteration, HostPorts: wire.PortConfigs(t.HostPorts),
		Gateway4: wire.AddrBytes(t.Gateway4), Gateway6: wire.AddrBytes(t.Gateway6), Generic: genericMessages(t.Generic),
		Nets: netMessages(t.Nets), Health: uint32(t.Health),
	}
}

func netMessages(list []model.TaskNet) []*pb.TaskNet {
	var out []*pb.TaskNet
	for _, n := range list {
		out = append(out, &pb.TaskNet{Network: uint64(n.Network), Addr4: wire.AddrBytes(n.Addr4), Addr6: wire.AddrBytes(n.Addr6)})
	}
	return out
}

func genericMessages(list []swarm.GenericResource) []*pb.GenericResource {
	var out []*pb.GenericResource
	for _, r := range list {
		g := model.GenericOf(r)
		out = append(out, &pb.GenericResource{Kind: g.Kind, Name: g.Name, Count: g.N})
	}
	return out
}

func templateMessage(snap *state.Snapshot, id model.TemplateID) *pb.Template {
	t := snap.Template(id)
	if t == nil {
		return nil
	}
	m := &pb.Template{
		Id: uint64(t.ID), Service: uint64(t.Service), ServiceId: snap.Cluster().Namer().ServiceID(t.Service), ServiceName: t.ServiceName,
		TaskSpecJson: t.Task.Raw, ImageDigest: t.ImageDigest, HostPorts: wire.PortConfigs(t.HostPorts), ServiceLabels: t.ServiceLabels,
		NetMode: string(t.NetMode),
	}
	for _, a := range t.Nets {
		m.Nets = append(m.Nets, &pb.NetAttach{Network: uint64(a.Network), Aliases: a.Aliases, Options: a.Options})
	}
	return withLogDriver(m, snap, t)
}

// withLogDriver adds the cluster's default log driver for tasks that name none.
func withLogDriver(m *pb.Template, snap *state.Snapshot, t *model.Template) *pb.Template {
	if t.Task.Typed != nil && t.Task.Typed.LogDriver != nil {
		return m
	}
	if c := snap.Cluster(); c.Spec.Typed != nil && c.Spec.Typed.TaskDefaults.LogDriver != nil {
		d := c.Spec.Typed.TaskDefaults.LogDriver
		m.LogDriver, m.LogOptions = d.Name, d.Options
	}
	return m
}

func nodeInfo(snap *state.Snapshot, id model.NodeID) *pb.NodeInfo {
	c := snap.Cluster()
	m := &pb.NodeInfo{NodeId: c.Namer().NodeID(id), Num: uint64(id), GatewayPool: wire.PrefixText(c.GatewayPool), GatewayUla: wire.PrefixText(c.GatewayULA)}
	if n := snap.Node(id); n != nil {
		m.GatewayBlocks = wire.PrefixTexts(n.Blocks)
		m.Gateway6 = wire.PrefixText(n.Gateway6)
		m.Labels, m.Role, m.Availability = n.Spec.Labels, string(n.Spec.Role), string(n.Spec.Availability)
	}
	return m
}
