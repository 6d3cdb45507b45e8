package volumes

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// source is what an image has at a volume's place.
func source(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	must(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "sub", "page"), []byte("image"), 0o640))
	must(t, os.Chown(filepath.Join(dir, "sub", "page"), 7, 8))
	must(t, unix.Chmod(dir, 0o1777))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A volume that is filled stays the same directory: who has it mounted already goes on working in it.
func TestFillKeepsTheDirectory(t *testing.T) {
	ctx, s := t.Context(), New(t.TempDir())
	dir, err := s.Mount(ctx, "c", "data", nil, nil)
	must(t, err)
	mounted, err := os.Open(dir)
	must(t, err)
	defer mounted.Close()
	must(t, s.Fill(ctx, "data", source(t)))
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
	if left, err := filepath.Glob(filepath.Join(s.root, "data", filling+"*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Who wrote to a volume first keeps what is there.
func TestFillKeepsFiles(t *testing.T) {
	ctx, s := t.Context(), New(t.TempDir())
	dir, err := s.Mount(ctx, "c", "data", nil, nil)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "page"), []byte("mine"), 0o600))
	must(t, s.Fill(ctx, "data", source(t)))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// What a daemon that was killed in a fill has left goes when the next one starts, and only that.
func TestSweepRemovesFills(t *testing.T) {
	ctx, s := t.Context(), New(t.TempDir())
	dir, err := s.Mount(ctx, "c", "data", nil, nil)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(s.root, "data", filling+"1", "half"), 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, filling+"of-a-user"), 0o755))
	must(t, os.Chmod(s.root, 0o711))
	s = New(s.root)
	must(t, s.Sweep(ctx))
	if entries, err := os.ReadDir(filepath.Join(s.root, "data")); err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v; want the directory and its description", entries, err)
	}
	if _, err := os.Stat(filepath.Join(dir, filling+"of-a-user")); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(s.root); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("others may come to what containers wrote: %v, %v", info, err)
	}
	must(t, New(filepath.Join(t.TempDir(), "none")).Sweep(ctx))
}

// A volume with a device is filled in the sight of its users, one of whom made a link out of a directory that had just been made.
func TestFillDevice(t *testing.T) {
	inNamespace(t, func(ctx context.Context, t *testing.T) {
		s, image, host := New(t.TempDir()), source(t), t.TempDir()
		must(t, os.Symlink("/etc/passwd", filepath.Join(image, "link")))
		must(t, os.Link(filepath.Join(image, "sub", "page"), filepath.Join(image, "same")))
		must(t, unix.Setxattr(filepath.Join(image, "sub"), "trusted.kept", []byte("yes"), 0))
		dir, err := s.Mount(ctx, "c", "mem", nil, tmpfs)
		must(t, err)
		must(t, s.Fill(ctx, "mem", image))
		if b, err := os.ReadFile(filepath.Join(dir, "sub", "page")); err != nil || string(b) != "image" {
			t.Errorf("%q, %v", b, err)
		}
		var top, page, same unix.Stat_t
		must(t, errors.Join(unix.Stat(dir, &top), unix.Stat(filepath.Join(dir, "sub", "page"), &page), unix.Stat(filepath.Join(dir, "same"), &same)))
		if top.Mode != unix.S_IFDIR|0o1777 || page.Mode != unix.S_IFREG|0o640 || page.Uid != 7 || page.Gid != 8 || page.Ino != same.Ino {
			t.Errorf("the directory has mode %o; the file %o of %d:%d, inode %d and %d", top.Mode, page.Mode, page.Uid, page.Gid, page.Ino, same.Ino)
		}
		if to, err := os.Readlink(filepath.Join(dir, "link")); err != nil || to != "/etc/passwd" {
			t.Errorf("link to %s, %v", to, err)
		}
		if mounts, err := mountsBelow(s.root); err != nil || len(mounts) != 1 {
			t.Errorf("mounts: %v, %v", mounts, err)
		}

		for name, link := range map[string]string{"absolute": host, "relative": "../../../../../../../../../../../.." + host, "to the image": "/from/sub"} {
			entries, err := os.ReadDir(dir)
			must(t, err)
			for _, e := range entries {
				must(t, os.RemoveAll(filepath.Join(dir, e.Name())))
			}
			must(t, os.Symlink(link, filepath.Join(dir, "sub")))
			if err := copyConfined(dir, image); err == nil {
				t.Errorf("%s: a link was taken for a directory", name)
			}
			if entries, err := os.ReadDir(host); err != nil || len(entries) > 0 {
				t.Errorf("%s: the fill wrote to the host: %v, %v", name, entries, err)
			}
		}
		must(t, s.Unmount(ctx, "c", "mem"))
		if b, err := os.ReadFile(filepath.Join(image, "sub", "page")); err != nil || string(b) != "image" {
			t.Errorf("the image was changed: %q, %v", b, err)
		}
	})
}
