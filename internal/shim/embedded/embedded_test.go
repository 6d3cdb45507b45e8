package embedded

import (
	"bytes"
	"compress/gzip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func pack(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	first, err := install(dir, pack(t, []byte("one")))
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(first)
	if err != nil || before.Mode().Perm() != 0o755 {
		t.Fatalf("installed: %v, %v", before, err)
	}
	again, err := install(dir, pack(t, []byte("one")))
	if err != nil || again != first {
		t.Fatalf("install again = %s, %v", again, err)
	}
	if after, err := os.Stat(first); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was written again: %v", err)
	}
	second, err := install(dir, pack(t, []byte("two")))
	if err != nil || second != first {
		t.Fatalf("install of another = %s, %v; want the same path", second, err)
	}
	if got, err := os.ReadFile(second); err != nil || string(got) != "two" {
		t.Errorf("content = %q, %v", got, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("the old shim nobody runs should be gone: %v, %v", entries, err)
	}
}

func TestInstallKeepsRunning(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("no sleep program here")
	}
	content, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	old, err := install(dir, pack(t, content))
	if err != nil {
		t.Fatal(err)
	}
	if old, err = filepath.EvalSymlinks(old); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(old, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if _, err := install(dir, pack(t, []byte("new"))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); err != nil {
		t.Errorf("a shim that runs was removed: %v", err)
	}
}

func TestInstallBroken(t *testing.T) {
	dir := t.TempDir()
	if path, err := install(dir, []byte("not gzip")); err == nil {
		t.Errorf("installed %s from garbage", path)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}
