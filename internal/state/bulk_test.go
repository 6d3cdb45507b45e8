package state

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// TestManyTasksAreMadeAlikeOrNotAtAll compares a bulk change with single ones, and damages it in every way
// that is refused.
func TestManyTasksAreMadeAlikeOrNotAtAll(t *testing.T) {
	s := New()
	node := func(id model.NodeID) model.Change {
		n := &model.Node{ID: id, Blocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")}}
		if id == 2 {
			n.Blocks = []netip.Prefix{netip.MustParsePrefix("10.0.0.16/28")}
		}
		n.Description.Resources = swarm.Resources{MemoryBytes: 3 << 20}
		return model.Change{PutNode: n}
	}
	typed := swarm.ServiceSpec{}
	typed.Name = "svc"
	typed.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 20}}
	spec, err := model.MakeSpec(&typed)
	if err != nil {
		t.Fatal(err)
	}
	tpl, err := model.NewTemplate(1, spec, "")
	if err != nil {
		t.Fatal(err)
	}
	tpl.ID = 1
	batch := func(cs ...model.Change) *model.Batch {
		return &model.Batch{Time: 9, Txns: []model.Txn{{Changes: cs}}}
	}
	s, out := s.Apply(5, batch(node(1), node(2), model.Change{NewRevision: &model.NewRevision{Service: 1, Spec: spec, Template: tpl, TemplateID: 1}}))
	if out.Results[0] != nil {
		t.Fatal(out.Results[0])
	}
	addr := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, i}) }
	bulk := func() *model.TasksPut {
		return &model.TasksPut{Service: 1, Template: 1, First: 1, Desired: model.StateRunning, Base: 5, Texts: []string{"", "here", "no room"}, Tasks: []model.TaskNew{
			{Slot: 1, State: model.StateAssigned, Message: 1, Node: 2, Gateway4: addr(19)},
			{Slot: 2, State: model.StatePending, Err: 2},
			{Slot: 3, State: model.StateAssigned, Message: 1, Node: 1, Gateway4: addr(2)},
			{Slot: 4, State: model.StateAssigned, Message: 1, Node: 2, Gateway4: addr(20)},
		}}
	}
	var singly []model.Change
	for i, x := range bulk().Tasks {
		singly = append(singly, model.Change{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: uint64(i + 1)}, Template: 1, Slot: x.Slot, State: x.State,
			Desired: model.StateRunning, Message: bulk().Texts[x.Message], Err: bulk().Texts[x.Err], Node: x.Node, Gateway4: x.Gateway4}})
	}
	one, out1 := s.Apply(6, batch(singly...))
	many, outN := s.Apply(6, batch(model.Change{PutTasks: bulk()}))
	if out1.Results[0] != nil || outN.Results[0] != nil || len(out1.Touched) != len(outN.Touched) {
		t.Fatalf("%v, %v", out1.Results[0], outN.Results[0])
	}
	if !bytes.Equal(encoded(t, one), encoded(t, many)) || many.Load(2).MemoryBytes != 2<<20 || !many.AddrInUse(addr(20)) {
		t.Error("the bulk change makes another state")
	}
	onNode := 0
	for range many.TasksOnNode(2) {
		onNode++
	}
	if onNode != 2 {
		t.Errorf("%d tasks on node 2", onNode)
	}
	for name, spoil := range map[string]func(*model.TasksPut){
		"address twice": func(c *model.TasksPut) { c.Tasks[3].Gateway4 = addr(19) },
		"too much memory": func(c *model.TasksPut) {
			c.Tasks = append(c.Tasks, c.Tasks[3], c.Tasks[3])
			c.Tasks[4].Gateway4, c.Tasks[5].Gateway4 = addr(21), addr(22)
		},
		"foreign address":   func(c *model.TasksPut) { c.Tasks[3].Gateway4 = addr(3) },
		"no such node":      func(c *model.TasksPut) { c.Tasks[3].Node = 7 },
		"node changed":      func(c *model.TasksPut) { c.Base = 4 },
		"no such text":      func(c *model.TasksPut) { c.Tasks[0].Message = 3 },
		"number given":      func(c *model.TasksPut) { c.First = 0 },
		"nothing":           func(c *model.TasksPut) { c.Tasks = nil },
		"no such service":   func(c *model.TasksPut) { c.Service = 2 },
		"more than allowed": func(c *model.TasksPut) { c.Tasks = make([]model.TaskNew, model.MaxTasksPut+1) },
	} {
		c := bulk()
		spoil(c)
		after, out := s.Apply(6, batch(model.Change{PutTasks: c}))
		empty, _ := s.Apply(6, batch())
		if out.Results[0] == nil || !bytes.Equal(encoded(t, after), encoded(t, empty)) || after.AddrInUse(addr(2)) || after.AddrInUse(addr(19)) || after.Load(2).Tasks != 0 {
			t.Errorf("%s: %v", name, out.Results[0])
		}
	}
}
