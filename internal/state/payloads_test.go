package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"pgregory.net/rapid"
)

func (l *log) payload(kind model.Kind, name, value string) model.Change {
	spec, err := model.ParseSpec[swarm.SecretSpec](fmt.Appendf(nil, `{"Name":%q}`, name))
	if err != nil {
		l.t.Fatal(err)
	}
	return model.Change{PutPayload: &model.Payload{Kind: kind, Num: l.s.LastPayload(kind) + 1, Spec: spec, Value: model.Value(value)}}
}

// refs is a task spec that refers to payloads by their names.
func (l *log) refs(kind model.Kind, names ...string) string {
	var list []string
	word := map[model.Kind]string{model.KindSecret: "Secret", model.KindConfig: "Config"}[kind]
	for _, n := range names {
		id := "gone"
		if p := l.s.PayloadByName(kind, n); p != nil {
			id = l.s.Cluster().Namer().ID(p.Key())
		}
		list = append(list, fmt.Sprintf(`{"%sID":%q,"%sName":%q,"File":{"Name":%q}}`, word, id, word, n, n))
	}
	return fmt.Sprintf(`{"ContainerSpec":{"%ss":[%s]}}`, word, strings.Join(list, ","))
}

func (l *log) refused(what, want string, c model.Change) {
	l.t.Helper()
	if err := l.apply(model.Txn{Changes: []model.Change{c}})[0]; err == nil || err.Error() != want {
		l.t.Errorf("%s: %v, want %s", what, err, want)
	}
}

func (l *log) remove(kind model.Kind, name string) model.Change {
	p := l.s.PayloadByName(kind, name)
	if p == nil {
		l.t.Fatalf("there is no %s %s", kind, name)
	}
	return model.Change{DeletePayload: new(p.Key())}
}

func TestPayloadLife(t *testing.T) {
	l := newLog(t)
	for _, kind := range payloadKinds {
		l.must(l.payload(kind, "a", "one"))
		l.refused("the same name", kind.String()+" a already exists", l.payload(kind, "a", "two"))
		again := l.payload(kind, "b", "x")
		again.PutPayload.Num = 1
		l.refused("the same number", kind.String()+" number 1 was given before", again)
		l.refused("no value", fmt.Sprintf("%s data must be larger than 0 and less than %d bytes", kind, map[model.Kind]int{model.KindSecret: 512000, model.KindConfig: 1024000}[kind]), l.payload(kind, "b", ""))
		p := l.s.PayloadByName(kind, "a")
		guard := model.Guard{Key: p.Key(), Group: model.GroupSpec, Version: p.Version}
		spec, _ := model.ParseSpec[swarm.SecretSpec]([]byte(`{"Name":"a","Labels":{"x":"y"}}`))
		set := model.Change{SetPayload: &model.PayloadSet{Payload: p.Key(), Spec: spec}}
		for i, want := range []model.ErrKind{model.Unknown, model.Stale} {
			if err := l.apply(model.Txn{Guards: []model.Guard{guard}, Changes: []model.Change{set}})[0]; model.KindOf(err) != want {
				t.Errorf("update %d: %v", i, err)
			}
		}
		other, _ := model.ParseSpec[swarm.SecretSpec]([]byte(`{"Name":"b"}`))
		l.refused("another name", "only updates to Labels are allowed", model.Change{SetPayload: &model.PayloadSet{Payload: p.Key(), Spec: other}})
		if p = l.s.PayloadByName(kind, "a"); p.Spec.Typed.Labels["x"] != "y" || string(p.Value) != "one" || p.CreatedAt == p.UpdatedAt {
			t.Errorf("after an update of labels: %+v", p)
		}
		for _, ref := range []string{"a", l.s.Cluster().Namer().ID(p.Key()), l.s.Cluster().Namer().ID(p.Key())[:6]} {
			if found, err := l.s.FindPayload(kind, ref); err != nil || found != p {
				t.Errorf("find %s %s: %v", kind, ref, err)
			}
		}
		if _, err := l.s.FindPayload(kind, "b"); err == nil || err.Error() != kind.String()+" b not found" {
			t.Errorf("find what is not there: %v", err)
		}
		l.must(l.remove(kind, "a"))
		l.refused("removed twice", fmt.Sprintf("%s %s not found", kind, l.s.Cluster().Namer().ID(p.Key())), model.Change{DeletePayload: new(p.Key())})
		l.must(l.payload(kind, "a", "three"))
		if p = l.s.PayloadByName(kind, "a"); p.Num != 2 {
			t.Errorf("number %d was given again", p.Num)
		}
	}
	if l.s.payloads.bytes != 2*len("three") {
		t.Errorf("%d bytes are counted", l.s.payloads.bytes)
	}
}

