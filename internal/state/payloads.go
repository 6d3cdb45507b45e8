package state

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/tidwall/btree"
)

// Bounds of all secrets and configs together: every manager holds them in memory.
const (
	maxPayloads     = 1 << 14
	maxPayloadBytes = 256 << 20
)

type payloadName struct {
	kind model.Kind
	name string
	num  uint64
}

// payloadUse says that a template refers to a secret or config. Template 0 is before all.
type payloadUse struct {
	kind     model.Kind
	num      uint64
	template model.TemplateID
}

// payloads are the secrets and configs with their indexes. Copying it shares them.
type payloads struct {
	all   *btree.BTreeG[*model.Payload]
	names *btree.BTreeG[payloadName]
	uses  *btree.BTreeG[payloadUse]
	bytes int // of all values

	lastSecret, lastConfig uint64
}

func newPayloads() payloads {
	o := btree.Options{NoLocks: true}
	return payloads{
		all: btree.NewBTreeGOptions(func(a, b *model.Payload) bool {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Num, b.Num)) < 0
		}, o),
		names: btree.NewBTreeGOptions(func(a, b payloadName) bool {
			return cmp.Or(cmp.Compare(a.kind, b.kind), strings.Compare(a.name, b.name)) < 0
		}, o),
		uses: btree.NewBTreeGOptions(func(a, b payloadUse) bool {
			return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.num, b.num), cmp.Compare(a.template, b.template)) < 0
		}, o),
	}
}

func (p payloads) copy() payloads {
	p.all, p.names, p.uses = p.all.Copy(), p.names.Copy(), p.uses.Copy()
	return p
}

func (p *payloads) set(v *model.Payload) {
	if old, ok := p.all.Set(v); ok {
		p.bytes -= len(old.Value)
	}
	p.bytes += len(v.Value)
	p.names.Set(payloadName{v.Kind, v.Name(), v.Num})
}

func (p *payloads) last(kind model.Kind) *uint64 {
	if kind == model.KindSecret {
		return &p.lastSecret
	}
	return &p.lastConfig
}

// Payload is the secret or config at k, or nil.
func (s *Snapshot) Payload(k model.Key) *model.Payload {
	v, _ := s.payloads.all.Get(&model.Payload{Kind: k.Kind, Num: k.A})
	return v
}

// PayloadByName finds a secret or config by its exact name.
func (s *Snapshot) PayloadByName(kind model.Kind, name string) *model.Payload {
	n, ok := s.payloads.names.Get(payloadName{kind: kind, name: name})
	if !ok {
		return nil
	}
	return s.Payload(model.Key{Kind: kind, A: n.num})
}

// Payloads goes over all secrets or all configs, oldest first.
func (s *Snapshot) Payloads(kind model.Kind) iter.Seq[*model.Payload] {
	return func(yield func(*model.Payload) bool) {
		s.payloads.all.Ascend(&model.Payload{Kind: kind}, func(p *model.Payload) bool { return p.Kind == kind && yield(p) })
	}
}

// FindPayload looks a secret or config up as FindService does a service.
func (s *Snapshot) FindPayload(kind model.Kind, ref string) (*model.Payload, error) {
	return find(s, kind, ref, s.Payload,
		func() []*model.Payload {
			if p := s.PayloadByName(kind, ref); p != nil {
				return []*model.Payload{p}
			}
			return nil
		},
		func(yield func(model.Key) bool) {
			for p := range s.Payloads(kind) {
				if !yield(p.Key()) {
					return
				}
			}
		})
}

// LastPayload is the highest number that a secret or config was given so far.
func (s *Snapshot) LastPayload(kind model.Kind) uint64 { return *s.payloads.last(kind) }

