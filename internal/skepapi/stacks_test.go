package skepapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/compose"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// engine is Docker's API as far as a deploy needs it: it notes what it is asked and makes services in the state.
type engine struct {
	t     *testing.T
	log   Log
	calls []string
	// overtake, if any, is called once before the next service is made: another client is quicker.
	overtake func()
}

// newEngine is the API of a backend, with the handler that uses it for real and for rehearsals.
func newEngine(t *testing.T, f *fakeBackend) (*engine, http.Handler) {
	e := &engine{t: t, log: f}
	return e, New(f, e, func(l Log) http.Handler { return &engine{t: t, log: l} })
}

func (e *engine) snap() *state.Snapshot {
	snap, err := e.log.State(e.t.Context())
	if err != nil {
		e.t.Error(err)
	}
	return snap
}

func (e *engine) must(c model.Change) {
	out, err := e.log.Propose(e.t.Context(), &model.Batch{Actor: "alice", Time: 1e9, Txns: []model.Txn{{Changes: []model.Change{c}}}})
	if err != nil || out.Results[0] != nil {
		e.t.Error(err, out)
	}
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
	case path == "/services/create" && strings.Contains(string(body), `"Dir":"refuse"`):
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"message":"rpc error: code = InvalidArgument desc = no such dir"}`)
	case path == "/services/create" && e.overtake != nil:
		e.overtake()
		e.overtake = nil
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, `{"message":"rpc error: code = AlreadyExists desc = name conflicts with an existing object"}`)
	case path == "/services/create":
		e.revise(e.snap().LastService()+1, body)
		fmt.Fprint(w, `{"ID":"x","Warnings":["mind the gap"]}`)
	case strings.HasPrefix(path, "/services/") && strings.HasSuffix(path, "/update"):
		svc, err := e.snap().FindService(strings.Split(path, "/")[2])
		if err != nil {
			e.t.Error(err)
			return
		}
		e.revise(svc.ID, body)
		fmt.Fprint(w, `{}`)
	case strings.HasPrefix(path, "/services/") && r.Method == http.MethodDelete:
		svc, err := e.snap().FindService(strings.TrimPrefix(path, "/services/"))
		if err != nil {
			e.t.Error(err)
			return
		}
		e.must(model.Change{DeleteService: svc.ID})
	case strings.HasPrefix(path, "/secrets/") && r.Method == http.MethodDelete:
		p, err := e.snap().FindPayload(model.KindSecret, strings.TrimPrefix(path, "/secrets/"))
		if err != nil {
			e.t.Error(err)
			return
		}
		k := p.Key()
		e.must(model.Change{DeletePayload: &k})
	case strings.HasPrefix(path, "/networks/") && r.Method == http.MethodDelete:
		e.must(model.Change{DeleteNetwork: 1})
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"message":"page not found"}`)
	}
}

