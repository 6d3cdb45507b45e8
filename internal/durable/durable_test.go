package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// both are the two promises under one signature.
func both() map[string]func(path string, data []byte, perm fs.FileMode) error {
	return map[string]func(string, []byte, fs.FileMode) error{
		"WriteFile": WriteFile,
		"Replace": func(path string, data []byte, perm fs.FileMode) error {
			return Replace(path, perm, func(w io.Writer) error { _, err := w.Write(data); return err })
		},
	}
}

// holds checks that the directory has exactly one entry, the file with that content and those permissions.
func holds(t *testing.T, path, want string, perm fs.FileMode) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("the directory has %v, want only %s", entries, filepath.Base(path))
	}
	got, err := os.ReadFile(path)
	must(t, err)
	if string(got) != want {
		t.Errorf("the file holds %.40q, want %.40q", got, want)
	}
	st, err := os.Lstat(path)
	must(t, err)
	if st.Mode() != perm {
		t.Errorf("the file is %v, want %v", st.Mode(), perm)
	}
}

func TestReplaces(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	for name, write := range both() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			must(t, write(path, []byte("a longer one"), 0o644))
			holds(t, path, "a longer one", 0o644)
			must(t, write(path, []byte("short"), 0o600))
			holds(t, path, "short", 0o600)
			must(t, write(path, nil, 0o755))
			holds(t, path, "", 0o755)
		})
	}
}

// What a crash left of an earlier attempt is neither in the way nor led astray by, and goes.
func TestAfterCrash(t *testing.T) {
	for name, write := range both() {
		t.Run(name, func(t *testing.T) {
			dir, other := t.TempDir(), filepath.Join(t.TempDir(), "other")
			path := filepath.Join(dir, "file")
			draft := filepath.Join(dir, ".file.new")
			must(t, os.WriteFile(draft, bytes.Repeat([]byte("x"), 1000), 0o444))
			must(t, write(path, []byte("one"), 0o600))
			holds(t, path, "one", 0o600)
			must(t, os.WriteFile(other, []byte("not ours"), 0o600))
			must(t, os.Symlink(other, draft))
			must(t, write(path, []byte("two"), 0o600))
			holds(t, path, "two", 0o600)
			holds(t, other, "not ours", 0o600)
		})
	}
}

func TestErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, WriteFile(path, []byte("old"), 0o600))
	cause := errors.New("no more to say")
	err := Replace(path, 0o644, func(w io.Writer) error {
		if _, err := io.WriteString(w, "half of it"); err != nil {
			return err
		}
		return cause
	})
	if err != cause {
		t.Errorf("got %v, want fill's error as it is", err)
	}
	holds(t, path, "old", 0o600)

	taken := filepath.Join(t.TempDir(), "dir")
	must(t, os.MkdirAll(filepath.Join(taken, "sub"), 0o700))
	for name, write := range both() {
		if err := write(taken, []byte("x"), 0o600); err == nil {
			t.Errorf("%s replaced a directory", name)
		}
		if entries, err := os.ReadDir(filepath.Dir(taken)); err != nil || len(entries) != 1 {
			t.Errorf("%s left %v, %v", name, entries, err)
		}
		if err := write(filepath.Join(taken, "none", "file"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s in a directory that is not there: %v", name, err)
		}
	}
}

// Whoever reads meanwhile, and in the end, sees one writer's whole content.
func TestWriters(t *testing.T) {
	for name, write := range both() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			content := func(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%04d", i), 2000+i) }
			whole := func() {
				got, err := os.ReadFile(path)
				var i int
				if err == nil {
					_, err = fmt.Sscanf(string(got[:min(4, len(got))]), "%04d", &i)
				}
				if err != nil || !bytes.Equal(got, content(i)) {
					t.Errorf("read %d bytes that nobody wrote: %v", len(got), err)
				}
			}
			must(t, write(path, content(0), 0o600))
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for j := range 5 {
						if err := write(path, content(i*5+j), 0o600); err != nil {
							t.Error(err)
						}
						whole()
					}
				})
			}
			wg.Wait()
			got, err := os.ReadFile(path)
			must(t, err)
			holds(t, path, string(got), 0o600)
			whole()
		})
	}
}

func TestMkdirAll(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "a", "b", "c")
	must(t, MkdirAll(dir, 0o700))
	must(t, MkdirAll(dir+"/", 0o755))
	for _, d := range []string{dir, filepath.Dir(dir)} {
		st, err := os.Stat(d)
		must(t, err)
		if st.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%s is %v", d, st.Mode())
		}
	}
	file := filepath.Join(root, "file")
	must(t, WriteFile(file, nil, 0o600))
	for _, d := range []string{file, filepath.Join(file, "x")} {
		if err := MkdirAll(d, 0o700); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("MkdirAll(%s): %v", d, err)
		}
	}
}
