package dockerapi

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/skep-swarm/skep/internal/model"
)

func writeService(t *testing.T, s http.Handler, path, image, password string) *httptest.ResponseRecorder {
	t.Helper()
	body := `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"` + image + `"}}}`
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	if password != "" {
		header, err := authconfig.Encode(registry.AuthConfig{Username: "ann", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(registry.AuthHeader, header)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// TestServiceCredentials: they come with a request, stay when a request brings none, go back with a rollback, and are in no answer.
func TestServiceCredentials(t *testing.T) {
	s, f := newSwarm(t)
	f.registry = fakeRegistry{password: "first-pw", images: map[string]string{"docker.io/library/web:1": digestA, "docker.io/library/web:2": digestB}}
	service := func() *model.Service { return f.snap.ServiceByName("web") }
	update := func(query string) string {
		return "/services/web/update?version=" + strconv.FormatUint(service().SpecVersion, 10) + query
	}
	has := func(when, password, digest string) {
		t.Helper()
		svc := service()
		got := string([]byte(svc.Current().RegistryAuth))
		if password == "" && got != "" || !strings.Contains(got, password) || f.snap.Template(svc.Template).ImageDigest != digest {
			t.Errorf("%s: credentials %q, digest %q", when, got, f.snap.Template(svc.Template).ImageDigest)
		}
	}
	if w := writeService(t, s, "/services/create", "web:1", "first-pw"); w.Code != http.StatusCreated {
		t.Fatalf("create: %d %s", w.Code, w.Body)
	}
	has("created", "first-pw", digestA)
	writeService(t, s, update(""), "web:2", "")
	has("another image, no credentials", "first-pw", digestB)
	f.registry.password = "other-pw"
	writeService(t, s, update("&registryAuthFrom=spec"), "web:1", "other-pw")
	has("other credentials", "other-pw", digestA)
	writeService(t, s, update("&registryAuthFrom=previous-spec"), "web:2", "")
	has("those of before: the registry refuses them, and nobody else knows", "first-pw", "")
	call(s, http.MethodPost, update("&rollback=previous"), "")
	has("rolled back", "other-pw", digestA)
	if w := call(s, http.MethodPost, update("&registryAuthFrom=x"), "{}"); w.Code != http.StatusBadRequest {
		t.Errorf("registryAuthFrom=x: %d %s", w.Code, w.Body)
	}
	for _, path := range []string{"/services", "/services/web", "/tasks", "/events?until=2100-01-01T00:00:00Z"} {
		if w := call(s, http.MethodGet, path, ""); strings.Contains(w.Body.String(), "-pw") {
			t.Errorf("GET %s shows a password: %s", path, w.Body)
		}
	}
}
