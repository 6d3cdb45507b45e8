package vault

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// isolated gives the test a mount namespace of its own, which ends with its thread.
func isolated(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	runtime.LockOSThread() // for good: the thread must not serve others
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skip("no mount namespace: ", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
}

const id = "0123456789abcdef"

// mounts are the options of what is mounted at a path.
func mounts(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/mountinfo", unix.Gettid()))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[4] == path {
			out = append(out, f[5]+" "+f[len(f)-1])
		}
	}
	return out
}

func TestFilesOfAContainer(t *testing.T) {
	isolated(t)
	s := New(filepath.Join(t.TempDir(), "secrets"))
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Fatalf("at first: %v %v", list, err)
	}
	files := []File{{UID: 7, GID: 8, Mode: 0o440, Data: []byte("one")}, {Mode: 0o444, Data: bytes.Repeat([]byte("x"), 500_000)}, {Mode: 0o400}}
	if _, ok, err := s.Find(id, len(files)); ok || err != nil {
		t.Fatalf("found before they were put: %v", err)
	}
	paths, err := s.Put(id, files)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range paths {
		var st unix.Stat_t
		data, err := os.ReadFile(p)
		if err = errors.Join(err, unix.Stat(p, &st)); err != nil || !bytes.Equal(data, files[i].Data) || int(st.Uid) != files[i].UID || int(st.Gid) != files[i].GID || st.Mode&0o7777 != uint32(files[i].Mode) {
			t.Errorf("file %d: %d bytes of %d:%d, mode %o, error %v", i, len(data), st.Uid, st.Gid, st.Mode, err)
		}
		if err := os.WriteFile(p, []byte("other"), 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("file %d can be written: %v", i, err)
		}
	}
	dir := filepath.Dir(paths[0])
	m := mounts(t, dir)
	if len(m) != 1 || !strings.Contains(m[0], "nosuid,nodev,noexec") || !strings.Contains(m[0], "ro") || !strings.Contains(m[0], "size=") {
		t.Errorf("mounted: %q", m)
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if st, err := os.Stat(d); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", d, st.Mode(), err)
		}
	}
	// Another Store, as of the next daemon, finds them, and what it puts changes nothing.
	s = New(s.dir)
	found, ok, err := s.Find(id, len(files))
	if err != nil || !ok || !slices.Equal(found, paths) {
		t.Errorf("found again: %v %v %v", found, ok, err)
	}
	if again, err := s.Put(id, []File{{}, {}, {}}); err != nil || !slices.Equal(again, paths) || len(mounts(t, dir)) != 1 {
		t.Errorf("put again: %v %v", again, err)
	}
	if list, err := s.List(); err != nil || !slices.Equal(list, []string{id}) {
		t.Errorf("list: %v %v", list, err)
	}
	for range 2 {
		if err := s.Remove(id); err != nil {
			t.Error(err)
		}
	}
	if m := mounts(t, dir); len(m) != 0 {
		t.Errorf("still mounted: %q", m)
	}
	if err := s.Clear(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.dir); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
}

func TestHalfMadeFilesAreMadeAnew(t *testing.T) {
	isolated(t)
	s := New(t.TempDir())
	dir := filepath.Join(s.dir, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// A daemon was killed between the files, twice.
	for range 2 {
		if err := unix.Mount("tmpfs", dir, "tmpfs", mountFlags, "size=64k"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "0"), []byte("hal"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok, err := s.Find(id, 1); ok || err != nil {
		t.Fatalf("half made files were found: %v", err)
	}
	paths, err := s.Put(id, []File{{Mode: 0o444, Data: []byte("whole")}})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(paths[0]); string(data) != "whole" || len(mounts(t, dir)) != 1 {
		t.Errorf("made anew: %q %v, mounted %q", data, err, mounts(t, dir))
	}
	if _, ok, _ := s.Find(id, 2); ok {
		t.Error("another number of files was found")
	}
	if err := s.Clear(); err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeMadeLeavesNothing(t *testing.T) {
	isolated(t)
	s := New(t.TempDir())
	for _, bad := range []string{"", "../x", "a/b", strings.Repeat("a", 65)} {
		if _, err := s.Put(bad, nil); err == nil || !strings.Contains(err.Error(), "not the ID of a container") {
			t.Errorf("ID %q: %v", bad, err)
		}
		if err := s.Remove(bad); err == nil {
			t.Errorf("ID %q was removed", bad)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(file).Put(id, []File{{}}); err == nil {
		t.Error("files below a file")
	}
	if err := s.Clear(); err != nil {
		t.Error(err)
	}
}
