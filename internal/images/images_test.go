package images_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	"github.com/skep-swarm/skep/internal/images"
	"github.com/skep-swarm/skep/internal/images/imagetest"
	"github.com/skep-swarm/skep/internal/runtime/containerd"
)

// store opens an image store in a directory of its own. uses is what the test says of containers.
func store(t *testing.T, uses *[]images.Use) *images.Store {
	t.Helper()
	return storeOf(t, uses, images.Config{})
}

// storeOf is store with settings.
func storeOf(t *testing.T, uses *[]images.Use, cfg images.Config) *images.Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("unpacking images needs root")
	}
	dir, err := os.MkdirTemp("/tmp", "sk")
	if err != nil {
		t.Fatal(err)
	}
	rt, err := containerd.New(containerd.Config{Root: filepath.Join(dir, "d"), State: filepath.Join(dir, "e"), Instance: "i" + filepath.Base(dir)[2:],
		Shim: "/none", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- rt.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	cfg.RetryDelay = 5 * time.Millisecond
	cfg.Open = rt.Client
	cfg.InUse = func(context.Context) ([]images.Use, error) {
		if uses == nil {
			return nil, nil
		}
		return *uses, nil
	}
	return images.New(cfg)
}

func small() []imagetest.File {
	return []imagetest.File{{Name: "hello", Mode: 0o644, Content: bytes.Repeat([]byte("hello\n"), 1000)}}
}

func load(t *testing.T, s *images.Store, archive []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := s.Load(t.Context(), bytes.NewReader(archive), &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestLoad(t *testing.T) {
	s := store(t, nil)
	config := imagetest.Config{Cmd: []string{"/hello"}, Labels: map[string]string{"k": "v"}, Volumes: map[string]struct{}{"/v": {}}}
	archive := imagetest.Archive(t, []string{"web:1", "registry.example:5000/a/web:2"}, small(), config)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(archive)
	_ = z.Close()
	const want = `{"stream":"Loaded image: web:1\n"}` + "\n" + `{"stream":"Loaded image: registry.example:5000/a/web:2\n"}` + "\n"
	for _, a := range [][]byte{packed.Bytes(), archive} {
		if got := load(t, s, a); got != want {
			t.Errorf("progress = %q, want %q", got, want)
		}
	}
	got, err := s.Inspect(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got.ID, "sha256:") || len(got.RepoTags) != 2 || len(got.RepoDigests) != 2 || got.Os != "linux" ||
		got.Architecture == "" || got.Size < 6000 || got.Created != "2024-01-02T03:04:05Z" || got.RootFS.Type != "layers" ||
		len(got.RootFS.Layers) != 1 || got.Config.Cmd[0] != "/hello" || got.Config.Labels["k"] != "v" {
		t.Errorf("Inspect = %+v", got)
	}
	list, err := s.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != got.ID || len(list[0].RepoTags) != 2 || list[0].Created != 1704164645 {
		t.Errorf("List = %+v, %v", list, err)
	}
	for _, name := range []string{"docker.io/library/web:1", "library/web:1", got.ID, got.ID[7:19], got.RepoDigests[1]} {
		r, err := s.Resolve(t.Context(), name)
		if err != nil || r.ID.String() != got.ID || r.Platform.OS != "linux" {
			t.Errorf("Resolve(%s) = %+v, %v", name, r, err)
		}
	}
	if r, err := s.Resolve(t.Context(), "web:1"); err != nil || r.Name != "docker.io/library/web:1" || r.Digest == "" || r.Digest == r.ID {
		t.Errorf("Resolve = %+v, %v", r, err)
	}
	_, err = s.Inspect(t.Context(), "web")
	if !errors.Is(err, errdefs.ErrNotFound) || !strings.HasPrefix(err.Error(), "No such image: web:latest") {
		t.Errorf("Inspect of another tag = %v", err)
	}
	if _, err := s.Inspect(t.Context(), "WEB!"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Inspect of no name = %v", err)
	}
}

func TestLoadNameless(t *testing.T) {
	s := store(t, nil)
	got := load(t, s, imagetest.Archive(t, nil, small(), imagetest.Config{}))
	if !strings.HasPrefix(got, `{"stream":"Loaded image ID: sha256:`) {
		t.Errorf("progress = %q", got)
	}
	list, err := s.List(t.Context())
	if err != nil || len(list) != 1 || len(list[0].RepoTags) != 0 {
		t.Fatalf("List = %+v, %v", list, err)
	}
	if err := s.Tag(t.Context(), list[0].ID[7:19], "named"); err != nil {
		t.Fatal(err)
	}
	list, err = s.List(t.Context())
	if err != nil || len(list) != 1 || len(list[0].RepoTags) != 1 || list[0].RepoTags[0] != "named:latest" {
		t.Errorf("List = %+v, %v", list, err)
	}
}

func TestLoadBad(t *testing.T) {
	s := store(t, nil)
	whole := imagetest.Archive(t, []string{"web:1"}, small(), imagetest.Config{})
	for name, archive := range map[string][]byte{
		"nothing": nil, "garbage": bytes.Repeat([]byte("garbage "), 1000), "cut": whole[:len(whole)/2], "broken gzip": {0x1f, 0x8b, 8, 0, 0, 0},
	} {
		var out bytes.Buffer
		err := s.Load(t.Context(), bytes.NewReader(archive), &out)
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
		if out.Len() > 0 {
			t.Errorf("%s: progress %q", name, out.String())
		}
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left over: %+v, %v", list, err)
	}
}

func TestTagMoves(t *testing.T) {
	s := store(t, nil)
	load(t, s, imagetest.Archive(t, []string{"a:1"}, small(), imagetest.Config{Cmd: []string{"a"}}))
	load(t, s, imagetest.Archive(t, []string{"b:1"}, small(), imagetest.Config{Cmd: []string{"b"}}))
	if err := s.Tag(t.Context(), "a:1", "b:1"); err != nil {
		t.Fatal(err)
	}
	got, err := s.Inspect(t.Context(), "b:1")
	if err != nil || got.Config.Cmd[0] != "a" {
		t.Errorf("Inspect = %+v, %v", got, err)
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("the image that lost its name is gone: %+v, %v", list, err)
	}
	for _, bad := range []string{"UP:1", "x@sha256:" + strings.Repeat("0", 64), ""} {
		if err := s.Tag(t.Context(), "a:1", bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Tag(%q) = %v", bad, err)
		}
	}
	if err := s.Tag(t.Context(), "none:1", "x"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Tag of nothing = %v", err)
	}
}

func TestRemove(t *testing.T) {
	var uses []images.Use
	s := store(t, &uses)
	load(t, s, imagetest.Archive(t, []string{"web:1", "web:2"}, small(), imagetest.Config{}))
	r, err := s.Resolve(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), r.ID.String(), false); !errors.Is(err, errdefs.ErrConflict) || !strings.Contains(err.Error(), "multiple repositories") {
		t.Errorf("Remove of two names by ID = %v", err)
	}
	got, err := s.Remove(t.Context(), "web:1", false)
	if err != nil || len(got) != 1 || got[0] != (image.DeleteResponse{Untagged: "web:1"}) {
		t.Errorf("Remove = %+v, %v", got, err)
	}
	uses = []images.Use{{Container: strings.Repeat("c", 64), Image: r.Digest, Running: true}}
	for _, force := range []bool{false, true} {
		_, err = s.Remove(t.Context(), "web:2", force)
		if !errors.Is(err, errdefs.ErrConflict) || !strings.Contains(err.Error(), "(cannot be forced) - image is being used by running container cccccccccccc") {
			t.Errorf("Remove of a used image = %v", err)
		}
	}
	uses[0].Running = false
	if _, err = s.Remove(t.Context(), "web:2", false); !errors.Is(err, errdefs.ErrConflict) || !strings.Contains(err.Error(), "must force") {
		t.Errorf("Remove of an image of a stopped container = %v", err)
	}
	uses[0].Image = digest.FromString("another")
	got, err = s.Remove(t.Context(), "web:2", false)
	if err != nil || len(got) != 2 || got[0].Untagged != "web:2" || got[1].Deleted != r.ID.String() {
		t.Errorf("Remove = %+v, %v", got, err)
	}
	if _, err := s.Remove(t.Context(), "web:2", false); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Remove again = %v", err)
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left over: %+v, %v", list, err)
	}
	// Its name and content are free for a new one at once.
	load(t, s, imagetest.Archive(t, []string{"web:2"}, small(), imagetest.Config{}))
}

// interrupted is an archive whose sender goes away.
type interrupted struct{ *bytes.Reader }

func (i interrupted) Read(p []byte) (int, error) {
	if i.Len() < 1000 {
		return 0, errors.New("connection reset")
	}
	return i.Reader.Read(p[:min(len(p), 500)])
}

func TestLoadInterrupted(t *testing.T) {
	s := store(t, nil)
	archive := imagetest.Archive(t, []string{"web:1"}, small(), imagetest.Config{})
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Load(ctx, interrupted{bytes.NewReader(archive)}, &out); err == nil || !strings.Contains(err.Error(), "connection reset") {
		t.Errorf("Load = %v", err)
	}
	load(t, s, archive)
}
