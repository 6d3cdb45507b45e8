package schedule

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

func TestGenericResourcesAreGivenOnceAndRecorded(t *testing.T) {
	c := newCluster(t)
	gpu := func(name string) swarm.GenericResource { return model.Generic{Kind: "gpu", Name: name}.API() }
	c.node(func(n *model.Node) {
		n.Description.Resources.GenericResources = []swarm.GenericResource{gpu("a"), gpu("b"), gpu("c")}
	})
	c.node(func(n *model.Node) {
		n.Description.Resources.GenericResources = []swarm.GenericResource{model.Generic{Kind: "gpu", N: 2}.API()}
	})
	id := c.service(3, func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{
			GenericResources: []swarm.GenericResource{model.Generic{Kind: "gpu", N: 2}.API()}}}
	})
	c.apply(Plan(c.snap, []model.ServiceID{id}, testTime))
	var named, counted, waiting int
	for task := range c.snap.Tasks(id) {
		switch g := task.Generic; {
		case task.State == model.StatePending:
			waiting++
			if task.Err != "no suitable node (insufficient resources on 2 nodes)" {
				t.Errorf("%q", task.Err)
			}
		case len(g) == 2 && model.GenericOf(g[0]).Name == "a" && model.GenericOf(g[1]).Name == "b":
			named++
		case len(g) == 1 && model.GenericOf(g[0]).N == 2:
			counted++
		default:
			t.Errorf("%+v", g)
		}
	}
	if named != 1 || counted != 1 || waiting != 1 {
		t.Errorf("%d named, %d counted, %d waiting", named, counted, waiting)
	}
	// The state refuses what is given twice, whatever the planner thought.
	batch := &model.Batch{Time: testTime, Txns: []model.Txn{{Changes: []model.Change{{SetTaskPlace: &model.TaskPlaceSet{
		Task: model.TaskID{Service: id, Num: 3}, Node: 1, Generic: []swarm.GenericResource{gpu("a")}}}}}}}
	if _, out := c.snap.Apply(c.index+1, batch); model.KindOf(out.Results[0]) != model.Stale {
		t.Errorf("a named resource given twice: %v", out.Results[0])
	}
	// What a task had is free when it ended.
	var report []model.TaskReport
	for task := range c.snap.TasksOnNode(1) {
		report = append(report, model.TaskReport{Task: task.ID, State: model.StateFailed})
	}
	c.do(model.Change{Report: &model.Report{Node: 1, Session: 1, Seq: 1, Tasks: report}})
	if l := c.snap.Load(1); len(l.Generic) != 0 {
		t.Errorf("%+v", l)
	}
}
