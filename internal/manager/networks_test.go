package manager

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
)

// TestFullNetworkHoldsTasksBack: tasks and services wait, with the reason, until their network has an address again.
func TestFullNetworkHoldsTasksBack(t *testing.T) {
	s := unplanned(t, size{nodes: 2})
	p := benchPlanner(s)
	step := func(changes ...model.Change) {
		t.Helper()
		next, out := s.Apply(s.Index()+1, &model.Batch{Time: benchTime, Txns: []model.Txn{{Changes: changes}}})
		if err := out.Results[0]; err != nil {
			t.Fatal(err)
		}
		p.Applied(replica.Applied{Before: s, After: next, Outcome: out})
		s = commit(t, p, next)
	}
	n := model.Network{Name: "small", IPAM: []model.IPAMConfig{{Subnet: netip.MustParsePrefix("192.168.0.0/29")}}}
	if _, err := allocate.Network(s, &n); err != nil {
		t.Fatal(err)
	}
	step(model.Change{PutNetwork: &n})
	service := func(id model.ServiceID, mode swarm.ServiceMode) {
		t.Helper()
		spec := swarm.ServiceSpec{Mode: mode}
		spec.Name = fmt.Sprintf("svc%d", id)
		spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: s.Cluster().Namer().NetworkID(n.ID)}}
		made, err := model.MakeSpec(&spec)
		if err != nil {
			t.Fatal(err)
		}
		tpl, err := model.NewTemplate(id, made, "")
		if err == nil {
			err = tpl.SetNetworks(s.Cluster().Namer())
		}
		if err != nil {
			t.Fatal(err)
		}
		rev := &model.NewRevision{Service: id, Spec: made, Template: tpl}
		if known := s.TemplateByHash(id, tpl.Hash); known != nil {
			rev.Template, rev.TemplateID = nil, known.ID
		} else {
			tpl.ID = s.LastTemplate() + 1
			rev.TemplateID = tpl.ID
		}
		step(model.Change{NewRevision: rev})
	}
	replicas := func(n uint64) swarm.ServiceMode {
		return swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &n}}
	}
	count := func(id model.ServiceID) (placed int, why string) {
		for task := range s.Tasks(id) {
			switch {
			case task.State == model.StateAssigned && len(task.Nets) == 1 && task.Desired == model.StateRunning:
				placed++
			case task.State == model.StatePending:
				why = task.Err
			}
		}
		return placed, why
	}
	// Five addresses: one is virtual.
	const full = "network small: no free address in 192.168.0.0/29 (5 in use)"
	service(1, replicas(6))
	if placed, why := count(1); placed != 4 || why != full {
		t.Errorf("%d tasks are placed, the others wait: %q", placed, why)
	}
	for id, mode := range map[model.ServiceID]swarm.ServiceMode{2: {Global: &swarm.GlobalService{}}, 3: {GlobalJob: &swarm.GlobalJob{}}} {
		service(s.LastService()+1, mode)
		if placed, why := count(s.LastService()); placed != 0 || why != full || s.Service(s.LastService()).NetError != full {
			t.Errorf("service %d: %d tasks are placed, the others wait: %q", id, placed, why)
		}
	}
	service(1, replicas(1))
	stop(t, &s, p, 1)
	for id := model.ServiceID(2); id <= 3; id++ {
		svc := s.Service(id)
		if placed, why := count(id); svc.NetError != "" || len(svc.VIPs) != 1 || placed == 0 && why == "" {
			t.Errorf("service %d still waits: %q %v, %d placed, %q", id, svc.NetError, svc.VIPs, placed, why)
		}
	}
	if txns := p.Afresh(s).Plan(s, benchTime, time.Unix(0, int64(benchTime))); len(txns) != 0 {
		t.Errorf("planning everything wants more: %+v", txns[0].Txns)
	}
}

// stop reports the tasks of a service that are told to stop as stopped.
func stop(t *testing.T, s **state.Snapshot, p *Planner, id model.ServiceID) {
	t.Helper()
	var list []*model.Task
	for task := range (*s).Tasks(id) {
		if task.Desired > model.StateRunning && task.Node != 0 && !task.State.Terminal() {
			list = append(list, task)
		}
	}
	for _, task := range list {
		seq := (*s).Node(task.Node).Seq + 1
		next, out := (*s).Apply((*s).Index()+1, &model.Batch{Time: benchTime, Txns: []model.Txn{{Changes: []model.Change{{Report: &model.Report{Node: task.Node,
			Session: 1, Seq: seq, Tasks: []model.TaskReport{{Task: task.ID, State: model.StateShutdown}}}}}}}})
		if err := out.Results[0]; err != nil {
			t.Fatal(err)
		}
		p.Applied(replica.Applied{Before: *s, After: next, Outcome: out})
		*s = commit(t, p, next)
	}
}
