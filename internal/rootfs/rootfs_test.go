package rootfs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/testimage"
)

// world is a container's root beside things of the host that must stay as they are.
type world struct {
	t          *testing.T
	host, root string
	r          *Root
}

const canary = "the host's"

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("owners are given by root only")
	}
	w := &world{t: t, host: t.TempDir()}
	w.root = filepath.Join(w.host, "root")
	for _, d := range []string{"root/etc", "root/data/sub", "root/empty", "secret"} {
		w.must(os.MkdirAll(filepath.Join(w.host, d), 0o755))
	}
	w.write("secret/canary", canary)
	w.write("root/etc/passwd", "web:x:33:44::/:/bin/sh\n")
	w.write("root/data/sub/a", "aaa")
	for link, to := range map[string]string{
		"abs": "/etc", "rel": "etc", "up": "../../../../etc", "file": "/etc/passwd", "chain": "abs/passwd", "loop": "loop",
		"out": "../secret", "absout": w.host + "/secret", "dangling": "/nowhere/x",
	} {
		w.must(os.Symlink(to, filepath.Join(w.root, link)))
	}
	dir, err := os.Open(w.root)
	w.must(err)
	t.Cleanup(func() { _ = dir.Close() })
	w.r, err = New(dir)
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(name, text string) {
	w.t.Helper()
	w.must(os.WriteFile(filepath.Join(w.host, name), []byte(text), 0o644))
}

// read is a file below the container's root.
func (w *world) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.root, name))
	w.must(err)
	return string(b)
}

// unharmed checks that nothing of the host has changed.
func (w *world) unharmed() {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.host, "secret/canary"))
	w.must(err)
	entries, err := os.ReadDir(filepath.Join(w.host, "secret"))
	w.must(err)
	top, err := os.ReadDir(w.host)
	w.must(err)
	if string(b) != canary || len(entries) != 1 || len(top) != 2 {
		w.t.Errorf("the host was changed: %q, %v, %v", b, entries, top)
	}
}

func archiveOf(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	b, err := testimage.Tar(0o644, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b)
}

func TestStat(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		path, name, link string
		dir              bool
	}{
		{"/etc/passwd", "passwd", "", false},
		{"etc/../etc/passwd", "passwd", "", false},
		{"/abs", "abs", "/etc", false},
		{"/abs/", "abs", "", true},
		{"/abs/.", ".", "", true},
		{"/up", "up", "/etc", false},
		{"/up/passwd", "passwd", "", false},
		{"/chain", "chain", "/etc/passwd", false},
		{"/out", "out", "/secret", false},
		{"/absout", "absout", w.host + "/secret", false},
		{"/dangling", "dangling", "/nowhere/x", false},
		{"/", "/", "", true},
		{"/..", "/", "", true},
	} {
		got, err := w.r.Stat(test.path)
		if err != nil || got.Name != test.name || got.LinkTarget != test.link || got.Mode.IsDir() != test.dir || (test.link != "") != (got.Mode&fs.ModeSymlink != 0) {
			t.Errorf("%s: %+v, %v", test.path, got, err)
		}
	}
	for path, want := range map[string]error{
		"/nothing": fs.ErrNotExist, "/out/canary": fs.ErrNotExist, "/absout/canary": fs.ErrNotExist, "/../secret/canary": fs.ErrNotExist,
		"/loop/x": unix.ELOOP, "/loop": unix.ELOOP, "/etc/passwd/": unix.ENOTDIR,
	} {
		if got, err := w.r.Stat(path); !errors.Is(err, want) {
			t.Errorf("%s: %+v, %v; want %v", path, got, err, want)
		}
	}
}

// list is an archive's entries as "name kind content".
func list(t *testing.T, in io.Reader) []string {
	t.Helper()
	var out []string
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(out)
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %c %s%s", h.Name, h.Typeflag, h.Linkname, body)))
	}
}

