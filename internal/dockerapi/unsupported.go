package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// What Docker has and skep does not have yet is decided in this file only: a feature that is
// built deletes its rows here.

// laterRoutes answer 501 with their line. They are tried after all others.
var laterRoutes = []struct{ method, pattern, line string }{
	{http.MethodPut, "/volumes/{name}", "cluster volumes are not available yet"},
	{http.MethodGet, "/images/search", "searching for images is not available: look for them on their registry's site, and pull them by name"},
	{http.MethodPost, "/containers/create", `single containers are not available yet: use "docker service create"`},
	{http.MethodPost, "/containers/{id}/{action}", `acting on single containers is not available yet: use "docker service update" or "docker service scale"`},
	{http.MethodDelete, "/containers/{id}", `containers belong to tasks: use "docker service rm" or "docker service scale"`},
	{http.MethodGet, "/containers/{id}/{part}", "this view of a container is not available yet"},
	{http.MethodPost, "/build", "building images is not available here: build elsewhere and use \"docker image load\""},
	{http.MethodPost, "/build/cancel", "building images is not available here"},
	{http.MethodPost, "/session", "building images is not available here"},
	{http.MethodPost, "/grpc", "building images is not available here"},
	{http.MethodPost, "/commit", "making images from containers is not available yet"},
	{http.MethodPost, "/plugins/{name...}", "plugins are not available"},
	{http.MethodDelete, "/plugins/{name...}", "plugins are not available"},
}

// taskActions are refused of a task's container, whose life is the swarm's, with what to do instead.
var taskActions = map[string]string{
	"restart": "it runs once; docker stop ends it and the swarm starts another, docker service update --force starts a service anew",
	"rename":  "its name is the task's",
	"update":  "its limits are the service's; use docker service update --limit-cpu, --limit-memory or --limit-pids",
	"pause":   "the swarm would take it for dead; use docker service scale to stop it",
	"unpause": "it cannot have been paused",
}

// laterFeatures are parts of a service's spec. Each line says what to do instead, if anything.
var laterFeatures = []struct {
	uses func(*swarm.ServiceSpec) bool
	line string
}{
	{func(s *swarm.ServiceSpec) bool { return s.TaskTemplate.Runtime == swarm.RuntimePlugin }, "plugins are not available"},
	{func(s *swarm.ServiceSpec) bool {
		return hasMount(s, "cluster") || hasMount(s, "image") || hasMount(s, "npipe")
	}, "mounts of type cluster, image and npipe are not available yet: use bind, volume or tmpfs"},
	{func(s *swarm.ServiceSpec) bool {
		p := containerOf(s).Privileges
		return p != nil && p.CredentialSpec != nil
	}, "credential specs are for Windows and not available"},
}

// unsupportedFeature is why a spec cannot run yet; nil when it can.
func unsupportedFeature(spec *swarm.ServiceSpec) error {
	for _, f := range laterFeatures {
		if f.uses(spec) {
			return model.Errorf(unimplemented, "%s", f.line)
		}
	}
	return nil
}

// unsupportedSwarm is why a change of the swarm's spec cannot be made yet.
func unsupportedSwarm(old, spec *swarm.Spec) error {
	switch {
	case spec.EncryptionConfig.AutoLockManagers != old.EncryptionConfig.AutoLockManagers:
		return model.Errorf(unimplemented, "autolock is not available yet")
	case spec.CAConfig.ForceRotate != old.CAConfig.ForceRotate, spec.CAConfig.SigningCACert != "", spec.CAConfig.SigningCAKey != "":
		return model.Errorf(unimplemented, "rotating the certificate authority is not available yet")
	case len(spec.CAConfig.ExternalCAs) > 0:
		return model.Errorf(unimplemented, "external certificate authorities are not available yet")
	}
	return nil
}

// unsupportedNode is why a change of a node's spec cannot be made yet.
func unsupportedNode(old, spec *swarm.NodeSpec) error {
	if spec.Role != old.Role {
		return model.Errorf(unimplemented, "changing a node's role is not available yet")
	}
	return nil
}

func (s *Server) unsupportedRoutes(t routeTable) {
	for _, l := range laterRoutes {
		t.add(l.method, l.pattern, func(*request) error { return model.Errorf(unimplemented, "%s", l.line) })
	}
}

func hasMount(s *swarm.ServiceSpec, typ string) bool {
	for _, m := range containerOf(s).Mounts {
		if string(m.Type) == typ {
			return true
		}
	}
	return false
}

// containerOf is the container part of a spec, empty when it has none.
func containerOf(s *swarm.ServiceSpec) *swarm.ContainerSpec {
	if c := s.TaskTemplate.ContainerSpec; c != nil {
		return c
	}
	return &swarm.ContainerSpec{}
}
