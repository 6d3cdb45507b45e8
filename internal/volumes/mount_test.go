package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// privateMounts gives the test's thread mounts of its own, which go with the thread.
func privateMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Skipf("this test makes mounts: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
}

func mounted(t *testing.T, dir string) bool {
	t.Helper()
	list, err := mountsBelow(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(list) > 0
}

var tmpfs = map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=0700"}

// TestDevice: what the options say is mounted while somebody uses the volume, over a restart too.
func TestDevice(t *testing.T) {
	privateMounts(t)
	ctx, root := t.Context(), t.TempDir()
	s := New(root)
	v, err := s.Create(ctx, "mem", nil, tmpfs)
	if err != nil || mounted(t, v.Mountpoint) {
		t.Fatalf("Create mounted it (%v)", err)
	}
	for _, c := range []string{"one", "two", "two"} {
		if dir, err := s.Mount(ctx, c, "mem", nil, nil); err != nil || dir != v.Mountpoint {
			t.Fatalf("Mount = %s, %v", dir, err)
		}
	}
	if list, err := mountsBelow(root); err != nil || len(list) != 1 {
		t.Fatalf("mounts = %v, %v", list, err)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(ctx, "one", "mem"); err != nil || !mounted(t, root) {
		t.Errorf("unmounted while it is used (%v)", err)
	}
	if err := s.Remove(ctx, "mem"); !errors.Is(err, errdefs.ErrConflict) || err.Error() != "remove mem: volume is in use - [two]" {
		t.Errorf("Remove = %v", err)
	}

	// Another daemon finds the container alive.
	s = New(root)
	if _, err := s.Mount(ctx, "two", "mem", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(ctx); err != nil || !mounted(t, root) {
		t.Errorf("Sweep took what is used (%v)", err)
	}
	if _, err := os.Stat(filepath.Join(v.Mountpoint, "x")); err != nil {
		t.Errorf("its files are gone: %v", err)
	}
	// And yet another one finds none.
	s = New(root)
	if err := s.Sweep(ctx); err != nil || mounted(t, root) {
		t.Errorf("Sweep left it (%v)", err)
	}
	if got, err := s.Inspect(ctx, "mem"); err != nil || got.Options["o"] != tmpfs["o"] {
		t.Errorf("Inspect = %+v, %v", got, err)
	}
}

// TestRemoveSparesTheDevice: removing a volume does not touch the files of another file system that is mounted there.
func TestRemoveSparesTheDevice(t *testing.T) {
	privateMounts(t)
	ctx, root, other := t.Context(), t.TempDir(), t.TempDir()
	file := filepath.Join(other, "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(root)
	if _, err := s.Mount(ctx, "c", "bound", nil, map[string]string{"type": "none", "o": "bind", "device": other}); err != nil {
		t.Fatal(err)
	}
	s = New(root) // which knows of no user
	if err := s.Remove(ctx, "bound"); err != nil || mounted(t, root) {
		t.Errorf("Remove = %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("Remove deleted a file of the device: %v", err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestDeviceThatIsNot: the error names the device and not the options, and the volume can be removed.
func TestDeviceThatIsNot(t *testing.T) {
	privateMounts(t)
	s := New(t.TempDir())
	_, err := s.Mount(t.Context(), "c", "bad", nil, map[string]string{"type": "ext4", "device": "/nowhere", "o": "password=secret"})
	if err == nil || !strings.Contains(err.Error(), "failed to mount local volume: mount /nowhere:") || strings.Contains(err.Error(), "secret") {
		t.Errorf("Mount = %v", err)
	}
	if err := s.Remove(t.Context(), "bad"); err != nil {
		t.Error(err)
	}
}

func TestOptions(t *testing.T) {
	for _, test := range []struct{ options, want string }{
		{"", ""},
		{"type=tmpfs device=tmpfs o=size=1m", ""},
		{"type=nfs device=:/export o=addr=10.0.0.1,rw", ""},
		{"type=none o=bind device=/srv", ""},
		{"typ=tmpfs", `invalid option: "typ"`},
		{"size=1g", "quota size requested but no quota support"},
		{"device=/x", `missing required option: "type"`},
		{"type=nfs", `missing required option: "device"`},
		{"o=bind", `missing required option: "device"`},
		{"type=cifs device=//h:445/s", "port not allowed in CIFS device URL"},
	} {
		options := map[string]string{}
		for _, f := range strings.Fields(test.options) {
			k, v, _ := strings.Cut(f, "=")
			options[k] = v
		}
		err := CheckOptions(options)
		if test.want == "" && err != nil || test.want != "" && (!errors.Is(err, errdefs.ErrInvalidArgument) || !strings.HasPrefix(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.options, err, test.want)
		}
	}
}

func TestSize(t *testing.T) {
	s := New(t.TempDir())
	v, err := s.Create(t.Context(), "data", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "a"), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(v.Mountpoint, "a"), filepath.Join(v.Mountpoint, "b")); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Size(t.Context(), "data"); err != nil || n != 1000 {
		t.Errorf("Size = %d, %v", n, err)
	}
}
