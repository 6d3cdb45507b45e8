package cli

import (
	"os"
	"path/filepath"
	"testing"
)

// TestExamples: no example has a key that a swarm would ignore.
func TestExamples(t *testing.T) {
	// Passwords are made where an example is used, and are not in the repository.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../examples")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "demo", "redis-password"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(dir + "/*/compose.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	for _, file := range files {
		for _, env := range [][]string{nil, {"REGISTRY=registry.example:5000", "PORT=9000", "REPLICAS=5", "VERSION=2"}} {
			if code, out, errs := runStack(t, "", env, "lint", "-c", file); code != 0 || errs != "" {
				t.Errorf("%s with %v: %d\n%s%s", file, env, code, out, errs)
			}
		}
	}
}
