package durable

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel's way to cut a file system's power: ext4 and xfs forget at once what is not on the disk (linux/fs.h).
const (
	fsIocShutdown     = 0x8004587d
	shutdownWithNoLog = 2
)

// disk is an ext4 in a file, in this process's mount namespace.
type disk struct{ image, dir string }

func (d *disk) mount(t *testing.T) {
	t.Helper()
	// Without auto_da_alloc ext4 does no more than POSIX wants of it.
	out, err := exec.Command("mount", "-o", "loop,noauto_da_alloc", d.image, d.dir).CombinedOutput()
	if err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
}

// powerLoss drops what is in memory only, and shows what is found after the next boot.
func (d *disk) powerLoss(t *testing.T) {
	t.Helper()
	f, err := os.Open(d.dir)
	must(t, err)
	err = unix.IoctlSetPointerInt(int(f.Fd()), fsIocShutdown, shutdownWithNoLog)
	must(t, errors.Join(err, f.Close()))
	must(t, unix.Unmount(d.dir, 0))
	d.mount(t)
}

// TestPowerLoss cuts the power under a real file system.
func TestPowerLoss(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("there is no mkfs.ext4")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("there are no loop devices")
	}
	if os.Getenv("SKEP_DURABLE_MOUNTNS") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPowerLoss$", "-test.v", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), "SKEP_DURABLE_MOUNTNS=1")
		cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil || !bytes.Contains(out, []byte("--- PASS: TestPowerLoss")) {
			t.Fatalf("in the namespace: %v", err)
		}
		return
	}
	must(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	d := &disk{filepath.Join(t.TempDir(), "image"), t.TempDir()}
	must(t, os.WriteFile(d.image, nil, 0o600))
	must(t, os.Truncate(d.image, 16<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", d.image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	d.mount(t)
	defer unix.Unmount(d.dir, unix.MNT_DETACH)

	root := filepath.Join(d.dir, "data")
	dir := filepath.Join(root, "swarm", "certificates")
	path := filepath.Join(dir, "node.key")
	must(t, MkdirAll(dir, 0o700))
	d.powerLoss(t)
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("directories that were made: %v", err)
	}
	for _, content := range []string{"one", strings.Repeat("two", 10_000), "three"} {
		must(t, WriteFile(path, []byte(content), 0o640))
		d.powerLoss(t)
		holds(t, path, content, 0o640)
	}

	// The judge sees it when nothing waits for the disk.
	must(t, Replace(path, 0o640, func(w io.Writer) error { _, err := io.WriteString(w, "four"); return err }))
	must(t, os.Mkdir(filepath.Join(root, "volumes"), 0o700))
	d.powerLoss(t)
	holds(t, path, "three", 0o640)
	if _, err := os.Stat(filepath.Join(root, "volumes")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that nobody waited for survived a power loss: %v", err)
	}

	// A full disk is an error, and what was there stays.
	hog := filepath.Join(root, "hog")
	for _, size := range []int{1 << 20, 4 << 10, 1} { // to the last byte
		f, err := os.OpenFile(hog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		must(t, err)
		for err == nil {
			_, err = f.Write(make([]byte, size))
		}
		f.Close()
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := WriteFile(path, bytes.Repeat([]byte("x"), 64<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	holds(t, path, "three", 0o640)
	must(t, os.Remove(hog))
	must(t, WriteFile(path, []byte("four"), 0o600))
	holds(t, path, "four", 0o600)
}
