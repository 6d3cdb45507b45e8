package containerd

import (
	"errors"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	rt "github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/conformance"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// partOf mounts a path of the volume vol at /part.
func partOf(path string, readOnly bool) func(*rt.Spec) {
	return func(s *rt.Spec) {
		container(s).Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "vol", Target: "/part", ReadOnly: readOnly,
			VolumeOptions: &mount.VolumeOptions{NoCopy: true, Subpath: path}}}
	}
}

// volume makes the directory of the volume vol with some files, and one of the host beside it.
func (h *host) volume(t *testing.T) (dir, secret string) {
	t.Helper()
	dir, secret = filepath.Join(string(h.cfg.Volumes.(dirVolumes)), "vol"), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
	for name, text := range map[string]string{filepath.Join(dir, "sub", "f"): "part\n", filepath.Join(dir, "file"): "one file\n", filepath.Join(secret, "f"): "the host's\n"} {
		must(t, os.WriteFile(name, []byte(text), 0o644))
	}
	must(t, os.Symlink("sub", filepath.Join(dir, "inside")))
	must(t, os.Symlink(secret, filepath.Join(dir, "outside")))
	return dir, secret
}

func TestPart(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	h.volume(t)
	for _, test := range []struct {
		name, command string
		path          string
		readOnly      bool
		want          string
	}{
		{"directory", "cat /part/f; echo new >/part/g; cat /part/g", "sub", false, "part\nnew\n"},
		{"read-only", "touch /part/x 2>&1; cat /part/g", "sub/", true, "touch: /part/x: Read-only file system\nnew\n"},
		{"through a link", "cat /part/g", "./inside/../inside", false, "new\n"},
		{"file", "cat /part; echo more >>/part; cat /part", "file", false, "one file\none file\nmore\n"},
		{"file read-only", "(echo x >/part) 2>&1; cat /part", "file", true, "sh: can't create /part: Read-only file system\none file\nmore\n"},
		{"the whole", "ls /part", ".", false, "file\ninside\noutside\nsub\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := h.runToEnd(t, strings.ReplaceAll(test.name, " ", "-"), shell(test.command), partOf(test.path, test.readOnly))
			if got.output != test.want {
				t.Errorf("output = %q, want %q (exit %+v)", got.output, test.want, got.exit)
			}
		})
	}
	for path, want := range map[string]string{"outside": "cannot access path outside: a link on its way leads out of volume vol",
		"none/f": "cannot access path none/f: there is nothing of that name in volume vol", "file/f": "cannot access path file/f: it cannot be opened in volume vol: not a directory"} {
		spec := conformance.NewSpec("bad", shell("true"))
		partOf(path, false)(&spec)
		c, err := h.runtime.Controller(spec)
		must(t, err)
		if err := c.Prepare(t.Context()); rt.KindOf(err) != rt.KindMount || err.Error() != want {
			t.Errorf("Prepare = %v, want %s", err, want)
		}
	}
	if left, err := os.ReadDir(h.runtime.partDir()); err != nil || len(left) > 0 {
		t.Errorf("mount points left: %v, %v", left, err)
	}
}

// What was a directory when the container was made may be a link to the host's when it is started.
func TestPartExchangedBeforeStart(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	dir, secret := h.volume(t)
	for name, link := range map[string]string{"absolute": secret, "relative": "../../../../../../../../../../.." + secret, "kernel": "/proc/self/root" + secret} {
		spec := conformance.NewSpec(name, shell("cat /part/f"))
		partOf("sub", false)(&spec)
		c, err := h.runtime.Controller(spec)
		must(t, err)
		must(t, c.Prepare(t.Context()))
		must(t, os.Rename(filepath.Join(dir, "sub"), filepath.Join(dir, "was")))
		must(t, os.Symlink(link, filepath.Join(dir, "sub")))
		if _, err := c.Start(t.Context()); rt.KindOf(err) != rt.KindMount || !strings.Contains(err.Error(), "leads out of volume vol") {
			t.Errorf("%s: Start = %v", name, err)
		}
		must(t, os.Remove(filepath.Join(dir, "sub")))
		must(t, os.Rename(filepath.Join(dir, "was"), filepath.Join(dir, "sub")))
		if _, err := c.Start(t.Context()); err != nil {
			t.Errorf("%s: nor can it be started when it is a directory again: %v", name, err)
		}
		if exit, err := c.Wait(t.Context()); err != nil || exit.Code != 0 {
			t.Errorf("%s: %+v, %v", name, exit, err)
		}
	}
}

