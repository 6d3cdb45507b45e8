package skepapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

type fakeBackend struct {
	t     *testing.T
	snap  *state.Snapshot
	downs int
	err   error
}

func (f *fakeBackend) State(context.Context) (*state.Snapshot, error) { return f.snap, f.err }

func (f *fakeBackend) Propose(_ context.Context, b *model.Batch) (*model.Outcome, error) {
	next, out := f.snap.Apply(f.snap.Index()+1, b)
	f.snap = next
	return out, nil
}

func (f *fakeBackend) Down(_ context.Context, step func(string)) error {
	f.downs++
	step("stopping")
	return f.err
}

func (f *fakeBackend) must(changes ...model.Change) {
	f.t.Helper()
	out, _ := f.Propose(f.t.Context(), &model.Batch{Actor: "alice", Reason: "because", Time: 1e9, Txns: []model.Txn{{Changes: changes}}})
	if out.Results[0] != nil {
		f.t.Fatal(out.Results[0])
	}
}

func (f *fakeBackend) revision(raw string) {
	f.t.Helper()
	spec, err := model.ParseSpec[swarm.ServiceSpec]([]byte(raw))
	if err != nil {
		f.t.Fatal(err)
	}
	tpl, err := model.NewTemplate(1, spec, "")
	if err != nil {
		f.t.Fatal(err)
	}
	tpl.ID = f.snap.LastTemplate() + 1
	f.must(model.Change{NewRevision: &model.NewRevision{Service: 1, Spec: spec, Template: tpl, Ports: spec.Typed.EndpointSpec.Ports}})
}

func newFake(t *testing.T) *fakeBackend {
	f := &fakeBackend{t: t, snap: state.New()}
	f.must(model.Change{PutCluster: &model.Cluster{IDKey: [16]byte{1}}})
	f.must(model.Change{PutNode: &model.Node{ID: 1, Description: swarm.NodeDescription{Hostname: "one"}, PortClashes: []model.PortClash{{Protocol: "tcp", Port: 80, Message: "port 80/tcp is in use by nginx (pid 7)"}}}})
	f.revision(`{"Name":"web","Mode":{"Replicated":{"Replicas":4}},"TaskTemplate":{},"EndpointSpec":{"Ports":[{"PublishedPort":80,"TargetPort":80}]}}`)
	return f
}

func get[T any](t *testing.T, f *fakeBackend, path string) (T, *http.Response) {
	t.Helper()
	srv := httptest.NewServer(New(f, http.NotFoundHandler(), nil))
	defer srv.Close()
	res, err := http.Get(srv.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var v T
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v, res
}

func TestHistory(t *testing.T) {
	f := newFake(t)
	f.revision(`{"Name":"web","Mode":{"Replicated":{"Replicas":4}},"TaskTemplate":{"ForceUpdate":1},"EndpointSpec":{}}`)
	h, _ := get[[]Revision](t, f, "/skep/v1/services/web/history")
	if len(h) != 2 || h[0].Number != 1 || h[0].Current || !h[1].Current || h[1].Actor != "alice" || h[1].Reason != "because" || h[1].At != "1970-01-01T00:00:01Z" || !strings.Contains(string(h[1].Spec), "ForceUpdate") {
		t.Errorf("history = %+v", h)
	}
}

func TestWhy(t *testing.T) {
	f := newFake(t)
	task := func(num uint64, slot uint32, st, desired model.TaskState, startAt model.Time, err string) model.Change {
		return model.Change{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: num}, Slot: slot, Template: 1, State: st, Desired: desired, StartAt: startAt, Err: err}}
	}
	f.must(task(1, 1, model.StateRunning, model.StateRunning, 0, ""), task(2, 2, model.StateFailed, model.StateShutdown, 0, "task: non-zero exit (3)"),
		task(3, 2, model.StateAssigned, model.StateReady, 2e9, ""), task(4, 3, model.StatePending, model.StateRunning, 0, "no suitable node"), task(5, 4, model.StatePending, model.StateRunning, 0, "no suitable node"))
	w, _ := get[Why](t, f, "/skep/v1/services/web/why")
	if w.Running != 1 || w.Desired != 4 || len(w.Reasons) != 3 {
		t.Fatalf("why = %+v", w)
	}
	want := []Reason{{"no suitable node", "pending", 2, nil}, {"waits for its restart delay, after: task: non-zero exit (3)", "assigned", 1, nil}, {"node one: port 80/tcp is in use by nginx (pid 7)", "ports", 1, nil}}
	for i, r := range want {
		if g := w.Reasons[i]; g.Text != r.Text || g.State != r.State || g.Count != r.Count {
			t.Errorf("reason %d = %+v, want %+v", i, g, r)
		}
	}
}

