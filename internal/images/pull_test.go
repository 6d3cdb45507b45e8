package images_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"

	"github.com/skep-swarm/skep/internal/images"
	"github.com/skep-swarm/skep/internal/images/imagetest"
)

// served serves a registry on a loopback address, and returns host:port.
func served(t *testing.T, r *imagetest.Registry) string {
	t.Helper()
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// noise is content that does not compress.
func noise(seed uint64, n int) []byte {
	src := rand.NewChaCha8([32]byte{byte(seed)})
	out := make([]byte, n)
	_, _ = src.Read(out)
	return out
}

// twoLayers is an image whose layers are of some size.
func twoLayers(n int) [][]imagetest.File {
	return [][]imagetest.File{
		{{Name: "one", Mode: 0o644, Content: noise(1, n)}},
		{{Name: "two", Mode: 0o644, Content: noise(2, n)}},
	}
}

type told struct{ lines []string }

func (w *told) tell(p images.Progress) {
	line := strings.TrimSpace(p.ID + " " + p.Status)
	if len(w.lines) == 0 || w.lines[len(w.lines)-1] != line {
		w.lines = append(w.lines, line)
	}
}

func (w *told) has(text string) bool { return strings.Contains(strings.Join(w.lines, "\n"), text) }

func TestPull(t *testing.T) {
	s := store(t, nil)
	reg := imagetest.NewRegistry()
	host := served(t, reg)
	desc := reg.Push(t, "team/web", "1", twoLayers(50_000), imagetest.Config{Cmd: []string{"/two"}})
	var w told
	r, err := s.Pull(t.Context(), host+"/team/web:1", registry.AuthConfig{}, w.tell)
	if err != nil {
		t.Fatal(err)
	}
	if r.Name != host+"/team/web:1" || r.Digest != desc.Digest || r.Config.Cmd[0] != "/two" {
		t.Errorf("Pull = %+v", r)
	}
	for _, line := range []string{"1 Pulling from team/web", "Pull complete", "Digest: " + desc.Digest.String(), "Status: Downloaded newer image for " + host + "/team/web:1"} {
		if !w.has(line) {
			t.Errorf("progress lacks %q:\n%s", line, strings.Join(w.lines, "\n"))
		}
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 1 || len(list[0].RepoTags) != 1 || list[0].Size < 100_000 {
		t.Errorf("List = %+v, %v", list, err)
	}

	// Again nothing is fetched but the answer to what the name means.
	before := len(reg.Requests("GET "))
	w = told{}
	if _, err := s.Pull(t.Context(), host+"/team/web:1", registry.AuthConfig{}, w.tell); err != nil || !w.has("Status: Image is up to date") {
		t.Errorf("Pull again = %v: %q", err, w.lines)
	}
	if n := len(reg.Requests("GET ")); n != before {
		t.Errorf("%d requests for what is here", n-before)
	}

	// The tag moves: the old image stays, without a name.
	moved := reg.Push(t, "team/web", "1", [][]imagetest.File{twoLayers(50_000)[0], small()}, imagetest.Config{})
	w = told{}
	if r, err = s.Pull(t.Context(), host+"/team/web:1", registry.AuthConfig{}, w.tell); err != nil || r.Digest != moved.Digest {
		t.Errorf("Pull of a moved tag = %+v, %v", r, err)
	}
	if !w.has("Already exists") {
		t.Errorf("the common layer was fetched again:\n%s", strings.Join(w.lines, "\n"))
	}
	if old, err := s.Resolve(t.Context(), host+"/team/web@"+desc.Digest.String()); err == nil {
		t.Errorf("the old image still has a name: %+v", old)
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("List = %+v, %v", list, err)
	}
}

func TestPullByDigest(t *testing.T) {
	s := store(t, nil)
	reg := imagetest.NewRegistry()
	host := served(t, reg)
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	desc := reg.PushIndex(t, "web", "1", map[string][][]imagetest.File{
		runtime.GOARCH: {small()}, other: {{{Name: "foreign", Mode: 0o644, Content: noise(9, 1000)}}}, "s390x": {{{Name: "z", Mode: 0o644}}},
	})
	name := host + "/web:1@" + desc.Digest.String()
	r, err := s.Pull(t.Context(), name, registry.AuthConfig{}, nil)
	if err != nil || r.Digest != desc.Digest || r.Platform.Architecture != runtime.GOARCH {
		t.Fatalf("Pull = %+v, %v", r, err)
	}
	if n := len(reg.Requests("/blobs/sha256:")); n != 2 {
		t.Errorf("%d blobs were fetched, want a configuration and a layer: %q", n, reg.Requests("/blobs/"))
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 1 || len(list[0].RepoTags) != 0 || list[0].RepoDigests[0] != host+"/web@"+desc.Digest.String() {
		t.Errorf("List = %+v, %v", list, err)
	}
	// A task's image that is here under its digest is used whatever its tag, without a registry.
	before := len(reg.Requests(""))
	if err := s.Ensure(t.Context(), host+"/web:2", desc.Digest.String(), nil); err != nil {
		t.Error(err)
	}
	if err := s.Ensure(t.Context(), name, "", nil); err != nil {
		t.Error(err)
	}
	if n := len(reg.Requests("")); n != before {
		t.Errorf("Ensure asked the registry %d times", n-before)
	}

	got, err := s.InspectRemote(t.Context(), host+"/web:1", registry.AuthConfig{})
	if err != nil || got.Descriptor.Digest != desc.Digest || got.Descriptor.Size != desc.Size || len(got.Platforms) != 3 {
		t.Errorf("InspectRemote = %+v, %v", got, err)
	}
	foreign := reg.PushIndex(t, "foreign", "1", map[string][][]imagetest.File{"s390x": {small()}})
	_, err = s.Pull(t.Context(), host+"/foreign:1", registry.AuthConfig{}, nil)
	if !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), "no matching manifest for linux/") {
		t.Errorf("Pull for another platform = %v", err)
	}
	if _, err := s.Resolve(t.Context(), host+"/foreign@"+foreign.Digest.String()); err == nil {
		t.Error("an image for another platform got a name")
	}
}

func TestPullErrors(t *testing.T) {
	s := store(t, nil)
	open, locked, sells := imagetest.NewRegistry(), imagetest.NewRegistry(), imagetest.NewRegistry()
	locked.Require("ann", "right", false)
	sells.Require("ann", "right", true)
	var hosts [3]string
	for i, r := range []*imagetest.Registry{open, locked, sells} {
		r.Push(t, "web", "1", [][]imagetest.File{small()}, imagetest.Config{})
		hosts[i] = served(t, r)
	}
	const nobody = "127.0.0.1:1" // no test is given this port
	right, wrong := registry.AuthConfig{Username: "ann", Password: "right"}, registry.AuthConfig{Username: "ann", Password: "wrong"}
	elsewhere := right
	elsewhere.ServerAddress = "registry.example"
	for _, tt := range []struct {
		name  string
		image string
		auth  registry.AuthConfig
		kind  error
		text  string
	}{
		{"no such tag", hosts[0] + "/web:2", right, errdefs.ErrNotFound, "manifest for " + hosts[0] + "/web:2 not found: manifest unknown"},
		{"no such repository", hosts[0] + "/none", right, errdefs.ErrNotFound, "manifest for " + hosts[0] + "/none:latest not found"},
		{"basic, none", hosts[1] + "/web:1", registry.AuthConfig{}, errdefs.ErrNotFound,
			"pull access denied for " + hosts[1] + "/web, repository does not exist or may require 'docker login': no basic auth credentials"},
		{"basic, wrong", hosts[1] + "/web:1", wrong, errdefs.ErrNotFound, "unauthorized: authentication required"},
		{"basic, for another", hosts[1] + "/web:1", elsewhere, errdefs.ErrNotFound, "no basic auth credentials"},
		{"basic, right", hosts[1] + "/web:1", right, nil, ""},
		{"token, none", hosts[2] + "/web:1", registry.AuthConfig{}, errdefs.ErrNotFound, "pull access denied for " + hosts[2] + "/web"},
		{"token, wrong", hosts[2] + "/web:1", wrong, errdefs.ErrNotFound, "unauthorized: authentication required"},
		{"token, right", hosts[2] + "/web:1", right, nil, ""},
		{"nobody there", nobody + "/web:1", right, errdefs.ErrUnavailable, "connection refused"},
		{"no name", "web:no tag", right, errdefs.ErrInvalidArgument, "invalid reference format"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s.Pull(t.Context(), tt.image, tt.auth, nil)
			if !errors.Is(err, tt.kind) || tt.kind != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Pull = %v, want %q", err, tt.text)
			}
			if err != nil && (strings.Contains(err.Error(), "right") || strings.Contains(err.Error(), "wrong")) {
				t.Errorf("the password is in the error: %v", err)
			}
		})
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("List = %+v, %v", list, err)
	}
	for i, h := range hosts {
		for _, auth := range []registry.AuthConfig{right, wrong} {
			auth.ServerAddress = h
			err := s.Login(t.Context(), auth)
			if want := i == 0 || auth.Password == "right"; want != (err == nil) || err != nil && !errors.Is(err, errdefs.ErrUnauthenticated) {
				t.Errorf("Login to %d as %s = %v", i, auth.Password, err)
			}
		}
	}
	if err := s.Login(t.Context(), registry.AuthConfig{ServerAddress: nobody}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Login where nobody is = %v", err)
	}
}

