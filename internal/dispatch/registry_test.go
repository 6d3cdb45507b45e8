package dispatch

import (
	"testing"

	"github.com/skep-swarm/skep/internal/model"
)

// TestRegistryAuth: credentials go to the nodes of the service's tasks that may still have to pull, the newest ones, and
// to nobody else.
func TestRegistryAuth(t *testing.T) {
	c := newCluster(t, 2)
	c.service(1, "web", 0)
	svc := c.rep.Snapshot().Service(1)
	renew := func(auth string) {
		c.apply(model.Change{NewRevision: &model.NewRevision{Service: 1, Spec: svc.Current().Spec, TemplateID: svc.Template, RegistryAuth: model.Credentials(auth)}})
	}
	renew("old")
	c.service(2, "other", 0)
	p := c.mustJoin(1)
	next(p, "assignments", assignments)
	id := c.task(1, 1, 1)
	if a := next(p, "the first task", assignments); string(a.Tasks[0].RegistryAuth) != "old" || !a.Tasks[0].WithRegistryAuth {
		t.Errorf("the first task comes with %q", a.Tasks[0].RegistryAuth)
	}
	p.report(p.welcome.Session, 1, id, model.StateRunning)
	next(p, "ack", acked(1))
	renew("new")
	c.task(1, 2, 1)
	if a := next(p, "the second task", assignments); string(a.Tasks[0].RegistryAuth) != "new" {
		t.Errorf("the second task comes with %q", a.Tasks[0].RegistryAuth)
	}
	c.task(2, 7, 1)
	if a := next(p, "another service's task", assignments); a.Tasks[0].RegistryAuth != nil || a.Tasks[0].WithRegistryAuth {
		t.Errorf("another service's task comes with %q", a.Tasks[0].RegistryAuth)
	}
	if n := len(c.rep.Snapshot().Service(1).Revisions); n != 1 {
		t.Errorf("new credentials made %d revisions", n)
	}
	// A node that comes back hears of the running task without them.
	q := c.mustJoin(1)
	for _, task := range next(q, "all", assignments).Tasks {
		if wantAuth := task.Ref.Service == 1 && task.Ref.Num == 2; wantAuth != (len(task.RegistryAuth) > 0) {
			t.Errorf("task %v comes with %q", task.Ref, task.RegistryAuth)
		}
	}
}
