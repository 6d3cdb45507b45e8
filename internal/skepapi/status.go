package skepapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/state"
)

// ServiceStatus is where a service of a stack stands.
type ServiceStatus struct {
	ID, Name, Mode, Image string
	// Desired is how many tasks shall run (or complete, of a job), Running and Completed how many do and have.
	Desired, Running, Completed uint64
	Ports                       []swarm.PortConfig `json:",omitempty"`
	// Converged: what the spec asks for is there, made from the spec in force.
	Converged bool
	// Failed: it will not converge by itself: its update was paused or rolled back, or its restart policy gives up.
	Failed bool
	// Why is what the service waits for, or why it failed, in a line.
	Why string `json:",omitempty"`
	// LastFailure is the newest task made from the spec in force that failed or was rejected, LastError what it says. A service that has
	// another one each time it is looked at keeps failing.
	LastFailure string `json:",omitempty"`
	LastError   string `json:",omitempty"`
}

// StackStatus is where a stack stands.
type StackStatus struct {
	Name     string
	Revision uint64
	Services []ServiceStatus
}

func (s *server) stackStatus(ctx context.Context, r *http.Request) (any, error) {
	snap, err := s.b.State(ctx)
	if err != nil {
		return nil, err
	}
	out := StackStatus{Name: r.PathValue("name"), Services: []ServiceStatus{}}
	if st := snap.Stack(out.Name); st != nil {
		out.Revision = st.Current().Num
	}
	for svc := range snap.Services() {
		if labelled(svc.Spec(), out.Name) {
			out.Services = append(out.Services, serviceStatus(snap, svc))
		}
	}
	if len(out.Services) == 0 && snap.Stack(out.Name) == nil {
		return nil, model.NotFoundf("nothing found in stack: %s", out.Name)
	}
	slices.SortFunc(out.Services, func(a, b ServiceStatus) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func serviceStatus(snap *state.Snapshot, svc *model.Service) ServiceStatus {
	spec := svc.Spec()
	st := ServiceStatus{ID: snap.Cluster().Namer().ServiceID(svc.ID), Name: svc.Name(), Ports: svc.Ports, Image: spec.Labels[imageLabel]}
	if c := spec.TaskTemplate.ContainerSpec; c != nil {
		st.Image = cmp.Or(st.Image, c.Image)
	}
	var fresh, stale, wanted uint64
	var last *model.Task
	for t := range snap.Tasks(svc.ID) {
		current := t.Template == svc.Template && t.JobIteration == svc.JobIteration
		if t.State == model.StateComplete && current {
			st.Completed++
		}
		if current && (t.State == model.StateFailed || t.State == model.StateRejected) && (last == nil || last.ID.Num < t.ID.Num) {
			last = t
		}
		if t.Desired > model.StateRunning {
			if t.State == model.StateRunning && t.Template != svc.Template {
				stale++
			}
			continue
		}
		wanted++
		if t.State == model.StateRunning {
			st.Running++
			if current {
				fresh++
			}
		}
		if !current {
			stale++
		}
	}
	job := false
	done, over := orchestrate.Ended(snap, svc.ID)
	switch m := spec.Mode; {
	case m.Global != nil:
		st.Mode, st.Desired = "global", wanted+uint64(len(done)+len(over))
	case m.ReplicatedJob != nil:
		st.Mode, st.Desired, job = "replicated-job", 1, true
		if n := m.ReplicatedJob.TotalCompletions; n != nil {
			st.Desired = *n
		} else if n := m.ReplicatedJob.MaxConcurrent; n != nil {
			st.Desired = *n
		}
	case m.GlobalJob != nil:
		st.Mode, st.Desired, job = "global-job", wanted+st.Completed, true
	default:
		st.Mode, st.Desired = "replicated", 1
		if m.Replicated != nil && m.Replicated.Replicas != nil {
			st.Desired = *m.Replicated.Replicas
		}
	}
	switch {
	case job:
		st.Converged = st.Completed >= st.Desired && (st.Desired > 0 || spec.Mode.ReplicatedJob != nil)
	case st.Desired == 0:
		st.Converged = wanted == 0 && spec.Mode.Global == nil
	default:
		// A program that ends well and is not started again has done what it was asked for.
		st.Converged = fresh+uint64(len(done)) >= st.Desired && stale == 0
	}
	if last != nil {
		st.LastFailure, st.LastError = snap.Cluster().Namer().TaskID(last.ID), cmp.Or(last.Err, last.Message)
	}
	st.judge(snap, svc, over)
	return st
}

// judge adds what the update, and whoever is waited for, say. over are the tasks that failed and get no successor.
func (st *ServiceStatus) judge(snap *state.Snapshot, svc *model.Service, over []*model.Task) {
	if u := svc.Update; u != nil {
		switch u.State {
		case swarm.UpdateStateUpdating, swarm.UpdateStateRollbackStarted:
			st.Converged = false
			st.Why = u.Message
		case swarm.UpdateStatePaused, swarm.UpdateStateRollbackPaused, swarm.UpdateStateRollbackCompleted:
			st.Failed, st.Converged = true, false
			st.Why = fmt.Sprintf("%s: %s", u.State, u.Message)
			if st.LastError != "" {
				st.Why += ": " + st.LastError
			}
			return
		}
	}
	if st.Converged {
		st.Why = ""
		return
	}
	if len(over) > 0 {
		st.Failed = true
		st.Why = cmp.Or(over[0].Err, over[0].Message) + ", and is not started again"
		return
	}
	if reasons := explain(snap, svc).Reasons; len(reasons) > 0 {
		st.Why = reasons[0].Text
	}
	st.Why = cmp.Or(st.Why, st.LastError) // of the one before, while the next one says nothing yet
}