// TestPullResumes: what a registry broke off is fetched from where it broke, and a name stands for nothing meanwhile.
func TestPullResumes(t *testing.T) {
	s := store(t, nil)
	reg := imagetest.NewRegistry()
	host := served(t, reg)
	reg.Push(t, "web", "1", [][]imagetest.File{{{Name: "big", Mode: 0o644, Content: noise(3, 4<<20)}}}, imagetest.Config{})
	reg.Break(imagetest.Fault{Match: "GET /v2/web/blobs/", Times: 1}, imagetest.Fault{Match: "GET /v2/web/blobs/", Times: 2, Drop: 1 << 20})
	if _, err := s.Pull(t.Context(), host+"/web:1", registry.AuthConfig{}, nil); err != nil {
		t.Fatalf("Pull with two breaks: %v", err)
	}
	ranges := reg.Requests("bytes=")
	if len(ranges) == 0 {
		t.Errorf("nothing was resumed: %q", reg.Requests(""))
	}

	// A registry that is down for longer: the pull gives up, and the next one goes on.
	reg.Push(t, "web", "2", [][]imagetest.File{{{Name: "big", Mode: 0o644, Content: noise(4, 4<<20)}}}, imagetest.Config{})
	reg.Break(imagetest.Fault{Match: "GET /v2/web/blobs/", Times: 1}, imagetest.Fault{Match: "GET /v2/web/blobs/", Times: 1, Drop: 2 << 20},
		imagetest.Fault{Match: "GET /v2/web/blobs/", Times: -1, Status: 503})
	_, err := s.Pull(t.Context(), host+"/web:2", registry.AuthConfig{}, nil)
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "503 Service Unavailable") {
		t.Errorf("Pull from a broken registry = %v", err)
	}
	if _, err := s.Resolve(t.Context(), host+"/web:2"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("half an image has a name: %v", err)
	}
	reg.Break()
	before := len(reg.Requests("bytes="))
	if _, err := s.Pull(t.Context(), host+"/web:2", registry.AuthConfig{}, nil); err != nil {
		t.Error(err)
	}
	if len(reg.Requests("bytes=")) == before {
		t.Errorf("the next pull began anew: %q", reg.Requests(""))
	}
}