// A service whose tasks the brake on mass failure holds says so, with the tasks; so does one whose planner has another
// notice.
func TestWhyHeld(t *testing.T) {
	f := newFake(t)
	f.must(model.Change{PutNode: &model.Node{ID: 2, State: swarm.NodeStateDown}})
	for i := range uint64(4) {
		f.must(model.Change{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: i + 1}, Slot: uint32(i + 1), Template: 1, Node: model.NodeID(1 + i%2), State: model.StateRunning, Desired: model.StateRunning}})
	}
	heldBack := func() (out []Reason) {
		w, _ := get[Why](t, f, "/skep/v1/services/web/why")
		for _, r := range w.Reasons {
			if r.State == "held" {
				out = append(out, r)
			}
		}
		return out
	}
	if r := heldBack(); r != nil {
		t.Errorf("without a notice: %+v", r)
	}
	f.must(model.Change{SetNotice: &model.NoticeSet{Service: 1, Text: "many nodes went down"}})
	if r := heldBack(); len(r) != 1 || r[0].Count != 2 || len(r[0].Tasks) != 2 || r[0].Text != "many nodes went down" {
		t.Errorf("held: %+v", r)
	}
	f.must(model.Change{SetNodeState: &model.NodeStateSet{Node: 2, State: swarm.NodeStateReady}})
	if r := heldBack(); len(r) != 1 || r[0].Count != 1 || len(r[0].Tasks) != 0 {
		t.Errorf("the notice alone: %+v", r)
	}
}

// A task that is prepared ahead of its time says what it waits for: that its gate opens, that its image comes, or that
// the task before it stops.
func TestWhyPrepared(t *testing.T) {
	f := newFake(t)
	ready := func(num uint64, st model.TaskState) model.Change {
		return model.Change{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: num}, Slot: uint32(num), Template: 1, State: st, Message: "preparing", Desired: model.StateReady}}
	}
	f.must(ready(1, model.StatePreparing), ready(2, model.StateReady))
	reasons := func() map[string]int {
		w, _ := get[Why](t, f, "/skep/v1/services/web/why")
		out := map[string]int{}
		for _, r := range w.Reasons {
			if r.State != "ports" {
				out[r.State+": "+r.Text] = r.Count
			}
		}
		return out
	}
	if got, want := reasons(), map[string]int{"preparing: preparing": 1, "ready: waits for the task that it replaces to stop": 1}; !maps.Equal(got, want) {
		t.Errorf("replaced: %v, want %v", got, want)
	}
	f.revision(`{"Name":"web","Labels":{"skep.depends_on":"db"},"Mode":{"Replicated":{"Replicas":4}},"TaskTemplate":{"ForceUpdate":1},"EndpointSpec":{"Ports":[{"PublishedPort":80,"TargetPort":80}]}}`)
	f.must(model.Change{SetNotice: &model.NoticeSet{Service: 1, Text: "waits for service db, which does not exist"}})
	if got, want := reasons(), map[string]int{"held: waits for service db, which does not exist": 2}; !maps.Equal(got, want) {
		t.Errorf("gated: %v, want %v", got, want)
	}
}

// A slot that the restart policy has given up is told of; one that was restarted or removed is not.
func TestWhyGivenUp(t *testing.T) {
	f := newFake(t)
	f.revision(`{"Name":"web","Mode":{"Replicated":{"Replicas":4}},"TaskTemplate":{"RestartPolicy":{"Condition":"none"}},"EndpointSpec":{"Ports":[{"PublishedPort":80,"TargetPort":80}]}}`)
	task := func(num uint64, slot uint32, st, desired model.TaskState) model.Change {
		return model.Change{PutTask: &model.Task{ID: model.TaskID{Service: 1, Num: num}, Slot: slot, Template: f.snap.LastTemplate(), State: st, Desired: desired, Err: "no luck"}}
	}
	f.must(task(1, 1, model.StateFailed, model.StateShutdown), task(2, 1, model.StateRunning, model.StateRunning),
		task(3, 2, model.StateFailed, model.StateShutdown), task(4, 2, model.StateFailed, model.StateShutdown),
		task(5, 3, model.StateComplete, model.StateShutdown), task(6, 4, model.StateFailed, model.StateRemove))
	w, _ := get[Why](t, f, "/skep/v1/services/web/why")
	given := 0
	for _, r := range w.Reasons {
		if r.State == "failed" {
			given += r.Count
			if r.Text != "no luck, and is not started again" {
				t.Errorf("reason %+v", r)
			}
		}
	}
	if given != 1 || w.Running != 1 {
		t.Errorf("%d slots given up, want 1: %+v", given, w)
	}
}

