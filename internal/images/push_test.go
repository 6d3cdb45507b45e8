package images_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"

	"github.com/skep-swarm/skep/internal/images"
	"github.com/skep-swarm/skep/internal/images/imagetest"
)

func TestPullTLS(t *testing.T) {
	reg := imagetest.NewRegistry()
	reg.Push(t, "library/web", "1", [][]imagetest.File{small()}, imagetest.Config{})
	srv := httptest.NewTLSServer(reg)
	defer srv.Close()
	certs := t.TempDir()
	s := storeOf(t, nil, images.Config{Registries: images.Registries{CertDirs: []string{certs}}})
	if _, err := s.Pull(t.Context(), srv.Listener.Addr().String()+"/library/web:1", registry.AuthConfig{}, nil); err != nil {
		t.Errorf("Pull from a loopback address by TLS: %v", err)
	}
	dir := filepath.Join(certs, srv.Listener.Addr().String())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), srv.Listener.Addr().String()+"/library/web:1", registry.AuthConfig{}, nil); err != nil {
		t.Errorf("Pull with a certificate of our own: %v", err)
	}

	// A mirror of the Hub is asked before the Hub.
	plain := served(t, reg)
	mirrors, err := images.ParseRegistries(nil, []string{"http://" + plain})
	if err != nil {
		t.Fatal(err)
	}
	m := storeOf(t, nil, images.Config{Registries: mirrors})
	if r, err := m.Pull(t.Context(), "web:1", registry.AuthConfig{}, nil); err != nil || r.Name != "docker.io/library/web:1" {
		t.Errorf("Pull by a mirror = %+v, %v", r, err)
	}
}

func TestParseRegistries(t *testing.T) {
	for _, bad := range [][2]string{{"http://a", ""}, {"", ""}, {"a/b", ""}, {"a", "mirror.example"}, {"a", "ftp://x"}, {"a", "https://u:p@x"}} {
		mirrors := []string{}
		if bad[1] != "" {
			mirrors = append(mirrors, bad[1])
		}
		if _, err := images.ParseRegistries([]string{bad[0]}, mirrors); err == nil {
			t.Errorf("ParseRegistries(%q) succeeded", bad)
		}
	}
	if _, err := images.ParseRegistries([]string{"a", "b:5000", "10.0.0.0/8", "[::1]:5000"}, []string{"https://m.example/path"}); err != nil {
		t.Error(err)
	}
	for addr, want := range map[string]string{"": "docker.io", "https://index.docker.io/v1/": "docker.io", "https://r.example:5000/v2/": "r.example:5000", "r.example": "r.example"} {
		if got := images.RegistryHost(addr); got != want {
			t.Errorf("RegistryHost(%q) = %q, want %q", addr, got, want)
		}
	}
}

func TestPush(t *testing.T) {
	s := store(t, nil)
	reg := imagetest.NewRegistry()
	reg.Require("ann", "right", true)
	host := served(t, reg)
	load(t, s, imagetest.Archive(t, []string{host + "/web:1"}, small(), imagetest.Config{}))
	var w told
	if _, err := s.Push(t.Context(), host+"/web:1", registry.AuthConfig{}, w.tell); err == nil || !strings.Contains(err.Error(), "push access denied for "+host+"/web") {
		t.Errorf("Push without credentials = %v", err)
	}
	if _, err := s.Push(t.Context(), host+"/web:2", registry.AuthConfig{}, w.tell); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Push of what is not here = %v", err)
	}
	auth := registry.AuthConfig{Username: "ann", Password: "right", ServerAddress: host}
	// What an attempt has sent is there when the next one comes; it is told as pushed all the same.
	reg.Break(imagetest.Fault{Match: "POST /v2/web/blobs/", Times: 3, Status: 503}, imagetest.Fault{Match: "PUT /v2/web/manifests/", Times: 2, Status: 503})
	w = told{}
	desc, err := s.Push(t.Context(), host+"/web:1", auth, w.tell)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"The push refers to repository [" + host + "/web]", "Pushed", "1: digest: " + desc.Digest.String()} {
		if !w.has(line) {
			t.Errorf("progress lacks %q:\n%s", line, strings.Join(w.lines, "\n"))
		}
	}
	if w.has("Layer already exists") {
		t.Errorf("what this push has sent is told as there before:\n%s", strings.Join(w.lines, "\n"))
	}
	w = told{}
	if _, err := s.Push(t.Context(), host+"/web:1", auth, w.tell); err != nil || !w.has("Layer already exists") && !w.has("Preparing") {
		t.Errorf("Push again = %v: %q", err, w.lines)
	}
	before, err := s.Resolve(t.Context(), host+"/web:1")
	if err != nil || before.Digest != desc.Digest {
		t.Errorf("the registry's digest %s is not the one here: %+v, %v", desc.Digest, before, err)
	}
	// What was pushed can be pulled by another node, and is the same.
	other := store(t, nil)
	if r, err := other.Pull(t.Context(), host+"/web:1", auth, nil); err != nil || r.ID != before.ID || r.Digest != before.Digest {
		t.Errorf("Pull of what was pushed = %+v, %v", r, err)
	}
	// And saved, loaded and pushed on.
	var tar bytes.Buffer
	if err := other.Save(t.Context(), []string{host + "/web:1"}, &tar); err != nil {
		t.Fatal(err)
	}
	if err := other.Save(t.Context(), []string{"none"}, &tar); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Save of nothing = %v", err)
	}
	third := store(t, nil)
	if got := load(t, third, tar.Bytes()); got != fmt.Sprintf(`{"stream":"Loaded image: %s/web:1\n"}`+"\n", host) {
		t.Errorf("Load of a saved image: %s", got)
	}
}

// TestPushOfIndex: only this platform's part was pulled, so it is what can be pushed.
func TestPushOfIndex(t *testing.T) {
	s := store(t, nil)
	reg := imagetest.NewRegistry()
	host := served(t, reg)
	reg.PushIndex(t, "web", "1", map[string][][]imagetest.File{runtime.GOARCH: {small()}, "s390x": {{{Name: "z", Mode: 0o644, Content: noise(7, 100)}}}})
	if _, err := s.Pull(t.Context(), host+"/web:1", registry.AuthConfig{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), host+"/web:1", host+"/copy:1"); err != nil {
		t.Fatal(err)
	}
	var w told
	desc, err := s.Push(t.Context(), host+"/copy:1", registry.AuthConfig{}, w.tell)
	if err != nil || !strings.Contains(desc.MediaType, "manifest.v1") {
		t.Fatalf("Push = %+v, %v", desc, err)
	}
	if got, err := s.InspectRemote(t.Context(), host+"/copy:1", registry.AuthConfig{}); err != nil || len(got.Platforms) != 1 || got.Platforms[0].Architecture != runtime.GOARCH {
		t.Errorf("InspectRemote = %+v, %v", got, err)
	}
}