// revise gives a service a spec.
func (e *engine) revise(id model.ServiceID, body []byte) {
	spec, err := model.ParseSpec[swarm.ServiceSpec](body)
	if err != nil {
		e.t.Fatal(err)
	}
	tpl, err := model.NewTemplate(id, spec, "")
	if err != nil {
		e.t.Fatal(err)
	}
	tpl.ID = e.snap().LastTemplate() + 1
	e.must(model.Change{NewRevision: &model.NewRevision{Service: id, Spec: spec, Template: tpl, TemplateID: tpl.ID}})
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
	e, h := newEngine(t, f)
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

// What another client had deployed is the first revision of a stack, and can be gone back to.
func TestStackOfAnotherClient(t *testing.T) {
	f := newFake(t)
	e, h := newEngine(t, f)
	const path = "/skep/v1/stacks/shop"
	mine := map[string]string{stackLabel: "shop"}
	f.must(model.Change{PutNetwork: &model.Network{ID: 1, Name: "shop_net", Driver: "overlay", Labels: mine, IPAM: []model.IPAMConfig{{Subnet: netip.MustParsePrefix("10.1.0.0/24")}}}})
	put := func(kind model.Kind, num uint64, name string) {
		spec, err := model.MakeSpec(&swarm.SecretSpec{Annotations: swarm.Annotations{Name: name, Labels: mine}})
		if err != nil {
			t.Fatal(err)
		}
		f.must(model.Change{PutPayload: &model.Payload{Kind: kind, Num: num, Spec: spec, Value: model.Value("sesame")}})
	}
	put(model.KindSecret, 1, "shop_key")
	put(model.KindConfig, 1, "shop_page")
	svc := stackService("web", "local:1")
	id := f.snap.Cluster().Namer().ID(model.NetworkKey(1))
	svc.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: id}}
	raw, err := json.Marshal(svc)
	if err != nil {
		t.Fatal(err)
	}
	e.revise(2, raw)
	var m struct{ Message string }
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path+"/rollback", nil))
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil || w.Code != 404 || !strings.HasPrefix(m.Message, "stack shop has no history yet: another client deployed it. Its first") {
		t.Errorf("rollback before the first deploy: %d %s", w.Code, w.Body)
	}

	svc = stackService("web", "local:2")
	svc.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "shop_net"}}
	net := compose.Network{Name: "shop_net", Create: &network.CreateRequest{Labels: mine}}
	d := &Deploy{Stack: compose.Stack{Name: "shop", Networks: []compose.Network{net}, Services: []swarm.ServiceSpec{svc, stackService("more", "local:1")}}, Prune: true}
	if steps, status := deployTo(t, h, http.MethodPut, path, d); status != 200 || len(steps) != 6 || steps[3].Action != "kept" || steps[4].Action != "kept" || steps[5].Revision != 2 {
		t.Fatalf("deploy: %d %+v", status, steps)
	}
	hist, _ := get[[]StackRevision](t, f, path+"/history")
	if len(hist) != 2 || hist[0].Actor != "alice" || hist[0].Reason != "as another client had deployed it" || hist[0].Current {
		t.Fatalf("history %+v", hist)
	}
	def := hist[0].Definition
	if len(def.Services) != 1 || def.Services[0].TaskTemplate.Networks[0].Target != "shop_net" || len(def.Secrets) != 1 || len(def.Secrets[0].Spec.Data) != 0 ||
		len(def.Configs) != 1 || def.Networks[0].Create.IPAM.Config[0].Subnet.String() != "10.1.0.0/24" || bytes.Contains(f.snap.Stack("shop").Revisions[0].Definition, []byte("c2VzYW1l")) {
		t.Errorf("revision 1: %+v", def)
	}
	steps, status := deployTo(t, h, http.MethodPost, path+"/rollback", nil)
	var got []string
	for _, s := range steps {
		got = append(got, strings.TrimSpace(s.Kind+" "+s.Name+" "+s.Action))
	}
	if want := "network shop_net unchanged, secret shop_key unchanged, config shop_page unchanged, service shop_web updated, service shop_more removed, "; status != 200 || strings.Join(got, ", ") != want {
		t.Errorf("rollback: %d %q", status, strings.Join(got, ", "))
	}
	spec := f.snap.ServiceByName("shop_web").Spec()
	if spec.TaskTemplate.ContainerSpec.Image != "local:1" || spec.TaskTemplate.Networks[0].Target != id {
		t.Errorf("after the rollback: %+v", spec.TaskTemplate)
	}
}

// What is wrong is found before anything is written.
func TestStackRefusals(t *testing.T) {
	f := newFake(t)
	_, h := newEngine(t, f)
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
	// One that the API refuses in its last part is refused before the first one is there: a rehearsal finds it. The answer says which.
	d := &Deploy{Stack: compose.Stack{Name: "shop", Services: []swarm.ServiceSpec{stackService("web", "local:1"), stackService("bad", "local:1")}}}
	d.Stack.Services[1].TaskTemplate.ContainerSpec.Dir = "refuse"
	body, _ := json.Marshal(d)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPut, path, bytes.NewReader(body)))
	var m struct{ Message, Kind, Name string }
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil || w.Code != 400 || m.Message != "service shop_bad: no such dir" || m.Kind != "service" || m.Name != "shop_bad" {
		t.Errorf("%d %+v, %v", w.Code, m, err)
	}
	if f.snap.Stack("shop") != nil || f.snap.ServiceByName("shop_web") != nil {
		t.Error("a part of a stack that was refused is there")
	}
}

