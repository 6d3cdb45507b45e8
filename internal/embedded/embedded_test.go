package embedded

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
)

func helpers(shim, keeper string) fstest.MapFS {
	out := fstest.MapFS{"bin/README": {Data: []byte("x")}}
	for name, content := range map[string]string{shimName: shim, keeperName: keeper} {
		var packed bytes.Buffer
		zw := gzip.NewWriter(&packed)
		if _, err := zw.Write([]byte(content)); err != nil {
			panic(err) // a buffer takes everything
		}
		if err := zw.Close(); err != nil {
			panic(err)
		}
		out["bin/"+name+".gz"] = &fstest.MapFile{Data: packed.Bytes()}
		out["bin/"+name+".sum"] = &fstest.MapFile{Data: fmt.Appendf(nil, "%x\n", sha256.Sum256([]byte(content)))}
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWritePutsExecutableHelpers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bin")
	p, err := write(helpers("shim one", "keeper one"), dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, p.Shim); got != "shim one" {
		t.Errorf("shim holds %q", got)
	}
	if got := read(t, p.Keeper); got != "keeper one" {
		t.Errorf("keeper holds %q", got)
	}
	for _, path := range []string{p.Shim, p.Keeper} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", path, st.Mode())
		}
		if !filepath.IsAbs(path) {
			t.Errorf("%s is not absolute", path)
		}
	}
}

func TestWriteKeepsOlderBuildsAndIsIdempotent(t *testing.T) {
	dir := t.TempDir()
	old, err := write(helpers("shim one", "keeper"), dir)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(old.Shim)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := write(helpers("shim one", "keeper"), dir); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(old.Shim)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the second call wrote a helper that was already there")
	}
	new, err := write(helpers("shim two", "keeper"), dir)
	if err != nil {
		t.Fatal(err)
	}
	if new.Shim == old.Shim || read(t, old.Shim) != "shim one" {
		t.Error("the older shim was written over")
	}
	if new.Keeper != old.Keeper {
		t.Error("an unchanged keeper got another name")
	}
}

func TestWriteRepairsDamage(t *testing.T) {
	dir := t.TempDir()
	p, err := write(helpers("shim", "keeper"), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p.Shim, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p.Keeper, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := write(helpers("shim", "keeper"), dir); err != nil {
		t.Fatal(err)
	}
	if got := read(t, p.Shim); got != "shim" {
		t.Errorf("the truncated shim holds %q", got)
	}
	if st, err := os.Stat(p.Keeper); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the keeper was not made executable again: %v %v", st.Mode(), err)
	}
}

func TestWriteAtOnce(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := write(helpers("shim", "keeper"), dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("want two files and no leftovers, got %v", entries)
	}
}

func TestWriteWithoutHelpers(t *testing.T) {
	_, err := write(fstest.MapFS{"bin/README": {Data: []byte("x")}}, t.TempDir())
	if !errors.Is(err, ErrNotEmbedded) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("want an error that names make build, got %v", err)
	}
}

func TestWriteIntoAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := write(helpers("shim", "keeper"), file); err == nil {
		t.Error("want an error when the directory is a file")
	}
}
