package containerd

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A volume that is filled stays the same directory: who has it mounted already goes on working in it.
func TestCopyWholeKeepsTheDirectory(t *testing.T) {
	at := t.TempDir()
	source, dir := filepath.Join(at, "image"), filepath.Join(at, "_data")
	for _, d := range []string{filepath.Join(source, "sub"), dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(source, "sub", "page"), []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(source, 0o1777); err != nil {
		t.Fatal(err)
	}
	mounted, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer mounted.Close()
	if err := copyWhole(dir, source); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("the directory has not the image's mode: %v, %v", info.Mode(), err)
	}
	fd, err := unix.Openat(int(mounted.Fd()), "sub/new", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatalf("who has the directory open cannot work in it any more: %v", err)
	}
	_ = unix.Close(fd)
	for _, name := range []string{"sub/page", "sub/new"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(at, ".fill-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Who wrote to a volume first keeps what is there.
func TestCopyWholeKeepsFiles(t *testing.T) {
	at := t.TempDir()
	source, dir := filepath.Join(at, "image"), filepath.Join(at, "_data")
	for _, d := range []string{source, dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{filepath.Join(source, "page"): "image", filepath.Join(dir, "page"): "mine"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := copyWhole(dir, source); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "page")); err != nil || string(got) != "mine" {
		t.Errorf("%q, %v", got, err)
	}
}
