// Package shimtest builds the shim program for tests that run real containers.
package shimtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "skep-shim")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "containerd-shim-skep-v2")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/skep-swarm/skep/cmd/skep-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		return "", &buildError{string(out), err}
	}
	return path, nil
})

type buildError struct {
	output string
	err    error
}

func (e *buildError) Error() string { return "build the shim: " + e.err.Error() + "\n" + e.output }

// Path returns the path of a shim built from this source tree, once for the whole test binary.
func Path(tb testing.TB) string {
	tb.Helper()
	path, err := build()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// Remove deletes what Path built. Call it from TestMain after the tests.
func Remove() {
	if path, err := build(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
}