func TestPullDamaged(t *testing.T) {
	s := store(t, nil)
	reg := imagetest.NewRegistry()
	host := served(t, reg)
	desc := reg.Push(t, "web", "1", [][]imagetest.File{{{Name: "big", Mode: 0o644, Content: noise(5, 100_000)}}}, imagetest.Config{})
	for _, tt := range []struct {
		name, text string
		fault      imagetest.Fault
	}{
		{"another manifest", "manifest " + desc.Digest.Encoded()[:12], imagetest.Fault{Match: "GET /v2/web/manifests/", Times: -1, Flip: true}},
		{"truncated", "is cut short: the registry sent 5000 of ", imagetest.Fault{Match: "GET /v2/web/blobs/", Times: -1, Cut: 5000}},
		{"another content", "filesystem layer verification failed for digest sha256:", imagetest.Fault{Match: "GET /v2/web/blobs/", Times: -1, Flip: true}},
		{"missing blob", "is missing in the registry", imagetest.Fault{Match: "GET /v2/web/blobs/", Times: -1, Status: 404}},
		{"too many requests", "toomanyrequests", imagetest.Fault{Match: "/v2/web/", Times: -1, Status: 429}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg.Break(tt.fault)
			_, err := s.Pull(t.Context(), host+"/web:1", registry.AuthConfig{}, nil)
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Pull = %v, want %q", err, tt.text)
			}
			if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("something is left: %+v, %v", list, err)
			}
		})
	}
	reg.Break()
	if _, err := s.Pull(t.Context(), host+"/web:1", registry.AuthConfig{}, nil); err != nil {
		t.Errorf("Pull when all is well again: %v", err)
	}
}