func TestArchive(t *testing.T) {
	w := newWorld(t)
	w.must(os.Link(filepath.Join(w.root, "data/sub/a"), filepath.Join(w.root, "data/sub/b")))
	w.must(unix.Mkfifo(filepath.Join(w.root, "data/fifo"), 0o600))
	for path, want := range map[string]string{
		"/etc/passwd": "passwd 0 web:x:33:44::/:/bin/sh",
		"/file":       "file 2 /etc/passwd",
		"/data":       "data/ 5|data/fifo 6|data/sub/ 5|data/sub/a 0 aaa|data/sub/b 1 data/sub/a",
		"/data/.":     "./ 5|./fifo 6|./sub/ 5|./sub/a 0 aaa|./sub/b 1 ./sub/a",
		"/abs/":       "abs/ 5|abs/passwd 0 web:x:33:44::/:/bin/sh",
		"/out":        "out 2 ../secret",
	} {
		var b bytes.Buffer
		if err := w.r.Archive(context.Background(), path, &b); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		got := strings.Join(list(t, &b), "|")
		// Which of two names of a file comes first is the file system's choice.
		got = strings.Replace(got, "sub/a 1 data/sub/b|data/sub/b 0 aaa", "sub/a 0 aaa|data/sub/b 1 data/sub/a", 1)
		got = strings.Replace(got, "sub/a 1 ./sub/b|./sub/b 0 aaa", "sub/a 0 aaa|./sub/b 1 ./sub/a", 1)
		if got != want {
			t.Errorf("%s: %s", path, got)
		}
	}
	for path, want := range map[string]error{"/out/canary": fs.ErrNotExist, "/absout/": fs.ErrNotExist, "/nothing": fs.ErrNotExist} {
		var b bytes.Buffer
		if err := w.r.Archive(context.Background(), path, &b); !errors.Is(err, want) || b.Len() > 0 {
			t.Errorf("%s: %v", path, err)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.r.Archive(ended, "/data", io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended client: %v", err)
	}
	deep := filepath.Join(w.root, "deep", strings.Repeat("d/", maxDepth+1))
	w.must(os.MkdirAll(deep, 0o755))
	if err := w.r.Archive(context.Background(), "/deep", io.Discard); !errors.Is(err, ErrInvalid) {
		t.Errorf("too deep: %v", err)
	}
}

// What the kernel makes up is no file to copy.
func TestKernelFiles(t *testing.T) {
	w := newWorld(t)
	dir, err := os.Open("/")
	w.must(err)
	defer dir.Close()
	r, err := New(dir)
	w.must(err)
	if err := r.Archive(context.Background(), "/proc/self/status", io.Discard); !errors.Is(err, ErrInvalid) {
		t.Errorf("a file of /proc: %v", err)
	}
	var b bytes.Buffer
	w.must(r.Archive(context.Background(), "/proc", &b))
	if got := list(t, &b); len(got) != 1 {
		t.Errorf("/proc has %d entries", len(got))
	}
	if err := r.Extract(context.Background(), "/proc", archiveOf(t, tar.Header{Name: "x"}), nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("into /proc: %v", err)
	}
	if _, err := r.Stat("/proc/self/root/etc"); err == nil {
		t.Error("a magic link was followed")
	}
}

func TestExtract(t *testing.T) {
	w := newWorld(t)
	at := time.Unix(1_500_000_000, 0)
	in := archiveOf(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
		tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 5, Gid: 6, ModTime: at},
		tar.Header{Name: "dir/f", Uname: "one", Mode: 0o4755, Uid: 7, Gid: 8, ModTime: at},
		tar.Header{Name: "new/parents/f", Uname: "two"},
		tar.Header{Name: "dir/link", Typeflag: tar.TypeSymlink, Linkname: "../../../x", ModTime: at},
		tar.Header{Name: "dir/hard", Typeflag: tar.TypeLink, Linkname: "dir/f"},
		tar.Header{Name: "dir/fifo", Typeflag: tar.TypeFifo, Mode: 0o620},
		tar.Header{Name: "/sub/a", Uname: "replaced"},
	)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := io.Copy(z, in)
	w.must(errors.Join(err, z.Close()))
	w.must(w.r.Extract(context.Background(), "/data", &packed, nil))
	if got := w.read("data/dir/hard") + w.read("data/new/parents/f") + w.read("data/sub/a"); got != "onetworeplaced" {
		t.Errorf("content %q", got)
	}
	for name, want := range map[string]string{
		"data": "40755 0:0", "data/dir": "40750 5:6", "data/dir/f": "104755 7:8", "data/dir/fifo": "10620 0:0", "data/new": "40755 0:0", "data/dir/link": "120777 0:0",
	} {
		var st unix.Stat_t
		w.must(unix.Lstat(filepath.Join(w.root, name), &st))
		if got := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
		if strings.HasPrefix(name, "data/dir") && name != "data/dir/fifo" && st.Mtim.Sec != at.Unix() {
			t.Errorf("%s is of %d", name, st.Mtim.Sec)
		}
	}
	w.must(w.r.Extract(context.Background(), "/rel/", archiveOf(t, tar.Header{Name: "mine", Uid: 9}), &Owner{33, 44}))
	var st unix.Stat_t
	w.must(unix.Stat(filepath.Join(w.root, "etc/mine"), &st))
	if st.Uid != 33 || st.Gid != 44 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
	w.unharmed()
}

// Whatever an archive or the container says, nothing outside of the root is touched.
func TestHostileArchives(t *testing.T) {
	for name, test := range map[string]struct {
		dest    string
		headers []tar.Header
		want    error // nil: what is written stays inside
		inside  string
	}{
		"dots":                {"/data", []tar.Header{{Name: "../../secret/canary", Uname: "x"}}, ErrInvalid, ""},
		"dots behind a name":  {"/data", []tar.Header{{Name: "a/../../../secret/canary", Uname: "x"}}, ErrInvalid, ""},
		"absolute":            {"/data", []tar.Header{{Name: "/secret/canary", Uname: "x"}}, nil, "data/secret/canary"},
		"through own link":    {"/data", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../secret"}, {Name: "l/canary", Uname: "x"}}, fs.ErrExist, ""},
		"through root's link": {"/data", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "l/canary", Uname: "x"}}, nil, "etc/canary"},
		"over own link":       {"/data", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../secret/canary"}, {Name: "l", Uname: "x"}}, nil, "data/l"},
		"destination outside": {"/out", []tar.Header{{Name: "canary", Uname: "x"}}, fs.ErrNotExist, ""},
		"destination through": {"/up", []tar.Header{{Name: "canary", Uname: "x"}}, nil, "etc/canary"},
		"hard link out":       {"/data", []tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../secret/canary"}}, ErrInvalid, ""},
		"hard link by a link": {"/", []tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: "out/canary"}}, fs.ErrNotExist, ""},
		"hard link to a link": {"/", []tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: "absout"}, {Name: "h/canary", Uname: "x"}}, fs.ErrExist, ""},
		"device":              {"/data", []tar.Header{{Name: "d", Typeflag: tar.TypeBlock, Devmajor: 8}}, ErrInvalid, ""},
		"directory over file": {"/data/sub", []tar.Header{{Name: "a", Typeflag: tar.TypeDir}}, ErrInvalid, ""},
		"file over directory": {"/data", []tar.Header{{Name: "sub", Uname: "x"}}, ErrInvalid, ""},
		"into a file":         {"/etc/passwd", []tar.Header{{Name: "x"}}, ErrNotDirectory, ""},
		"directory by link":   {"/", []tar.Header{{Name: "absout", Typeflag: tar.TypeDir, Mode: 0o777}}, ErrInvalid, ""},
		"bad owner":           {"/data", []tar.Header{{Name: "x", Uid: -1}}, ErrInvalid, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			err := w.r.Extract(context.Background(), test.dest, archiveOf(t, test.headers...), nil)
			if !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if test.inside != "" && w.read(test.inside) != "x" {
				t.Errorf("%s has another content", test.inside)
			}
			w.unharmed()
		})
	}
	w := newWorld(t)
	if err := w.r.Extract(context.Background(), "/data", strings.NewReader(strings.Repeat("no archive", 200)), nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("no archive: %v", err)
	}
	cut, err := io.ReadAll(archiveOf(t, tar.Header{Name: "f", Uname: strings.Repeat("x", 5000)}))
	w.must(err)
	if err := w.r.Extract(context.Background(), "/data", bytes.NewReader(cut[:2000]), nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("cut short: %v", err)
	}
}

