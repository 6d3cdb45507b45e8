package containerd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/conformance"
)

// systemHost is a node that uses a containerd of the system, which lives on when the daemon ends.
type systemHost struct{ *host }

// newSystemHost starts the containerd program that is on PATH, or that SKEP_TEST_CONTAINERD names, with roots of its own.
func newSystemHost(t *testing.T) *systemHost {
	t.Helper()
	program := os.Getenv("SKEP_TEST_CONTAINERD")
	if program == "" {
		program = "containerd"
	}
	program, err := exec.LookPath(program)
	if err != nil {
		t.Skip("no containerd program here: put one on PATH or name it in SKEP_TEST_CONTAINERD")
	}
	h := newHost(t)
	dir := filepath.Join(filepath.Dir(h.cfg.Root), "c")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	h.cfg.Address = filepath.Join(dir, "c.sock")
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), h.cfg.Address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd := exec.Command(program, "--config", config)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &systemHost{h}
	t.Cleanup(func() {
		s.clear(t) // containers first: they need it
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if t.Failed() && testing.Verbose() {
			t.Logf("containerd said: %s", output.String())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", h.cfg.Address); err == nil {
			_ = conn.Close()
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("containerd does not answer: %s", output.String())
		}
	}
}

// clear removes all containers while the system's containerd is there.
func (s *systemHost) clear(t *testing.T) {
	if s.cancel == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	list, err := s.runtime.List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, c := range list {
		if ctl, err := s.runtime.Open(c.ID); err != nil || ctl.Remove(ctx) != nil {
			t.Errorf("remove %s failed", c.ID)
		}
	}
	s.halt(t)
}

// Boot implements conformance.Host.
func (s *systemHost) Boot(t *testing.T) runtime.Runtime { return s.boot(t) }

// Halt implements conformance.Host.
func (s *systemHost) Halt(t *testing.T) { s.halt(t) }

func TestConformanceOnSystemContainerd(t *testing.T) {
	conformance.Run(t, func(t *testing.T) conformance.Host { return newSystemHost(t) })
}