// What runc is told of is the place that was found, whatever comes to its name afterwards. What is mounted in it, by whom ever, is seen
// there too, and stays when the mount point goes, also where mounts and their ends are shared as systemd has it.
func TestPartIsHeld(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	dir, secret := h.volume(t)
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	defer func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	nested := filepath.Join(dir, "sub", "nested")
	must(t, os.MkdirAll(nested, 0o755))
	must(t, unix.Mount("tmpfs", nested, "tmpfs", 0, "size=1m"))
	must(t, os.WriteFile(filepath.Join(nested, "f"), []byte("nested\n"), 0o644))
	p := part{Volume: "vol", Dir: dir, Path: "sub/nested", At: h.runtime.partPoint("x", 0)}
	must(t, p.mount())
	must(t, os.Rename(filepath.Join(dir, "sub"), filepath.Join(dir, "moved")))
	must(t, os.Symlink(secret, filepath.Join(dir, "sub")))
	if b, err := os.ReadFile(filepath.Join(p.At, "f")); err != nil || string(b) != "nested\n" {
		t.Errorf("another place is mounted: %q, %v", b, err)
	}
	must(t, os.Remove(filepath.Join(dir, "sub")))
	must(t, os.Rename(filepath.Join(dir, "moved"), filepath.Join(dir, "sub")))
	got := h.runToEnd(t, "nested", shell("cat /part/nested/f"), partOf("sub", false))
	if got.output != "nested\n" {
		t.Errorf("output %q, exit %+v", got.output, got.exit)
	}

	// The daemon is killed before it unmounts the first one; there is a file's, too.
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("kept"), 0o644))
	for n, path := range []string{"sub", "file", "file"} {
		must(t, (&part{Volume: "vol", Dir: dir, Path: path, At: h.runtime.partPoint("y", n)}).mount())
	}
	h.halt(t)
	h.boot(t)
	if left, err := os.ReadDir(h.runtime.partDir()); err != nil || len(left) > 0 {
		t.Errorf("mount points left: %v, %v", left, err)
	}
	if found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(h.runtime.partDir())); err != nil || len(found) > 0 {
		t.Errorf("mounts left: %v, %v", found, err)
	}
	if mounted, err := mountinfo.Mounted(nested); err != nil || !mounted {
		t.Errorf("what was mounted in the volume is not any more (%v)", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "kept" {
		t.Errorf("the volume's file: %q, %v", b, err)
	}
}

// refuseCall has the kernel say to the calling thread that it does not know a system call.
func refuseCall(t *testing.T, number uint32) {
	t.Helper()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: number},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	must(t, unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0))
	goruntime.KeepAlive(filter)
}

// Linux 5.10 and 5.11 cannot make a mount private before it is mounted; what is mounted in the volume is safe there too.
func TestPartOnOldKernel(t *testing.T) {
	h := newHost(t)
	dir, _ := h.volume(t)
	goruntime.LockOSThread() // never unlocked: the thread ends with the test
	must(t, unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS))
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	nested := filepath.Join(dir, "sub", "nested")
	must(t, os.MkdirAll(nested, 0o755))
	must(t, unix.Mount("tmpfs", nested, "tmpfs", 0, "size=1m"))
	must(t, os.WriteFile(filepath.Join(nested, "f"), nil, 0o644))
	refuseCall(t, unix.SYS_MOUNT_SETATTR)
	p := part{Volume: "vol", Dir: dir, Path: "sub", At: filepath.Join(h.cfg.State, "parts", "x", "0")}
	must(t, p.mount())
	if entries, err := os.ReadDir(filepath.Join(p.At, "nested")); err != nil || len(entries) > 0 {
		t.Errorf("what is below is there: %v, %v", entries, err)
	}
	must(t, dropParts(filepath.Dir(p.At)))
	if _, err := os.Stat(filepath.Join(nested, "f")); err != nil {
		t.Errorf("what was mounted in the volume is not any more: %v", err)
	}
	must(t, errors.Join(unix.Unmount(nested, unix.MNT_DETACH), unix.Unmount(dir, unix.MNT_DETACH)))
}

// Who looks at the files of a container that ended sees its part, and no host's directory that the part's name leads to meanwhile.
func TestPartOfEnded(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	dir, secret := h.volume(t)
	spec := conformance.NewSpec("ended", shell("true"))
	partOf("sub", true)(&spec)
	c, err := h.runtime.Controller(spec)
	must(t, err)
	must(t, c.Prepare(t.Context()))
	look := func() (string, error) {
		root, release, err := c.Root(t.Context())
		must(t, err)
		defer release()
		fd, err := unix.Openat(int(root.Fd()), "part/new", unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
		if err == nil {
			_ = unix.Close(fd)
		}
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("a read-only part can be written to: %v", err)
		}
		f, err := unix.Openat(int(root.Fd()), "part/f", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(f)
		b, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(f))
		return string(b), err
	}
	_, err = c.Start(t.Context())
	must(t, err)
	_, err = c.Wait(t.Context())
	must(t, err)
	if text, err := look(); err != nil || text != "part\n" {
		t.Errorf("%q, %v", text, err)
	}
	must(t, os.RemoveAll(filepath.Join(dir, "sub")))
	must(t, os.Symlink(secret, filepath.Join(dir, "sub")))
	root, release, err := c.Root(t.Context())
	must(t, err)
	defer release()
	if fd, err := unix.Openat(int(root.Fd()), "part/f", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		_ = unix.Close(fd)
		t.Error("the host's file is seen")
	}
}
