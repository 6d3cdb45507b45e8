package skepapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/orchestrate"
	"github.com/skep-swarm/skep/internal/state"
)

// Why says why a service is not as it should be.
type Why struct {
	Name             string
	Running, Desired int
	// Update is the rollout's state and message; empty when there is none.
	Update string `json:",omitempty"`
	// Reasons are what holds tasks back, the most frequent first; none when all is well.
	Reasons []Reason
}

// Reason is one cause with the tasks that it holds back.
type Reason struct {
	Text  string
	State string
	Count int
	// Tasks are identifiers, at most maxWhyTasks of them.
	Tasks []string
}

// maxWhyTasks bounds the examples in a Reason.
const maxWhyTasks = 10

func (s *server) why(ctx context.Context, r *http.Request) (any, error) {
	snap, svc, err := s.service(ctx, r)
	if err != nil {
		return nil, err
	}
	return explain(snap, svc), nil
}

// held is the state of a Reason for tasks that the planner holds where they are, as its notice says: they stay on
// nodes that are down, or wait for other services.
const held = "held"

// explain reads it all from the state.
func explain(snap *state.Snapshot, svc *model.Service) *Why {
	w := &Why{Name: svc.Name()}
	if m := svc.Spec().Mode.Replicated; m != nil && m.Replicas != nil {
		w.Desired = int(*m.Replicas)
	}
	if u := svc.Update; u != nil {
		w.Update = fmt.Sprintf("%s: %s", u.State, u.Message)
	}
	reasons := map[string]*Reason{}
	add := func(st, text, task string) {
		r := reasons[st+text]
		if r == nil {
			r = &Reason{Text: text, State: st}
			reasons[st+text] = r
		}
		if r.Count++; len(r.Tasks) < maxWhyTasks && task != "" {
			r.Tasks = append(r.Tasks, task)
		}
	}
	wanted, notice := 0, svc.Notice
	for t := range snap.Tasks(svc.ID) {
		if t.Desired > model.StateRunning || t.State.Terminal() {
			continue
		}
		wanted++
		if n := snap.Node(t.Node); svc.Notice != "" && n != nil && n.State == swarm.NodeStateDown {
			add(held, svc.Notice, snap.Cluster().Namer().TaskID(t.ID))
			notice = ""
		}
		if t.State == model.StateRunning {
			w.Running++
			continue
		}
		if t.Desired == model.StateReady && t.Err == "" && svc.Notice != "" && orchestrate.Gated(snap, svc.ID) {
			add(held, svc.Notice, snap.Cluster().Namer().TaskID(t.ID))
			notice = ""
			continue
		}
		add(t.State.String(), taskReason(snap, t), snap.Cluster().Namer().TaskID(t.ID))
	}
	if svc.Spec().Mode.Replicated == nil {
		w.Desired = wanted
	}
	_, over := orchestrate.Ended(snap, svc.ID)
	for _, t := range over {
		if svc.Spec().Mode.Replicated == nil {
			w.Desired++
		}
		add(t.State.String(), cmp.Or(t.Err, t.Message)+", and is not started again", snap.Cluster().Namer().TaskID(t.ID))
	}
	if notice != "" {
		add(held, notice, "")
	}
	if svc.PortError != "" {
		add("ports", svc.PortError, "")
	}
	for _, text := range clashes(snap, svc) {
		add("ports", text, "")
	}
	for _, r := range reasons {
		w.Reasons = append(w.Reasons, *r)
	}
	slices.SortFunc(w.Reasons, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.State, b.State), cmp.Compare(a.Text, b.Text))
	})
	return w
}

// taskReason is why one task does not run yet.
func taskReason(snap *state.Snapshot, t *model.Task) string {
	switch {
	case t.Err != "":
		return t.Err
	case t.Desired == model.StateReady && t.StartAt > snap.Time():
		text := "waits for its restart delay"
		if last := predecessor(snap, t); last != nil && last.Err != "" {
			text += ", after: " + last.Err
		}
		return text
	case t.Desired == model.StateReady && t.State == model.StateReady:
		return "waits for the task that it replaces to stop"
	}
	return t.Message
}

// predecessor is the task that was last in the same slot.
func predecessor(snap *state.Snapshot, t *model.Task) *model.Task {
	var last *model.Task
	for o := range snap.Tasks(t.ID.Service) {
		if o.Slot == t.Slot && (t.Slot != 0 || o.Node == t.Node) && o.ID.Num < t.ID.Num {
			last = o
		}
	}
	return last
}

// clashes are nodes that cannot serve a published port, because a program there has it.
func clashes(snap *state.Snapshot, svc *model.Service) []string {
	var out []string
	for n := range snap.Nodes() {
		for _, c := range n.PortClashes {
			if slices.ContainsFunc(svc.Ports, func(p swarm.PortConfig) bool {
				return p.PublishedPort == uint32(c.Port) && cmp.Or(string(p.Protocol), "tcp") == c.Protocol
			}) {
				out = append(out, fmt.Sprintf("node %s: %s", n.Hostname(), c.Message))
			}
		}
	}
	return out
}