// TestPullShared: many who want an image cause one pull; those who give up do not end it for the others, the last one does.
func TestPullShared(t *testing.T) {
	s := store(t, nil)
	reg := imagetest.NewRegistry()
	host := served(t, reg)
	desc := reg.Push(t, "web", "1", [][]imagetest.File{small()}, imagetest.Config{})
	gate := make(chan struct{})
	reg.Break(imagetest.Fault{Match: "GET /v2/web/manifests/", Times: -1, Wait: gate})
	var wg sync.WaitGroup
	errs := make([]error, 20)
	gaveUp := make(chan struct{}) // the first
	for i := range errs {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if i == 0 {
			ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
		}
		wg.Go(func() {
			errs[i] = s.Ensure(ctx, host+"/web:1", desc.Digest.String(), nil)
			if i == 0 {
				close(gaveUp)
			}
		})
	}
	for until := time.Now().Add(10 * time.Second); len(reg.Requests("HEAD /v2/web/manifests/")) == 0 && time.Now().Before(until); {
		time.Sleep(5 * time.Millisecond)
	}
	<-gaveUp
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until) && s.Waiting() != len(errs)-1; {
		time.Sleep(5 * time.Millisecond)
	}
	close(gate)
	wg.Wait()
	for i, err := range errs {
		if (i == 0) != errors.Is(err, context.DeadlineExceeded) || i > 0 && err != nil {
			t.Errorf("waiter %d: %v", i, err)
		}
	}
	if n := len(reg.Requests("GET /v2/web/manifests/")); n != 1 {
		t.Errorf("the manifest was fetched %d times", n)
	}

	reg.Push(t, "web", "2", [][]imagetest.File{small()}, imagetest.Config{Cmd: []string{"2"}})
	reg.Break(imagetest.Fault{Match: "GET /v2/web/manifests/", Times: -1, Wait: make(chan struct{})})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Pull(ctx, host+"/web:2", registry.AuthConfig{}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Pull = %v", err)
	}
	if n := s.Waiting(); n != 0 {
		t.Errorf("%d still wait", n)
	}
}

func TestPullStalled(t *testing.T) {
	reg := imagetest.NewRegistry()
	s := storeOf(t, nil, images.Config{Registries: images.Registries{Stall: 100 * time.Millisecond}})
	reg.Push(t, "web", "1", [][]imagetest.File{{{Name: "big", Mode: 0o644, Content: noise(5, 200_000)}}}, imagetest.Config{})
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/blobs/") && req.Method == http.MethodGet {
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write([]byte("begin"))
			_ = http.NewResponseController(w).Flush()
			<-req.Context().Done()
			return
		}
		reg.ServeHTTP(w, req)
	}))
	defer silent.Close()
	_, err := s.Pull(t.Context(), silent.Listener.Addr().String()+"/web:1", registry.AuthConfig{}, nil)
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "the registry sent nothing for 100ms") {
		t.Errorf("Pull from a silent registry = %v", err)
	}
}
