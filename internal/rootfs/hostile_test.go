package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Opening a device may do something already, so that a container's list of users that is one is not opened.
func TestReadNoDevice(t *testing.T) {
	w := newWorld(t)
	w.must(os.Remove(filepath.Join(w.root, "etc/passwd")))
	if err := unix.Mknod(filepath.Join(w.root, "etc/passwd"), unix.S_IFCHR|0o666, int(unix.Mkdev(240, 77))); err != nil {
		t.Skip(err)
	}
	if _, err := w.r.ReadFile("/file", 100); !errors.Is(err, ErrInvalid) {
		t.Errorf("a device was opened: %v", err)
	}
}

// A few bytes of an archive can name a file that fills the disk. It ends when nobody waits any more, and leaves nothing.
func TestSparseArchive(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.r.Extract(ctx, "/data", bytes.NewReader(sparseArchive(t, 1<<50)), nil) }()
	for {
		if st, err := os.Stat(filepath.Join(w.root, "data/big")); err == nil && st.Size() > 0 {
			break
		}
		select {
		case err := <-done:
			t.Fatal("it ended by itself:", err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on when its client is gone")
	}
	if _, err := os.Lstat(filepath.Join(w.root, "data/big")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a file was left: %v", err)
	}
}

// sparseArchive is a tar archive with one file that is a hole, in GNU's format 1.0.
func sparseArchive(t *testing.T, size int64) []byte {
	t.Helper()
	var out bytes.Buffer
	body := append([]byte("0\n"), make([]byte, 510)...)
	record := func(k, v string) string {
		n := len(k) + len(v) + 3
		for len(fmt.Sprint(n))+len(k)+len(v)+3 != n {
			n = len(fmt.Sprint(n)) + len(k) + len(v) + 3
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "big") + record("GNU.sparse.realsize", fmt.Sprint(size))
	header := func(name string, typ byte, data []byte) {
		var h [512]byte
		copy(h[:], name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x00", len(data)))
		copy(h[136:], "00000000000\x00        ")
		h[156] = typ
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, b := range h {
			sum += int(b)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		out.Write(h[:])
		out.Write(data)
		out.Write(make([]byte, (512-len(data)%512)%512))
	}
	header("PaxHeaders/big", 'x', []byte(pax))
	header("GNUSparseFile.0/big", '0', body)
	out.Write(make([]byte, 1024))
	return out.Bytes()
}

// In an archive for a container a whiteout is a file like any other, and attributes by which overlayfs would hide files are not set.
func TestNothingIsHidden(t *testing.T) {
	w := newWorld(t)
	var files []tar.Header
	for _, name := range []string{"etc/.wh.passwd", "etc/.wh..wh..opq", ".wh.data", ".wh...", ".wh.."} {
		files = append(files, tar.Header{Name: name})
	}
	records := map[string]string{xattrPrefix + "trusted.overlay.opaque": "y", xattrPrefix + "trusted.overlay.redirect": "/etc", xattrPrefix + "user.kept": "no",
		xattrPrefix + "security.selinux": "x"}
	files = append(files, tar.Header{Name: "data", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: records}, tar.Header{Name: "data/f", PAXRecords: records})
	w.must(w.r.Extract(t.Context(), "/", archiveOf(t, files...), nil))
	if got := w.read("etc/passwd") + w.read("data/sub/a") + w.read("etc/.wh.passwd") + w.read(".wh..."); got != "web:x:33:44::/:/bin/sh\naaa" {
		t.Errorf("read %q", got)
	}
	for _, name := range []string{"data", "data/f"} {
		list := make([]byte, 1024)
		n, err := unix.Llistxattr(filepath.Join(w.root, name), list)
		w.must(err)
		if n > 0 {
			t.Errorf("%s has the attributes %q", name, list[:n])
		}
	}
	w.unharmed()
}