// A container that exchanges a directory for a link to the host while files are copied gains nothing.
func TestExchangedLinks(t *testing.T) {
	w := newWorld(t)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		target := filepath.Join(w.root, "data/x")
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.RemoveAll(target)
			_ = os.Symlink("../../secret", target)
			_ = os.Remove(target)
			_ = os.Mkdir(target, 0o755)
		}
	}()
	for range 300 {
		_ = w.r.Extract(context.Background(), "/data", archiveOf(t, tar.Header{Name: "x/canary", Uname: "stolen"}), nil)
		var b bytes.Buffer
		if w.r.Archive(context.Background(), "/data/x/canary", &b) == nil && bytes.Contains(b.Bytes(), []byte(canary)) {
			t.Fatal("the host's file was read")
		}
	}
	close(stop)
	<-done
	w.unharmed()
}

func TestReadFile(t *testing.T) {
	w := newWorld(t)
	if b, err := w.r.ReadFile("/chain", 3); err != nil || string(b) != "web" {
		t.Errorf("%q, %v", b, err)
	}
	for _, name := range []string{"/etc", "/absout/canary", "/nothing"} {
		if b, err := w.r.ReadFile(name, 100); err == nil {
			t.Errorf("%s: %q", name, b)
		}
	}
}

// What is mounted into a container is not replaced: in another mount namespace than ours the kernel would let us.
func TestMountPoint(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.root, "etc/passwd")
	done := make(chan error)
	go func() {
		// Never unlocked: the thread has a mount namespace of its own, and ends.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount(filepath.Join(w.host, "secret/canary"), file, "", unix.MS_BIND, "")
		}
		if err == nil {
			dir, oerr := os.Open(w.root)
			if err = oerr; err == nil {
				other := make(chan error)
				go func() { // on a thread in our namespace
					defer dir.Close()
					r, err := New(dir)
					if err == nil {
						err = r.Extract(context.Background(), "/etc", archiveOf(t, tar.Header{Name: "passwd", Uname: "x"}), nil)
					}
					other <- err
				}()
				err = <-other
			}
		}
		done <- err
	}()
	if err := <-done; !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "mounted into the container") {
		t.Errorf("%v", err)
	}
	w.unharmed()
}
