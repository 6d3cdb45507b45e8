package skepapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/compose"
	"github.com/skep-swarm/skep/internal/model"
)

// engine is Docker's API as far as a deploy needs it: it notes what it is asked and makes services in the state.
type engine struct {
	t     *testing.T
	f     *fakeBackend
	calls []string
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		e.t.Error(err)
	}
	e.calls = append(e.calls, r.Method+" "+r.URL.Path)
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, "/distribution/alpine"):
		fmt.Fprintf(w, `{"Descriptor":{"digest":"sha256:%s"},"Platforms":[{"os":"linux","architecture":"amd64"}]}`, strings.Repeat("a", 64))
	case path == "/services/create":
		var s swarm.ServiceSpec
		if err := json.Unmarshal(body, &s); err != nil {
			e.t.Error(err)
		}
		spec, err := model.ParseSpec[swarm.ServiceSpec](body)
		if err != nil {
			e.t.Fatal(err)
		}
		id := e.f.snap.LastService() + 1
		tpl, err := model.NewTemplate(id, spec, "")
		if err != nil {
			e.t.Fatal(err)
		}
		tpl.ID = e.f.snap.LastTemplate() + 1
		e.f.must(model.Change{NewRevision: &model.NewRevision{Service: id, Spec: spec, Template: tpl, TemplateID: tpl.ID}})
		fmt.Fprint(w, `{"ID":"x","Warnings":["mind the gap"]}`)
	case strings.HasPrefix(path, "/services/") && r.Method == http.MethodDelete:
		svc, err := e.f.snap.FindService(strings.TrimPrefix(path, "/services/"))
		if err != nil {
			e.t.Error(err)
			return
		}
		e.f.must(model.Change{DeleteService: svc.ID})
	case path == "/configs/create":
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, `{"message":"rpc error: code = AlreadyExists desc = config c already exists"}`)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"message":"page not found"}`)
	}
}

// take returns what was asked since the last time.
func (e *engine) take() string {
	defer func() { e.calls = nil }()
	return strings.Join(e.calls, ", ")
}

func stackService(name, image string) swarm.ServiceSpec {
	s := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "shop_" + name, Labels: map[string]string{stackLabel: "shop", imageLabel: image}}}
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: image}
	return s
}

func deployTo(t *testing.T, h http.Handler, method, path string, d *Deploy) (steps []Step, status int) {
	t.Helper()
	body, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, bytes.NewReader(body)))
	dec := json.NewDecoder(w.Body)
	for {
		var s Step
		if dec.Decode(&s) != nil {
			return steps, w.Code
		}
		steps = append(steps, s)
	}
}

func TestStackLife(t *testing.T) {
	f := newFake(t)
	e := &engine{t: t, f: f}
	h := New(f, e)
	const path = "/skep/v1/stacks/shop"
	d := &Deploy{Stack: compose.Stack{Name: "shop", Services: []swarm.ServiceSpec{stackService("web", "alpine:3"), stackService("db", "local:1")}, Source: []byte("services: {}\n")}}

	// The plan writes nothing and asks registries only.
	var plan []Planned
	w := httptest.NewRecorder()
	body, _ := json.Marshal(d)
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path+"/plan", bytes.NewReader(body)))
	if err := json.Unmarshal(w.Body.Bytes(), &plan); err != nil || len(plan) != 2 || plan[0].Action != "created" {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	if got := e.take(); got != "GET /distribution/alpine:3/json, GET /distribution/local:1/json" || f.snap.Stack("shop") != nil {
		t.Errorf("a plan asked %s", got)
	}

	steps, status := deployTo(t, h, http.MethodPut, path, d)
	if status != 200 || len(steps) != 3 || steps[0].Name != "shop_web" || steps[0].Warnings[0] != "mind the gap" || steps[2].Revision != 1 {
		t.Fatalf("deploy: %d %+v", status, steps)
	}
	if image := f.snap.ServiceByName("shop_web").Spec().TaskTemplate.ContainerSpec.Image; image != "alpine:3@sha256:"+strings.Repeat("a", 64) {
		t.Errorf("image %s", image)
	}
	if image := f.snap.ServiceByName("shop_db").Spec().TaskTemplate.ContainerSpec.Image; image != "local:1" {
		t.Errorf("image %s", image)
	}
	e.take()

	// Again: nothing changes, no revision is made.
	steps, _ = deployTo(t, h, http.MethodPut, path, d)
	if len(steps) != 3 || steps[0].Action != "unchanged" || steps[1].Action != "unchanged" || steps[2].Revision != 1 {
		t.Errorf("the same again: %+v", steps)
	}
	// One service less: it stays until it is pruned.
	d.Stack.Services = d.Stack.Services[:1]
	if steps, _ = deployTo(t, h, http.MethodPut, path, d); len(steps) != 2 || steps[1].Revision != 2 {
		t.Errorf("without db: %+v", steps)
	}
	d.Prune = true
	if steps, _ = deployTo(t, h, http.MethodPut, path, d); len(steps) != 3 || steps[1].Action != "removed" || f.snap.ServiceByName("shop_db") != nil {
		t.Errorf("pruned: %+v", steps)
	}
	// Back: db is there again.
	if steps, _ = deployTo(t, h, http.MethodPost, path+"/rollback?to=1", nil); len(steps) != 3 || steps[2].Revision != 3 || f.snap.ServiceByName("shop_db") == nil {
		t.Errorf("rollback: %+v", steps)
	}
	hist, _ := get[[]StackRevision](t, f, path+"/history")
	if len(hist) != 3 || !hist[2].Current || hist[2].Reason != "roll back to revision 1" || string(hist[0].Definition.Source) != "services: {}\n" {
		t.Errorf("history %+v", hist)
	}
	list, _ := get[[]StackSummary](t, f, "/skep/v1/stacks")
	if len(list) != 1 || list[0].Services != 2 || list[0].Revision != 3 {
		t.Errorf("stacks %+v", list)
	}
	st, _ := get[StackStatus](t, f, path+"/status")
	if len(st.Services) != 2 || st.Services[0].Name != "shop_db" || st.Services[0].Converged {
		t.Errorf("status %+v", st)
	}
	if steps, _ = deployTo(t, h, http.MethodDelete, path, nil); len(steps) != 3 || f.snap.Stack("shop") != nil || f.snap.ServiceByName("shop_web") != nil {
		t.Errorf("removed: %+v", steps)
	}
	if _, status = deployTo(t, h, http.MethodDelete, path, nil); status != http.StatusNotFound {
		t.Errorf("removed again: %d", status)
	}
}

// What is wrong is found before anything is written.
func TestStackRefusals(t *testing.T) {
	f := newFake(t)
	e := &engine{t: t, f: f}
	h := New(f, e)
	const path = "/skep/v1/stacks/shop"
	foreign := stackService("x", "local:1")
	foreign.Name = "web" // there is one of that name, of no stack
	for _, test := range []struct {
		name   string
		d      Deploy
		status int
	}{
		{"another name", Deploy{Stack: compose.Stack{Name: "other"}}, 400},
		{"a resolve mode", Deploy{Stack: compose.Stack{Name: "shop"}, Resolve: "sometimes"}, 400},
		{"an external network", Deploy{Stack: compose.Stack{Name: "shop", Networks: []compose.Network{{Name: "n", External: true}}}}, 400},
		{"an external secret", Deploy{Stack: compose.Stack{Name: "shop", Secrets: []compose.Secret{{Name: "s", External: true}}}}, 400},
		{"another's service", Deploy{Stack: compose.Stack{Name: "shop", Services: []swarm.ServiceSpec{foreign}}}, 409},
		{"no container", Deploy{Stack: compose.Stack{Name: "shop", Services: []swarm.ServiceSpec{{Annotations: swarm.Annotations{Name: "y"}}}}}, 400},
	} {
		if steps, status := deployTo(t, h, http.MethodPut, path, &test.d); status != test.status {
			t.Errorf("%s: %d %+v", test.name, status, steps)
		}
		if f.snap.Stack("shop") != nil {
			t.Errorf("%s: a revision was kept", test.name)
		}
	}
	// Others may write meanwhile: the answer ends with what went wrong.
	d := &Deploy{Stack: compose.Stack{Name: "shop", Configs: []compose.Config{{Name: "c", Spec: &swarm.ConfigSpec{Data: []byte("x")}}}}}
	steps, status := deployTo(t, h, http.MethodPut, path, d)
	if status != http.StatusConflict && (len(steps) == 0 || !strings.Contains(steps[len(steps)-1].Error, "config c already exists")) {
		t.Errorf("%d %+v", status, steps)
	}
}
