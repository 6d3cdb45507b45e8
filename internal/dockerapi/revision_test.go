package dockerapi

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// change updates a service by its JSON and returns it as it is then.
func change(t *testing.T, s *Server, name string, edit func(*swarm.ServiceSpec), query ...string) swarm.Service {
	t.Helper()
	svc := fetch[swarm.Service](t, s, "/services/"+name)
	if edit != nil {
		edit(&svc.Spec)
	}
	body, err := json.Marshal(svc.Spec)
	if err != nil {
		t.Fatal(err)
	}
	target := "/services/" + name + "/update?version=" + svc.Version.String() + strings.Join(query, "")
	if w := call(s, "POST", target, string(body)); w.Code != 200 {
		t.Fatalf("update: %d %s", w.Code, w.Body)
	}
	return fetch[swarm.Service](t, s, "/services/"+name)
}

func setImage(image string) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = image }
}

func setReplicas(n uint64) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { s.Mode.Replicated.Replicas = &n }
}

// A rollout has a status from its first moment; a change that needs no rollout clears the old one,
// because clients that wait would take it for theirs; one during a rollout carries it on.
func TestUpdateStatus(t *testing.T) {
	s, f := newSwarm(t)
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	svc := change(t, s, "web", setImage("web:v2"))
	if u := svc.UpdateStatus; u == nil || u.State != swarm.UpdateStateCompleted || u.StartedAt == nil || u.CompletedAt == nil {
		t.Fatalf("after an update: %+v", u)
	}
	if svc = change(t, s, "web", setReplicas(2)); svc.UpdateStatus != nil {
		t.Errorf("scaling shows the status of the update before: %+v", svc.UpdateStatus)
	}
	f.manual = true // from here on nothing is rolled out
	if svc = change(t, s, "web", setImage("web:v3")); svc.UpdateStatus == nil || svc.UpdateStatus.State != swarm.UpdateStateUpdating {
		t.Errorf("an update begins as %+v", svc.UpdateStatus)
	}
	began := *svc.UpdateStatus.StartedAt
	if svc = change(t, s, "web", setReplicas(3)); svc.UpdateStatus == nil || svc.UpdateStatus.State != swarm.UpdateStateUpdating || *svc.UpdateStatus.StartedAt != began {
		t.Errorf("scaling during an update leaves it %+v", svc.UpdateStatus)
	}
	if svc = change(t, s, "web", nil, "&rollback=previous"); svc.UpdateStatus.State != swarm.UpdateStateRollbackStarted || svc.UpdateStatus.Message != "manually requested rollback" {
		t.Errorf("a rollback begins as %+v", svc.UpdateStatus)
	}
	if *svc.Spec.Mode.Replicated.Replicas != 2 || *svc.PreviousSpec.Mode.Replicated.Replicas != 3 {
		t.Errorf("a rollback swaps the specs: %d, %d", *svc.Spec.Mode.Replicated.Replicas, *svc.PreviousSpec.Mode.Replicated.Replicas)
	}
}

// Going back to a former image goes back to the former template: its tasks need no new one.
func TestTemplateReuse(t *testing.T) {
	s, f := newSwarm(t)
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	first := f.snap.ServiceByName("web").Template
	change(t, s, "web", setImage("web:v2"))
	second := f.snap.ServiceByName("web").Template
	change(t, s, "web", nil, "&rollback=previous")
	if now := f.snap.ServiceByName("web").Template; first == second || now != first {
		t.Errorf("templates %d, %d, %d", first, second, now)
	}
	change(t, s, "web", func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role==manager"}}
	})
	if now := f.snap.ServiceByName("web").Template; now != first {
		t.Error("a change of the placement made a template")
	}
	task := fetch[[]swarm.Task](t, s, "/tasks?"+filtersOf(map[string][]string{"desired-state": {"running"}}))[0]
	if task.Spec.Placement == nil || len(task.Spec.Placement.Constraints) != 1 {
		t.Errorf("a task does not show the placement in force: %+v", task.Spec.Placement)
	}
}

// A tag that moves restarts nothing when the service is only scaled; a forced update looks again.
func TestDigestStays(t *testing.T) {
	s, f := newSwarm(t)
	f.change(model.Change{PutImage: &model.Image{Name: "docker.io/library/web:v1", Digest: "sha256:old"}})
	create(t, s, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}}}`)
	digest := func() string { return f.snap.Template(f.snap.ServiceByName("web").Template).ImageDigest }
	f.change(model.Change{PutImage: &model.Image{Name: "docker.io/library/web:v1", Digest: "sha256:new"}})
	if change(t, s, "web", setReplicas(2)); digest() != "sha256:old" {
		t.Errorf("scaling moved the image to %s", digest())
	}
	if change(t, s, "web", func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ }); digest() != "sha256:new" {
		t.Errorf("a forced update stays at %s", digest())
	}
}

func TestKeepPorts(t *testing.T) {
	spec := &swarm.ServiceSpec{EndpointSpec: &swarm.EndpointSpec{Ports: []swarm.PortConfig{
		{Protocol: "tcp", TargetPort: 80, PublishMode: "ingress"}, {Protocol: "tcp", TargetPort: 80, PublishMode: "ingress"},
		{Protocol: "udp", TargetPort: 80, PublishMode: "ingress"}, {Protocol: "tcp", TargetPort: 90, PublishedPort: 9000, PublishMode: "ingress"},
	}}}
	svc := &model.Service{Ports: []swarm.PortConfig{
		{Protocol: "tcp", TargetPort: 80, PublishedPort: 30000, PublishMode: "ingress"}, {Protocol: "tcp", TargetPort: 80, PublishedPort: 30001, PublishMode: "ingress"},
		{Protocol: "tcp", TargetPort: 90, PublishedPort: 9001, PublishMode: "ingress"},
	}}
	var got []uint32
	for _, p := range keepPorts(svc, spec) {
		got = append(got, p.PublishedPort)
	}
	if want := []uint32{30000, 30001, 0, 9000}; !slices.Equal(got, want) {
		t.Errorf("ports %v, want %v", got, want)
	}
}

// A port that some node cannot hold is a warning, one that none can hold is refused.
func TestPortRefusals(t *testing.T) {
	s, f := newSwarm(t)
	f.taken[8080] = "in use by httpd (pid 5)"
	const body = `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}},"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8080}]}}`
	w := call(s, "POST", "/services/create", body)
	if w.Code != 400 || message(t, w) != "rpc error: code = InvalidArgument desc = port '8080' cannot be published on node node-a: in use by httpd (pid 5)" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	f.addNode("node-b", swarm.NodeRoleWorker, "10.0.0.2")
	w = call(s, "POST", "/services/create", body)
	var out swarm.ServiceCreateResponse
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != 201 || len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "node-a") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	// The service holds the port itself now: changing it asks nobody.
	if svc := change(t, s, "web", setReplicas(2)); *svc.Spec.Mode.Replicated.Replicas != 2 {
		t.Error("not scaled")
	}
}