// What another writes between the plan and a part of it makes a new plan, which takes it as it is.
func TestStackOvertaken(t *testing.T) {
	f := newFake(t)
	e, h := newEngine(t, f)
	e.overtake = func() {
		raw, err := json.Marshal(stackService("web", "local:1"))
		if err != nil {
			t.Error(err)
		}
		e.revise(e.snap().LastService()+1, raw)
	}
	steps, status := deployTo(t, h, http.MethodPut, "/skep/v1/stacks/shop", &Deploy{Stack: compose.Stack{Name: "shop", Services: []swarm.ServiceSpec{stackService("web", "local:1")}}})
	if status != 200 || len(steps) != 2 || steps[0].Action != "unchanged" || steps[1].Revision != 1 {
		t.Errorf("%d %+v", status, steps)
	}
}

// One deploy of a stack at a time; those of others do not wait, nor does who has no time.
func TestTurns(t *testing.T) {
	var turns turns
	done, err := turns.take(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := turns.take(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := turns.take(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("a turn that is taken: %v", err)
	}
	second := make(chan func())
	go func() {
		d, err := turns.take(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		second <- d
	}()
	done()
	(<-second)()
	if len(turns.busy) != 0 {
		t.Errorf("left over: %v", turns.busy)
	}
}

// Networks, secrets and configs go with a prune, but for values that an earlier revision needs.
func TestStackPrune(t *testing.T) {
	f := newFake(t)
	_, h := newEngine(t, f)
	mine := map[string]string{stackLabel: "shop"}
	put := func(num uint64, name string) {
		spec, err := model.MakeSpec(&swarm.SecretSpec{Annotations: swarm.Annotations{Name: name, Labels: mine}})
		if err != nil {
			t.Fatal(err)
		}
		f.must(model.Change{PutPayload: &model.Payload{Kind: model.KindSecret, Num: num, Spec: spec, Value: model.Value("x")}})
	}
	put(1, "shop_old")
	put(2, "shop_older")
	f.must(model.Change{PutNetwork: &model.Network{ID: 1, Name: "shop_net", Labels: mine}})
	d := &Deploy{Stack: compose.Stack{Name: "shop", Services: []swarm.ServiceSpec{stackService("web", "local:1")},
		Secrets: []compose.Secret{{Name: "shop_old", Spec: &swarm.SecretSpec{Annotations: swarm.Annotations{Name: "shop_old", Labels: mine}}}}}}
	deployTo(t, h, http.MethodPut, "/skep/v1/stacks/shop", d)
	d.Stack.Secrets, d.Prune = nil, true
	steps, status := deployTo(t, h, http.MethodPut, "/skep/v1/stacks/shop", d)
	var got []string
	for _, s := range steps {
		got = append(got, s.Kind+" "+s.Name+" "+s.Action)
	}
	want := "service shop_web unchanged, secret shop_old kept, secret shop_older removed, network shop_net removed,   "
	if status != 200 || strings.Join(got, ", ") != want {
		t.Errorf("%d %q, want %q", status, strings.Join(got, ", "), want)
	}
}

// A network does not change: who asks for other settings is told which.
func TestNetworkDiffers(t *testing.T) {
	yes := true
	have := &model.Network{Driver: "overlay", Options: map[string]string{"a": "1"}, IPAM: []model.IPAMConfig{{Subnet: netip.MustParsePrefix("10.0.1.0/24")}}}
	for _, test := range []struct {
		want network.CreateRequest
		what string
	}{
		{network.CreateRequest{}, ""},
		{network.CreateRequest{Driver: "overlay", Options: map[string]string{"a": "1"}, IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("10.0.1.0/24")}}}}, ""},
		{network.CreateRequest{Driver: "macvlan", Attachable: true, Internal: true, EnableIPv6: &yes}, "driver, attachable, internal, enable_ipv6"},
		{network.CreateRequest{Options: map[string]string{"a": "2"}, IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("10.0.2.0/24")}}}}, "driver_opts, subnet"},
	} {
		if got := networkDiffers(have, &test.want); got != test.what {
			t.Errorf("%+v: %q, want %q", test.want, got, test.what)
		}
	}
}

// A rollback brings credentials for services that are made again.
func TestReadAuth(t *testing.T) {
	for body, want := range map[string]string{"": "", "{}": "", `{"Auth":{"r":"x"}}`: "x"} {
		auth, err := readAuth(httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)))
		if err != nil || auth["r"] != want {
			t.Errorf("%s: %v, %v", body, auth, err)
		}
	}
	if _, err := readAuth(httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{"))); model.KindOf(err) != model.Invalid {
		t.Errorf("half a body: %v", err)
	}
}