func TestErrorsAndDown(t *testing.T) {
	f := newFake(t)
	type answer struct{ Message string }
	if a, res := get[answer](t, f, "/skep/v1/services/nosuch/why"); res.StatusCode != 404 || a.Message != "service nosuch not found" {
		t.Errorf("%d %q", res.StatusCode, a.Message)
	}
	if a, res := get[answer](t, f, "/skep/v1/nosuch"); res.StatusCode != 404 || !strings.Contains(a.Message, "page not found") {
		t.Errorf("%d %q", res.StatusCode, a.Message)
	}
	f.err = model.Errorf(model.Unavailable, "not a manager")
	if a, res := get[answer](t, f, "/skep/v1/services/web/why"); res.StatusCode != 503 || a.Message != "not a manager" {
		t.Errorf("%d %q", res.StatusCode, a.Message)
	}
	for err, want := range map[error]string{nil: "{\"stream\":\"stopping\\n\"}\n{\"stream\":\"done\\n\"}\n", errors.New("stuck"): "{\"stream\":\"stopping\\n\"}\n{\"errorDetail\":{\"message\":\"stuck\"}}\n"} {
		f.err = err
		rec := httptest.NewRecorder()
		New(f, http.NotFoundHandler(), nil).ServeHTTP(rec, httptest.NewRequest("POST", "/skep/v1/down", nil))
		if rec.Body.String() != want {
			t.Errorf("down: %q, want %q", rec.Body, want)
		}
	}
	if f.downs != 2 {
		t.Errorf("down was called %d times", f.downs)
	}
}

func post[T any](t *testing.T, f *fakeBackend, path string) (T, int) {
	t.Helper()
	rec := httptest.NewRecorder()
	New(f, http.NotFoundHandler(), nil).ServeHTTP(rec, httptest.NewRequest("POST", path, nil))
	var v T
	if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil {
		t.Fatalf("%s: %v in %s", path, err, rec.Body)
	}
	return v, rec.Code
}

func TestRolloutIsPausedResumedCanceledAndRolledBack(t *testing.T) {
	f := newFake(t)
	type answer struct{ Message string }
	refuse := func(path, want string) {
		t.Helper()
		if a, code := post[answer](t, f, "/skep/v1/services/web/"+path); code != 400 && code != 404 || !strings.Contains(a.Message, want) {
			t.Errorf("%s: %d %q, want …%s…", path, code, a.Message, want)
		}
	}
	refuse("rollback", "does not have a previous spec")
	refuse("update/pause", "has no update in progress")
	refuse("update/halt", "not \"halt\"")
	f.revision(`{"Name":"web","Mode":{"Replicated":{"Replicas":4}},"TaskTemplate":{"ForceUpdate":1},"EndpointSpec":{}}`)
	f.must(model.Change{SetUpdate: &model.UpdateSet{Service: 1, Update: &model.UpdateStatus{State: swarm.UpdateStateUpdating}}})
	for _, step := range []struct {
		path string
		want swarm.UpdateState
		rev  uint64
	}{
		{"update/pause", swarm.UpdateStatePaused, 2}, {"update/resume", swarm.UpdateStateUpdating, 2},
		{"update/cancel", swarm.UpdateStateRollbackStarted, 3}, {"rollback?to=2", swarm.UpdateStateRollbackStarted, 4},
	} {
		d, code := post[Done](t, f, "/skep/v1/services/web/"+step.path)
		if svc := f.snap.Service(1); code != 200 || d.Revision != step.rev || svc.Update.State != step.want {
			t.Errorf("%s: %d %+v, update %+v", step.path, code, d, svc.Update)
		}
	}
	if got := string(f.snap.Service(1).Current().Spec.Raw); !strings.Contains(got, `"ForceUpdate":1`) {
		t.Errorf("revision 4 is not revision 2: %s", got)
	}
	refuse("rollback?to=x", "is not the number of a revision")
	refuse("rollback?to=99", "has no revision 99")
	refuse("rollback?to=4", "in force already")
}

func TestAcceptLoss(t *testing.T) {
	f := newFake(t)
	if _, code := post[Done](t, f, "/skep/v1/swarm/accept-loss"); code != 200 || f.snap.Cluster().LossAccepted == 0 {
		t.Errorf("%d, %+v", code, f.snap.Cluster().LossAccepted)
	}
}