func TestAServiceKeepsItsPayloads(t *testing.T) {
	l := newLog(t)
	l.refused("a secret that is not there", "secrets not found: x, y", l.service(1, "web", l.refs(model.KindSecret, "x", "y")))
	l.must(l.payload(model.KindSecret, "old", "1"), l.payload(model.KindConfig, "conf", "c"))
	l.must(l.payload(model.KindSecret, "new", "2"))
	l.refused("a config by a secret's name", "config not found: old", l.service(1, "web", l.refs(model.KindConfig, "old")))
	wrong := strings.Replace(l.refs(model.KindSecret, "old"), `"SecretName":"old"`, `"SecretName":"new"`, 1)
	l.refused("another's name", "secret not found: new", l.service(1, "web", wrong))

	l.must(l.service(1, "web", l.refs(model.KindSecret, "old")))
	l.must(l.service(2, "api", l.refs(model.KindSecret, "old")))
	const inUse = "secret 'old' is in use by the following "
	l.refused("in use by two", inUse+"services: web, api", l.remove(model.KindSecret, "old"))
	l.must(model.Change{DeleteService: 2})
	l.refused("in use", inUse+"service: web", l.remove(model.KindSecret, "old"))

	// A task of the revision before needs it until it is told to end.
	l.must(model.Change{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: 1}, Template: l.s.Service(1).Template, Node: 1, State: model.StateAssigned, Desired: model.StateRunning}})
	rotate := l.service(1, "web", l.refs(model.KindSecret, "new"))
	rotate.NewRevision.Update = &model.UpdateStatus{State: swarm.UpdateStateUpdating}
	l.must(rotate)
	l.refused("during the update", inUse+"service: web", l.remove(model.KindSecret, "old"))
	setUpdate := func(st swarm.UpdateState) model.Change {
		return model.Change{SetUpdate: &model.UpdateSet{Service: 1, Update: &model.UpdateStatus{State: st}}}
	}
	l.must(model.Change{SetTaskDesired: &model.TaskDesiredSet{Task: model.TaskID{Service: 1, Num: 1}, Desired: model.StateShutdown}})
	l.must(setUpdate(swarm.UpdateStatePaused))
	l.refused("an update that may go back", inUse+"service: web", l.remove(model.KindSecret, "old"))
	l.must(setUpdate(swarm.UpdateStateCompleted))
	before := l.s.Service(1).Previous()
	l.must(l.remove(model.KindSecret, "old"))
	back := model.Change{NewRevision: &model.NewRevision{Service: 1, Spec: before.Spec, TemplateID: before.Template}}
	l.refused("back to what needs it", "secret not found: old", back)
	l.must(l.remove(model.KindConfig, "conf"))
	l.must(model.Change{DeleteService: 1}, l.remove(model.KindSecret, "new"))
}

// TestPayloadLaws: whatever happens, no service refers to what is not there, the indexes are those that the state itself
// gives, and a snapshot of it is the same state.
func TestPayloadLaws(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLog(t)
		names := []string{"a", "b", "c"}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			kind := rapid.SampledFrom(payloadKinds[:]).Draw(rt, "kind")
			name := rapid.SampledFrom(names).Draw(rt, "name")
			svc := model.ServiceID(rapid.IntRange(1, 3).Draw(rt, "service"))
			var c model.Change
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0:
				c = l.payload(kind, name, strings.Repeat("v", rapid.IntRange(0, 9).Draw(rt, "size")))
			case 1:
				if p := l.s.PayloadByName(kind, name); p != nil {
					c = model.Change{DeletePayload: new(p.Key())}
				} else {
					continue
				}
			case 2:
				id := svc
				if v := l.s.ServiceByName(fmt.Sprint("s", svc)); v != nil {
					id = v.ID
				} else {
					id = l.s.LastService() + 1
				}
				c = l.service(id, fmt.Sprint("s", svc), l.refs(kind, rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID).Draw(rt, "refs")...))
			default:
				if v := l.s.ServiceByName(fmt.Sprint("s", svc)); v != nil {
					c = model.Change{DeleteService: v.ID}
				} else {
					continue
				}
			}
			l.apply(model.Txn{Changes: []model.Change{c}})
			checkPayloads(rt, l.s)
		}
		var one, two bytes.Buffer
		if err := l.s.Encode(&one); err != nil {
			rt.Fatal(err)
		}
		back, err := Decode(bytes.NewReader(one.Bytes()))
		if err != nil {
			rt.Fatal(err)
		}
		checkPayloads(rt, back)
		if err := back.Encode(&two); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
			rt.Fatalf("a restored snapshot differs, error %v", err)
		}
		if !slices.Equal(back.payloads.uses.Items(), l.s.payloads.uses.Items()) || !slices.Equal(back.payloads.names.Items(), l.s.payloads.names.Items()) ||
			back.payloads.bytes != l.s.payloads.bytes {
			rt.Fatal("a restored snapshot's indexes differ")
		}
	})
}

func checkPayloads(t *rapid.T, s *Snapshot) {
	for v := range s.Services() {
		if err := s.checkRefs(v.Spec()); err != nil {
			t.Fatalf("service %s: %v", v.Name(), err)
		}
		for _, k := range s.Needs(s.Template(v.Template)) {
			if !slices.Contains(s.PayloadUsers(k), v) {
				t.Fatalf("service %s is no user of %s %d", v.Name(), k.Kind, k.A)
			}
		}
	}
	var uses []payloadUse
	for tpl := range s.Templates() {
		for _, k := range s.Needs(tpl) {
			uses = append(uses, payloadUse{k.Kind, k.A, tpl.ID})
		}
	}
	if len(uses) != s.payloads.uses.Len() {
		t.Fatalf("%d uses are indexed, there are %d", s.payloads.uses.Len(), len(uses))
	}
	size := 0
	for _, kind := range payloadKinds {
		for p := range s.Payloads(kind) {
			size += len(p.Value)
			if s.PayloadByName(kind, p.Name()) != p {
				t.Fatalf("%s %s is not found by its name", kind, p.Name())
			}
		}
	}
	if size != s.payloads.bytes || s.payloads.names.Len() != s.payloads.all.Len() {
		t.Fatalf("%d bytes and %d names, counted %d and %d", size, s.payloads.all.Len(), s.payloads.bytes, s.payloads.names.Len())
	}
}
