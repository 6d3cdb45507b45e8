package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestLife(t *testing.T) {
	ctx := t.Context()
	s := New(filepath.Join(t.TempDir(), "volumes"))
	if list, err := s.List(ctx); err != nil || len(list) != 0 {
		t.Fatalf("List of nothing = %v, %v", list, err)
	}
	v, err := s.Create(ctx, "db", map[string]string{"a": "b"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(v.Mountpoint, "/volumes/db/_data") {
		t.Errorf("mountpoint = %s", v.Mountpoint)
	}
	if info, err := os.Stat(v.Mountpoint); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mountpoint: %v, %v", info, err)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "x"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := New(s.root).Create(ctx, "db", map[string]string{"other": "label"}, nil)
	if err != nil || again.Labels["a"] != "b" || !again.CreatedAt.Equal(v.CreatedAt) {
		t.Errorf("Create again = %+v, %v; want %+v", again, err, v)
	}
	if _, err := s.Create(ctx, "aa", nil, nil); err != nil {
		t.Fatal(err)
	}
	list, err := s.List(ctx)
	if err != nil || len(list) != 2 || list[0].Name != "aa" || list[1].Name != "db" {
		t.Errorf("List = %+v, %v", list, err)
	}
	for range 2 {
		if err := s.Remove(ctx, "db"); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if _, err := s.Inspect(ctx, "db"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Inspect of a removed volume: %v", err)
	}
	if entries, err := os.ReadDir(s.root); err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}

func TestNames(t *testing.T) {
	s := New(t.TempDir())
	for _, bad := range []string{"", "a", "..", "../x", "a/b", "-ab", ".hidden", "a b", strings.Repeat("x", 256)} {
		if _, err := s.Create(t.Context(), bad, nil, nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Create(%q) = %v, want invalid", bad, err)
		}
		if err := s.Remove(t.Context(), bad); err != nil {
			t.Errorf("Remove(%q) = %v", bad, err)
		}
	}
	if _, err := s.Create(t.Context(), "a_b-c.d", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestBrokenMetadata(t *testing.T) {
	s := New(t.TempDir())
	v, err := s.Create(t.Context(), "db", map[string]string{"a": "b"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.root, "db", meta), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := s.Inspect(t.Context(), "db")
	if err != nil || got.Mountpoint != v.Mountpoint {
		t.Errorf("Inspect = %+v, %v", got, err)
	}
}

// A removal that was interrupted is ended by one of the next store, and none of them keeps the others from the store meanwhile.
func TestRemoveIsEndedLater(t *testing.T) {
	ctx := t.Context()
	s := New(t.TempDir())
	for _, name := range []string{"big", "other"} {
		if _, err := s.Create(ctx, name, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if trash, err := s.discard("big"); err != nil || len(trash) != 1 {
		t.Fatal(trash, err)
	}
	if _, err := s.Inspect(ctx, "big"); !errdefs.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := s.Create(ctx, "big", nil, nil); err != nil {
		t.Errorf("its name is taken: %v", err)
	}
	s = New(s.root)
	if err := s.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.root); err != nil || len(left) != 1 || left[0].Name() != "big" {
		t.Errorf("left: %v, %v", left, err)
	}
}

// What the kernel would refuse when a task starts is refused when the volume is made.
func TestZeroBytes(t *testing.T) {
	for _, option := range []string{"type", "device", "o"} {
		options := map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
		options[option] += "\x00x"
		if _, err := New(t.TempDir()).Create(t.Context(), "v0", nil, options); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a zero byte in %s: %v", option, err)
		}
	}
}
