package state

import (
	"testing"

	"github.com/skep-swarm/skep/internal/model"
)

// A stack lasts as long as something of it: whoever removes the last part removes its history, too.
func TestStackGoesWithItsLastPart(t *testing.T) {
	l := newLog(t)
	labels := map[string]string{stackLabel: "shop"}
	of := func(id model.ServiceID, name string) model.Change {
		c := l.service(id, name, `{}`)
		c.NewRevision.Spec.Typed.Labels = labels
		return c
	}
	l.must(model.Change{PutStack: &model.StackRevisionPut{Stack: "shop", Revision: model.StackRevision{Definition: []byte("{}")}}})
	l.must(model.Change{PutStack: &model.StackRevisionPut{Stack: "other", Revision: model.StackRevision{Definition: []byte("{}")}}})
	l.must(of(1, "shop_web"))
	l.must(of(2, "shop_db"))
	l.must(l.service(3, "nobody", `{}`))
	l.must(model.Change{PutNetwork: &model.Network{ID: 1, Name: "shop_default", Labels: labels}})
	for i, c := range []model.Change{{DeleteService: 1}, {DeleteService: 3}, {DeleteService: 2}} {
		l.must(c)
		if l.s.Stack("shop") == nil {
			t.Fatalf("the stack is gone after step %d", i)
		}
	}
	l.must(model.Change{DeleteNetwork: 1})
	if l.s.Stack("shop") != nil {
		t.Error("the stack outlives its last part")
	}
	if l.s.Stack("other") == nil {
		t.Error("a stack that has no part yet is gone")
	}
}
