package dispatch

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// payload makes a secret or config with its name as its value.
func (c *cluster) payload(kind model.Kind, name, driver string) {
	c.t.Helper()
	spec := swarm.SecretSpec{Annotations: swarm.Annotations{Name: name}}
	if driver != "" {
		spec.Templating = &swarm.Driver{Name: driver}
	}
	s, err := model.MakeSpec(&spec)
	if err != nil {
		c.t.Fatal(err)
	}
	c.apply(model.Change{PutPayload: &model.Payload{Kind: kind, Num: c.rep.Snapshot().LastPayload(kind) + 1, Spec: s, Value: model.Value("value of " + name)}})
}

// secretive makes a service whose tasks refer to secrets.
func (c *cluster) secretive(id model.ServiceID, name string, secrets ...string) {
	c.t.Helper()
	snap := c.rep.Snapshot()
	ss := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: name}}
	ss.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "busybox"}
	for _, n := range secrets {
		key := snap.PayloadByName(model.KindSecret, n).Key()
		ss.TaskTemplate.ContainerSpec.Secrets = append(ss.TaskTemplate.ContainerSpec.Secrets, &swarm.SecretReference{
			SecretID: snap.Cluster().Namer().ID(key), SecretName: n, File: &swarm.SecretReferenceFileTarget{Name: n}})
	}
	spec, err := model.MakeSpec(&ss)
	if err != nil {
		c.t.Fatal(err)
	}
	tpl, err := model.NewTemplate(id, spec, "")
	if err != nil {
		c.t.Fatal(err)
	}
	tpl.ID = model.TemplateID(id)
	c.apply(model.Change{NewRevision: &model.NewRevision{Service: id, Spec: spec, Template: tpl, TemplateID: tpl.ID}})
}

func payloadNames(a *pb.Assignments) string {
	var out []string
	for _, m := range a.Payloads {
		out = append(out, m.Name)
		if string(m.Value) != "value of "+m.Name || len(m.Id) != model.IDLen {
			out = append(out, "damaged")
		}
	}
	slices.Sort(out)
	for _, k := range a.PayloadsRemoved {
		out = append(out, fmt.Sprintf("-%d.%d", k.Kind, k.Num))
	}
	return strings.Join(out, " ")
}

func TestANodeGetsTheSecretsOfItsLiveTasks(t *testing.T) {
	c := newCluster(t, 2)
	for _, n := range []string{"a", "b", "c"} {
		c.payload(model.KindSecret, n, "")
	}
	c.payload(model.KindConfig, "unused", "golang")
	c.secretive(1, "web", "a", "b")
	c.secretive(2, "api", "b", "c")
	first := c.task(1, 1, 1)
	dead := c.task(2, 10, 1)
	c.apply(model.Change{SetTaskDesired: &model.TaskDesiredSet{Task: dead, Desired: model.StateShutdown}})
	other := c.mustJoin(2)
	if a := next(other, "assignments", assignments); payloadNames(a) != "" {
		t.Errorf("a node without tasks got %s", payloadNames(a))
	}
	p := c.mustJoin(1)
	if a := next(p, "assignments", assignments); payloadNames(a) != "a b" || !a.Complete || a.More {
		t.Errorf("at first: %s", payloadNames(a))
	}
	expect := func(what, want string) {
		t.Helper()
		if a := next(p, what, assignments); payloadNames(a) != want {
			t.Errorf("%s: %q, want %q", what, payloadNames(a), want)
		}
	}
	desire := func(id model.TaskID, st model.TaskState) {
		c.apply(model.Change{SetTaskDesired: &model.TaskDesiredSet{Task: id, Desired: st}})
	}
	second := c.task(1, 2, 1)
	expect("a second task of the service", "")
	third := c.task(2, 11, 1)
	expect("a task of another service", "c")
	desire(first, model.StateShutdown)
	expect("one of two is told to stop", "")
	p.report(p.welcome.Session, 1, second, model.StateFailed)
	expect("the other one has failed", "-8.1")
	c.apply(model.Change{DeleteTask: &second})
	expect("and is removed", "")
	c.apply(model.Change{DeleteTask: &third})
	expect("the last task is removed", "-8.2 -8.3")
	fourth := c.task(2, 12, 1)
	expect("another one comes", "b c")
	// In one step from one task to the next: nothing is sent again.
	replacement := &model.Task{ID: model.TaskID{Service: 2, Num: 13}, Slot: 13, Template: 2, Node: 1, State: model.StateAssigned, Desired: model.StateRunning}
	c.apply(model.Change{DeleteTask: &fourth}, model.Change{PutTask: replacement})
	expect("from one to the next", "")
	if a := next(c.mustJoin(1), "assignments", assignments); payloadNames(a) != "b c" || !a.Complete {
		t.Errorf("in the next session: %s", payloadNames(a))
	}
	select {
	case m := <-other.got:
		if a := m.GetAssignments(); a != nil && payloadNames(a) != "" {
			t.Errorf("the other node got %s", payloadNames(a))
		}
	default:
	}
}

func TestManySecretsComeInParts(t *testing.T) {
	c := newCluster(t, 1)
	var names []string
	for i := range 5 {
		name := fmt.Sprint("large", i)
		spec, _ := model.MakeSpec(&swarm.SecretSpec{Annotations: swarm.Annotations{Name: name}})
		c.apply(model.Change{PutPayload: &model.Payload{Kind: model.KindSecret, Num: uint64(i + 1), Spec: spec, Value: make([]byte, model.SecretLimit-1)}})
		names = append(names, name)
	}
	c.secretive(1, "web", names...)
	c.task(1, 1, 1)
	p := c.mustJoin(1)
	for seen, tasks := 0, 0; ; {
		a := next(p, "assignments", assignments)
		seen, tasks = seen+len(a.Payloads), tasks+len(a.Tasks)
		if tasks > 0 && seen < len(names) {
			t.Fatalf("the task comes after %d of its secrets", seen)
		}
		if !a.More {
			if seen != len(names) || tasks != 1 {
				t.Errorf("%d secrets, %d tasks", seen, tasks)
			}
			return
		}
	}
}
