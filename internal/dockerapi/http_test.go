package dockerapi

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// call makes one request without a network.
func call(s *Server, method, target, body string, header ...string) *httptest.ResponseRecorder {
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, target, rd)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func newSwarm(t *testing.T) (*Server, *fake) {
	t.Helper()
	s, f := newTestServer(t)
	if w := call(s, "POST", "/swarm/init", `{"ListenAddr":"0.0.0.0:2377"}`); w.Code != 200 {
		t.Fatalf("init: %d %s", w.Code, w.Body)
	}
	return s, f
}

func message(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var m struct{ Message string }
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil {
		t.Fatalf("error reply %q: %v", w.Body, err)
	}
	if ct := w.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type of an error is %q: the CLI wants exactly application/json", ct)
	}
	return m.Message
}

func create(t *testing.T, s *Server, body string) string {
	t.Helper()
	w := call(s, "POST", "/v1.50/services/create", body)
	if w.Code != 201 {
		t.Fatalf("create: %d %s", w.Code, w.Body)
	}
	var out struct{ ID string }
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || len(out.ID) != 25 {
		t.Fatalf("create: %q %v", w.Body, err)
	}
	return out.ID
}

func fetch[T any](t *testing.T, s *Server, target string) (out T) {
	t.Helper()
	w := call(s, "GET", target, "")
	if w.Code != 200 {
		t.Fatalf("GET %s: %d %s", target, w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("GET %s: %v", target, err)
	}
	return out
}

func filtersOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return "filters=" + url.QueryEscape(string(b))
}

