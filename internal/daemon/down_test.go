package daemon

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A mount that was left below a directory of ours does not lose its files with it.
func TestRemoveUnmounted(t *testing.T) {
	dir, volume := filepath.Join(t.TempDir(), "containerd"), t.TempDir()
	point := filepath.Join(dir, "parts", "0")
	for _, d := range []string{point, filepath.Join(volume, "precious")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its mounts with it
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Skipf("this test makes mounts: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(volume, point, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := removeUnmounted(dir); err == nil || !strings.Contains(err.Error(), "mounted at "+point) {
		t.Errorf("removed with a mount in it: %v", err)
	}
	if _, err := os.Stat(filepath.Join(volume, "precious")); err != nil {
		t.Errorf("a file of what was mounted is gone: %v", err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := removeUnmounted(dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Error("it is left")
	}
}