// Needs are the keys of the secrets and configs that a template's containers refer to, without repetition. Those that are
// not there any more are among them.
func (s *Snapshot) Needs(t *model.Template) []model.Key {
	if s.cluster == nil || t == nil || t.Task.Typed == nil {
		return nil
	}
	var keys []model.Key
	for _, r := range model.PayloadRefs(t.Task.Typed.ContainerSpec) {
		if k, ok := s.cluster.Namer().Parse(r.ID); ok && k.Kind == r.Kind && !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys
}

// PayloadUsers are the services that need a secret or config: their spec refers to it, the spec that an update under way
// may go back to does, or tasks that have not been replaced yet do. In order of their numbers.
func (s *Snapshot) PayloadUsers(k model.Key) []*model.Service {
	var users []*model.Service
	s.payloads.uses.Ascend(payloadUse{kind: k.Kind, num: k.A}, func(u payloadUse) bool {
		if u.kind != k.Kind || u.num != k.A {
			return false
		}
		t := s.Template(u.template)
		if t == nil {
			return true
		}
		// The tasks of a service that is gone are never started again: they keep what they have.
		if v := s.Service(t.Service); v != nil && !slices.Contains(users, v) && s.needsTemplate(v, t.ID) {
			users = append(users, v)
		}
		return true
	})
	slices.SortFunc(users, func(a, b *model.Service) int { return cmp.Compare(a.ID, b.ID) })
	return users
}

// needsTemplate reports whether tasks may still be started from a service's template.
func (s *Snapshot) needsTemplate(v *model.Service, id model.TemplateID) bool {
	if v.Template == id || id == rollbackTarget(v) {
		return true
	}
	for t := range s.Tasks(v.ID) {
		if t.Template == id && t.Desired <= model.StateRunning && !t.State.Terminal() {
			return true
		}
	}
	return false
}

// rollbackTarget is the template that an update under way goes back to when it fails; 0 for none. An older one in
// the history may refer to what is gone: going back there is refused then.
func rollbackTarget(v *model.Service) model.TemplateID {
	if v.Update == nil || v.Update.State != swarm.UpdateStateUpdating && v.Update.State != swarm.UpdateStatePaused {
		return 0
	}
	for _, r := range slices.Backward(v.Revisions) {
		if r.Template != v.Template {
			return r.Template
		}
	}
	return 0
}

// setTemplate stores a template with what it refers to; dropTemplate forgets both.
func (s *Snapshot) setTemplate(t *model.Template) {
	s.temps.Set(t.ID, t)
	s.svcTemps.Set(svcTemplate{t.Service, t.ID})
	for _, k := range s.Needs(t) {
		s.payloads.uses.Set(payloadUse{k.Kind, k.A, t.ID})
	}
}

func (s *Snapshot) dropTemplate(t *model.Template) {
	s.temps.Delete(t.ID)
	s.svcTemps.Delete(svcTemplate{t.Service, t.ID})
	for _, k := range s.Needs(t) {
		s.payloads.uses.Delete(payloadUse{k.Kind, k.A, t.ID})
	}
}

// checkRefs refuses a spec that refers to a secret or config that is not there under that name, in Docker's words.
func (s *Snapshot) checkRefs(spec *swarm.ServiceSpec) error {
	missing := map[model.Kind][]string{}
	for _, r := range model.PayloadRefs(spec.TaskTemplate.ContainerSpec) {
		var p *model.Payload
		if s.cluster != nil {
			if k, ok := s.cluster.Namer().Parse(r.ID); ok && k.Kind == r.Kind {
				p = s.Payload(k)
			}
		}
		if p == nil || p.Name() != r.Name {
			missing[r.Kind] = append(missing[r.Kind], r.Name)
		}
	}
	for _, kind := range payloadKinds {
		switch names := missing[kind]; len(names) {
		case 0:
		case 1:
			return model.Invalidf("%s not found: %s", kind, names[0])
		default:
			return model.Invalidf("%ss not found: %s", kind, strings.Join(names, ", "))
		}
	}
	return nil
}

var payloadKinds = [...]model.Kind{model.KindSecret, model.KindConfig}

func isPayload(kind model.Kind) bool { return slices.Contains(payloadKinds[:], kind) }

func (w *writer) putPayload(c *model.Payload) error {
	p := &w.s.payloads
	limit := model.SecretLimit
	if c.Kind == model.KindConfig {
		limit = model.ConfigLimit
	}
	switch {
	case !isPayload(c.Kind) || c.Num == 0 || c.Spec.Typed == nil || c.Name() == "":
		return model.Invalidf("a %s needs a spec with a name", c.Kind)
	case len(c.Value) == 0 || len(c.Value) >= limit:
		return model.Invalidf("%s data must be larger than 0 and less than %d bytes", c.Kind, limit)
	case w.s.PayloadByName(c.Kind, c.Name()) != nil:
		return model.Conflictf("%s %s already exists", c.Kind, c.Name())
	case c.Num <= *p.last(c.Kind):
		return model.Conflictf("%s number %d was given before", c.Kind, c.Num)
	case p.all.Len() >= maxPayloads:
		return model.Errorf(model.Exhausted, "the swarm has %d secrets and configs, the most it can hold: remove some", maxPayloads)
	case p.bytes+len(c.Value) > maxPayloadBytes:
		return model.Errorf(model.Exhausted, "the swarm's secrets and configs take %d MB, the most it can hold: remove some", maxPayloadBytes>>20)
	}
	n := *c
	n.CreatedAt, n.UpdatedAt, n.Version = w.now, w.now, w.stamp(1)
	p.set(&n)
	*p.last(n.Kind) = n.Num
	w.touch(n.Key())
	return nil
}

func (w *writer) setPayload(c *model.PayloadSet) error {
	old := w.s.Payload(c.Payload)
	switch {
	case old == nil:
		return model.NotFoundf("%s %s not found", c.Payload.Kind, w.s.name(c.Payload))
	case c.Spec.Typed == nil || c.Spec.Typed.Name != old.Name():
		return model.Invalidf("only updates to Labels are allowed")
	}
	n := *old
	n.Spec, n.UpdatedAt, n.Version = c.Spec, w.now, w.stamp(old.Version)
	w.s.payloads.set(&n)
	w.touch(c.Payload)
	return nil
}

func (w *writer) deletePayload(k model.Key) error {
	old := w.s.Payload(k)
	if old == nil {
		return model.NotFoundf("%s %s not found", k.Kind, w.s.name(k))
	}
	if users := w.s.PayloadUsers(k); len(users) > 0 {
		word, names := "service", make([]string, 0, len(users))
		for _, v := range users {
			names = append(names, v.Name())
		}
		if len(names) > 1 {
			word = "services"
		}
		return model.Invalidf("%s '%s' is in use by the following %s: %s", k.Kind, old.Name(), word, strings.Join(names, ", "))
	}
	w.s.payloads.all.Delete(old)
	w.s.payloads.names.Delete(payloadName{kind: k.Kind, name: old.Name()})
	w.s.payloads.bytes -= len(old.Value)
	w.touch(k)
	w.leaveStack(old.Spec.Typed.Labels)
	return nil
}