func TestErrors(t *testing.T) {
	s, _ := newSwarm(t)
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	for _, c := range []struct {
		method, target, body string
		header               []string
		status               int
		text                 string
	}{
		{"GET", "/v1.99/info", "", nil, 400, "client version 1.99 is too new. Maximum supported API version is " + MaxAPIVersion},
		{"GET", "/v1.23/info", "", nil, 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"GET", "/v1.50/nothing", "", nil, 404, "page not found"},
		{"GET", "/", "", nil, 404, "page not found"},
		{"PUT", "/services", "", nil, 404, "page not found"},
		{"POST", "/services/create", "{}", []string{"Content-Type", "text/plain"}, 400, "unsupported Content-Type header (text/plain): must be 'application/json'"},
		{"POST", "/services/create", "{", nil, 400, "invalid JSON: unexpected EOF"},
		{"POST", "/services/create", `{} {}`, nil, 400, "unexpected content after JSON"},
		{"POST", "/services/create", "[]", nil, 400, "invalid JSON: json: cannot unmarshal array into Go value of type map[string]json.RawMessage"},
		{"POST", "/services/create", "{}", nil, 400, "mismatched Runtime and *Spec fields"},
		{"POST", "/services/create", `{"Name":"` + strings.Repeat("x", maxBody) + `"}`, nil, 413, "request body is larger than 4194304 bytes: http: request body too large"},
		{"POST", "/services/create", `{"TaskTemplate":{"ContainerSpec":{}}}`, nil, 400, "rpc error: code = InvalidArgument desc = ContainerSpec: image reference must be provided"},
		{"GET", "/services?filters=nonsense", "", nil, 400, "invalid filter"},
		{"GET", "/services?" + filtersOf(map[string]any{"colour": map[string]bool{"red": true}}), "", nil, 400, "invalid filter 'colour'"},
		{"GET", "/tasks?" + filtersOf(map[string]any{"service": map[string]bool{"nope": true}}), "", nil, 404, "service nope not found"},
		{"GET", "/tasks?" + filtersOf(map[string]any{"desired-state": []string{"nope"}}), "", nil, 400, "invalid desired-state filter: 'nope'"},
		{"POST", "/services/web/update", "{}", nil, 400, "invalid service version '': it must be the Version.Index of the service as it was read"},
		{"POST", "/services/web/update?version=99999", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`, nil, 500, "rpc error: code = Unknown desc = update out of sequence"},
		{"GET", "/tasks/nope", "", nil, 404, "task nope not found"},
		{"GET", "/secrets/nope", "", nil, 404, "secret nope not found"},
		{"POST", "/configs/create", "{}", nil, 400, "rpc error: code = InvalidArgument desc = name must be provided"},
		{"GET", "/services/web/logs", "", nil, 400, "Bad parameters: you must choose at least one stream"},
		{"POST", "/swarm/init", "{}", nil, 503, alreadyInSwarm},
		{"POST", "/swarm/unlock", "{}", nil, 409, "swarm is not locked"},
		{"POST", "/nodes/node-a/update?version=2", `{"Role":"king","Availability":"active"}`, nil, 400, `invalid Role: "king"`},
		{"POST", "/nodes/node-a/update?version=2", `{"Role":"manager","Availability":"asleep"}`, nil, 400, `invalid Availability: "asleep"`},
	} {
		w := call(s, c.method, c.target, c.body, c.header...)
		if got := message(t, w); w.Code != c.status || got != c.text {
			t.Errorf("%s %.60s: %d %q, want %d %q", c.method, c.target, w.Code, got, c.status, c.text)
		}
	}
}

func TestNotAManager(t *testing.T) {
	s, f := newTestServer(t)
	for _, c := range []struct {
		local Local
		text  string
	}{
		{Local{State: swarm.LocalNodeStateInactive}, notManagerInactive},
		{Local{State: swarm.LocalNodeStateActive}, notManagerWorker},
		{Local{State: swarm.LocalNodeStateLocked}, notManagerLocked},
	} {
		f.setLocal(c.local)
		for _, path := range []string{"/services", "/nodes", "/tasks", "/swarm", "/secrets", "/services/x"} {
			if w := call(s, "GET", path, ""); w.Code != 503 || message(t, w) != c.text {
				t.Errorf("%s of a node that is %+v: %d %s", path, c.local, w.Code, w.Body)
			}
		}
		if w := call(s, "POST", "/networks/create", `{"Name":"n","Driver":"overlay"}`); w.Code != 403 || message(t, w) != c.text {
			t.Errorf("network create on %+v: %d %s", c.local, w.Code, w.Body)
		}
	}
}

func TestPing(t *testing.T) {
	s, f := newTestServer(t)
	for _, c := range []struct {
		local Local
		want  string
	}{
		{Local{State: "inactive"}, "inactive"}, {Local{State: "pending"}, "pending"}, {Local{State: "active"}, "active/worker"},
		{Local{State: "active", Manager: true}, "active/manager"}, {Local{State: "locked"}, "locked"},
	} {
		f.setLocal(c.local)
		for _, method := range []string{"HEAD", "GET"} {
			w := call(s, method, "/_ping", "")
			h := w.Header()
			if w.Code != 200 || h.Get("Swarm") != c.want || h.Get("Api-Version") != MaxAPIVersion || h.Get("Ostype") != "linux" ||
				h.Get("Docker-Experimental") != "false" || !strings.HasPrefix(h.Get("Cache-Control"), "no-cache") {
				t.Errorf("%s: %d %v", method, w.Code, h)
			}
			if want := map[string]string{"HEAD": "", "GET": "OK"}[method]; w.Body.String() != want {
				t.Errorf("%s body %q", method, w.Body)
			}
		}
	}
}

// A client of API 1.24 sends its networks beside the task template and reads raw streams.
func TestOldClient(t *testing.T) {
	s, _ := newSwarm(t)
	body := `{"Name":"old","TaskTemplate":{"ContainerSpec":{"Image":"web"}},"Networks":[{"Target":"mine"}]}`
	w := call(s, "POST", "/v1.24/services/create", body)
	if w.Code != 404 || message(t, w) != "network mine not found" {
		t.Errorf("a 1.24 client's networks were not seen: %d %s", w.Code, w.Body)
	}
	w = call(s, "POST", "/v1.24/services/create", strings.Replace(body, `[{"Target":"mine"}]`, "[]", 1))
	if w.Code != 201 {
		t.Fatalf("create: %d %s", w.Code, w.Body)
	}
	if w := call(s, "GET", "/v1.24/services/old/logs?stdout=1", ""); w.Header().Get("Content-Type") != "application/vnd.docker.raw-stream" {
		t.Errorf("log type for 1.24 is %s", w.Header().Get("Content-Type"))
	}
	if w := call(s, "GET", "/services/old/logs?stdout=1", ""); w.Header().Get("Content-Type") != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("log type is %s", w.Header().Get("Content-Type"))
	}
	if got := fetch[[]swarm.Task](t, s, `/v1.24/tasks?filters={"service":["old"]}`); len(got) != 1 {
		t.Errorf("the old form of filters finds %d tasks", len(got))
	}
}

// Fields that nobody knows yet survive, and a client that reads and writes back a spec that
// another client wrote (nulls, empty values, other case) restarts nothing.
func TestSpecRoundTrip(t *testing.T) {
	s, f := newSwarm(t)
	id := create(t, s, `{"name":"web","Labels":null,"X-Future":{"a":1.50},"Mode":{"Replicated":{"Replicas":2}},"Networks":null,
		"TaskTemplate":{"ContainerSpec":{"Image":"web:v1","Env":[],"Command":null,"FutureField":"kept","Mounts":null},"Placement":{},"Networks":[]}}`)
	var raw struct{ Spec json.RawMessage }
	if err := json.Unmarshal(call(s, "GET", "/services/"+id, "").Body.Bytes(), &raw); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"X-Future":{"a":1.50}`, `"FutureField":"kept"`, `"Name":"web"`} {
		if !bytes.Contains(raw.Spec, []byte(want)) {
			t.Errorf("%s is lost: %s", want, raw.Spec)
		}
	}
	full := call(s, "GET", "/services/"+id+"?insertDefaults=true", "").Body.String()
	for _, want := range []string{`"FutureField":"kept"`, `"StopGracePeriod":10000000000`, `"Mode":"vip"`, `"Condition":"any"`} {
		if !strings.Contains(full, want) {
			t.Errorf("insertDefaults: no %s in %s", want, full)
		}
	}

	svc := fetch[swarm.Service](t, s, "/services/"+id)
	if svc.PreviousSpec != nil || svc.UpdateStatus != nil {
		t.Errorf("a new service has a past: %+v", svc)
	}
	tasks := f.snap.NumTasks()
	svc.Spec.Mode.Replicated.Replicas = new(uint64(3))
	body, err := json.Marshal(svc.Spec) // by Docker's own types: the unknown fields go
	if err != nil {
		t.Fatal(err)
	}
	body = bytes.Replace(body, []byte(`"Image":"web:v1"`), []byte(`"Image":"web:v1","FutureField":"kept"`), 1)
	if w := call(s, "POST", "/services/"+id+"/update?version="+svc.Version.String(), string(body)); w.Code != 200 {
		t.Fatalf("update: %d %s", w.Code, w.Body)
	}
	if got := f.snap.NumTasks(); got != tasks+1 {
		t.Errorf("scaling from %d tasks by one made %d: something restarted", tasks, got)
	}
	after := fetch[swarm.Service](t, s, "/services/"+id)
	if after.Version.Index <= svc.Version.Index || after.PreviousSpec == nil || after.UpdateStatus != nil {
		t.Errorf("after scaling: version %v, previous %v, update %v", after.Version, after.PreviousSpec, after.UpdateStatus)
	}
}

func TestUpToDateFilter(t *testing.T) {
	s, _ := newSwarm(t)
	id := create(t, s, `{"Name":"web","Mode":{"Replicated":{"Replicas":2}},"TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	svc := fetch[swarm.Service](t, s, "/services/"+id)
	body := `{"Name":"web","Mode":{"Replicated":{"Replicas":2}},"TaskTemplate":{"ContainerSpec":{"Image":"web:v2"}}}`
	if w := call(s, "POST", "/services/web/update?version="+svc.Version.String(), body); w.Code != 200 {
		t.Fatalf("update: %d %s", w.Code, w.Body)
	}
	all := fetch[[]swarm.Task](t, s, "/tasks?"+filtersOf(map[string][]string{"service": {"web"}}))
	now := fetch[[]swarm.Task](t, s, "/tasks?"+filtersOf(map[string]map[string]bool{"service": {id: true}, "_up-to-date": {"true": true}}))
	if len(all) != 4 || len(now) != 2 {
		t.Fatalf("%d tasks, %d up to date; want 4 and 2", len(all), len(now))
	}
	for _, task := range now {
		if task.Spec.ContainerSpec.Image != "web:v2" || task.Status.State != swarm.TaskStateRunning || len(task.Status.ContainerStatus.ContainerID) != 64 {
			t.Errorf("up to date, but %+v", task)
		}
	}
	st := fetch[[]swarm.Service](t, s, "/services?status=true")[0].ServiceStatus
	if st == nil || st.RunningTasks != 2 || st.DesiredTasks != 2 {
		t.Errorf("status %+v", st)
	}
}

// TestTasksOfRemovedService: who waits for the end of a stack sees its tasks as long as they run, and not as history.
func TestTasksOfRemovedService(t *testing.T) {
	s, f := newSwarm(t)
	create(t, s, `{"Name":"web","Labels":{"of":"shop"},"Mode":{"Replicated":{"Replicas":3}},"TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	list := func() []swarm.Task {
		return fetch[[]swarm.Task](t, s, "/tasks?"+filtersOf(map[string][]string{"label": {"of=shop"}}))
	}
	var tasks []model.TaskID
	for task := range f.snap.AllTasks() {
		tasks = append(tasks, task.ID)
	}
	f.stop(tasks[0])
	if got := list(); len(got) != 3 {
		t.Fatalf("%d tasks, want also the one that ended", len(got))
	}
	f.change(model.Change{DeleteService: tasks[0].Service}) // nobody looks after its tasks yet
	for left := 2; left > 0; left-- {
		if got := list(); len(got) != left {
			t.Errorf("%d tasks of the removed service, want the %d that run", len(got), left)
		}
		f.stop(tasks[left])
	}
	if got := list(); len(got) != 0 {
		t.Errorf("%d tasks of the removed service, want none", len(got))
	}
}

// A job's desired tasks are its concurrency however little is left to do, as in Docker.
func TestJobStatus(t *testing.T) {
	s := New(Config{Backend: newFake(time.Now), Rand: seeded("api")})
	if w := call(s, "POST", "/swarm/init", `{"ListenAddr":"0.0.0.0:2377"}`); w.Code != 200 {
		t.Fatalf("init: %d %s", w.Code, w.Body)
	}
	create(t, s, `{"Name":"job","Mode":{"ReplicatedJob":{"MaxConcurrent":3,"TotalCompletions":2}},"TaskTemplate":{"ContainerSpec":{"Image":"web:v1"},"RestartPolicy":{"Condition":"none"}}}`)
	st := fetch[[]swarm.Service](t, s, "/services?status=true")[0].ServiceStatus
	if st == nil || st.DesiredTasks != 3 {
		t.Errorf("status %+v", st)
	}
	// One that says nothing runs once; the CLI's table of services needs the numbers.
	id := create(t, s, `{"Name":"once","Mode":{"ReplicatedJob":{}},"TaskTemplate":{"ContainerSpec":{"Image":"web:v1"},"RestartPolicy":{"Condition":"none"}}}`)
	job := fetch[swarm.Service](t, s, "/services/"+id).Spec.Mode.ReplicatedJob
	if job.MaxConcurrent == nil || *job.MaxConcurrent != 1 || job.TotalCompletions == nil || *job.TotalCompletions != 1 {
		t.Errorf("job %+v", job)
	}
}

// Someone takes the number first: the write is planned again; someone takes the name: it is refused.
func TestRaces(t *testing.T) {
	s, f := newSwarm(t)
	sneak := func(name string) func(*model.Batch) {
		return func(*model.Batch) {
			spec, err := parseService(json.RawMessage(`{"Name":"` + name + `","TaskTemplate":{"ContainerSpec":{"Image":"x"}}}`))
			if err != nil {
				t.Error(err)
			}
			txn, err := planCreate(spec, imageFrom{})(f.snap)
			if err != nil {
				t.Error(err)
			}
			f.change(txn.Changes...)
		}
	}
	f.beforePropose = sneak("other")
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	if f.snap.NumServices() != 2 {
		t.Errorf("%d services, want both", f.snap.NumServices())
	}
	f.beforePropose = sneak("taken")
	w := call(s, "POST", "/services/create", `{"Name":"taken","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	if w.Code != 409 || message(t, w) != "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service taken already exists" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestPanicIsOneLine(t *testing.T) {
	s, _ := newTestServer(t)
	s.routes.get("/boom", func(*request) error { panic("boom") })
	w := call(s, "GET", "/boom", "")
	if got := message(t, w); w.Code != http.StatusInternalServerError || strings.Contains(got, "\n") || !strings.Contains(got, "internal error") {
		t.Errorf("%d %q", w.Code, got)
	}
}

// A name with slashes goes to the right place, and a path that only looks alike does not.
func TestRouteNames(t *testing.T) {
	s, _ := newTestServer(t)
	for path, want := range map[string]string{
		"/images/registry.example:5000/a/b/json": "registry.example:5000/a/b",
		"/images/json":                           "",
		"/images/a/history":                      "a",
		"/v1.30/volumes":                         "",
		"/volumes/v1":                            "v1",
	} {
		_, rest, err := splitVersion(path)
		if err != nil {
			t.Fatal(err)
		}
		rt, vars := s.routes.find("GET", rest)
		if rt == nil || vars["name"] != want {
			t.Errorf("%s: %v", path, vars)
		}
	}
}
