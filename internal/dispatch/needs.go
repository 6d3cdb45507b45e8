package dispatch

import (
	"cmp"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"maps"
	"slices"
)

// needs are the secrets and configs that a node has been given in this session: those that its live tasks refer to, and
// no others.
type needs struct {
	templates map[model.TemplateID]*need
	users     map[model.Key]int // live tasks that refer to it
	given     map[model.Key]bool
	idle      map[model.Key]bool // given, without users
}

// need is what the tasks of one template refer to. What it is does not change, also when the template is gone.
type need struct {
	keys  []model.Key
	tasks int
}

func newNeeds() needs {
	return needs{templates: map[model.TemplateID]*need{}, users: map[model.Key]int{}, given: map[model.Key]bool{}, idle: map[model.Key]bool{}}
}

// add counts one more live task of a template and sends what the node lacks for it.
func (n *needs) add(p *parts, snap *state.Snapshot, id model.TemplateID) {
	t := n.templates[id]
	if t == nil {
		t = &need{keys: snap.Needs(snap.Template(id))}
		n.templates[id] = t
	}
	t.tasks++
	for _, k := range t.keys {
		n.users[k]++
		delete(n.idle, k)
		if n.given[k] {
			continue
		}
		v := snap.Payload(k)
		if v == nil {
			continue // its service is gone; so will the task be
		}
		n.given[k] = true
		m := p.last()
		m.Payloads = append(m.Payloads, payloadMessage(snap, v))
		p.size += len(v.Value) + 128
	}
}

// remove counts one live task of a template less.
func (n *needs) remove(id model.TemplateID) {
	t := n.templates[id]
	if t == nil {
		return
	}
	if t.tasks--; t.tasks == 0 {
		delete(n.templates, id)
	}
	for _, k := range t.keys {
		if n.users[k]--; n.users[k] > 0 {
			continue
		}
		delete(n.users, k)
		if n.given[k] {
			n.idle[k] = true
		}
	}
}

// drop tells the node to forget what no live task needs any more. It comes last in a set, so that what went from one task
// to the next in it stays.
func (n *needs) drop(p *parts) {
	keys := slices.SortedFunc(maps.Keys(n.idle), func(a, b model.Key) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.A, b.A)) })
	for _, k := range keys {
		m := p.last()
		m.PayloadsRemoved = append(m.PayloadsRemoved, payloadKey(k))
		p.size += 16
		delete(n.given, k)
	}
	clear(n.idle)
}

func payloadKey(k model.Key) *pb.PayloadKey { return &pb.PayloadKey{Kind: uint32(k.Kind), Num: k.A} }

func payloadMessage(snap *state.Snapshot, v *model.Payload) *pb.Payload {
	m := &pb.Payload{Key: payloadKey(v.Key()), Id: snap.Cluster().Namer().ID(v.Key()), Name: v.Name(), Value: v.Value}
	if t := v.Spec.Typed.Templating; t != nil {
		m.Templating = t.Name
	}
	return m
}
