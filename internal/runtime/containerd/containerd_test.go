package containerd

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	"github.com/moby/sys/mountinfo"

	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/conformance"
	"github.com/skep-swarm/skep/internal/shim/shimtest"
)

func TestMain(m *testing.M) {
	if config := os.Getenv(daemonEnv); config != "" {
		os.Exit(beDaemon(config))
	}
	code := m.Run()
	if os.Getuid() == 0 {
		shimtest.Remove()
	}
	os.Exit(code)
}

// host is a node in a temporary directory, with real containers.
type host struct {
	cfg     Config
	archive []byte
	runtime *Runtime
	cancel  context.CancelFunc
	ended   chan error
	loaded  bool
}

func newHost(t testing.TB) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("real containers need root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("runc is not installed")
	}
	dir, err := os.MkdirTemp("/tmp", "sk") // short: sockets are made in it
	if err != nil {
		t.Fatal(err)
	}
	h := &host{cfg: Config{
		Root: filepath.Join(dir, "d"), State: filepath.Join(dir, "e"), Instance: "t" + filepath.Base(dir)[2:],
		Shim: shimtest.Path(t), Volumes: dirVolumes(filepath.Join(dir, "v")), Log: testLog(t),
	}}
	t.Cleanup(func() { h.clean(t, dir) })
	return h
}

// testLog shows what containerd says when SKEP_TEST_LOG is set.
func testLog(testing.TB) *slog.Logger {
	if os.Getenv("SKEP_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (h *host) boot(t testing.TB) *Runtime {
	t.Helper()
	rt, err := New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.runtime, h.cancel, h.ended = rt, cancel, make(chan error, 1)
	go func() { h.ended <- rt.Run(ctx) }()
	wait, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	c, err := rt.Client(wait)
	if err != nil {
		t.Fatalf("open the runtime: %v", err)
	}
	if !h.loaded {
		h.load(t, c)
	}
	return rt
}

func (h *host) load(t testing.TB, c *client.Client) {
	t.Helper()
	if h.archive == nil {
		h.archive = testArchive(t)
	}
	if _, err := c.Import(h.runtime.namespaced(context.Background()), bytes.NewReader(h.archive)); err != nil {
		t.Fatalf("load the test image: %v", err)
	}
	h.loaded = true
}

func (h *host) halt(t testing.TB) {
	t.Helper()
	if h.cancel == nil {
		return
	}
	h.cancel()
	h.cancel = nil
	if err := <-h.ended; err != nil {
		t.Errorf("Run = %v", err)
	}
}

// clean removes all containers and checks that nothing of them is left on the host.
func (h *host) clean(t testing.TB, dir string) {
	if h.cancel != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		list, err := h.runtime.List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, c := range list {
			ctl, err := h.runtime.Open(c.ID)
			if err == nil {
				err = ctl.Remove(ctx)
			}
			if err != nil {
				t.Errorf("remove %s: %v", c.ID, err)
			}
		}
		h.halt(t)
	}
	left, err := mountinfo.GetMounts(func(i *mountinfo.Info) (bool, bool) {
		return !strings.HasPrefix(i.Mountpoint, dir+"/"), false
	})
	if err != nil || len(left) > 0 {
		t.Errorf("mounts left: %v, %v", left, err)
		for _, m := range left {
			_ = mount.UnmountAll(m.Mountpoint, 0)
		}
	}
	for _, d := range hierarchies() {
		if _, err := os.Stat(filepath.Join(d, "skep", h.cfg.Instance)); err == nil {
			t.Errorf("cgroup left in %s", d)
		}
	}
	// containerd clears away after a dead shim on its own time.
	procs := processes(dir)
	for deadline := time.Now().Add(5 * time.Second); len(procs) > 0 && time.Now().Before(deadline); procs = processes(dir) {
		time.Sleep(10 * time.Millisecond)
	}
	if len(procs) > 0 {
		t.Errorf("processes left: %v", procs)
	}
	if sockets, _ := os.ReadDir(filepath.Join(h.cfg.State, "s")); len(sockets) > 0 {
		t.Errorf("sockets left: %v", sockets)
	}
	if records, _ := os.ReadDir(filepath.Join(h.cfg.Root, "skep")); len(records) > 0 {
		t.Errorf("records left: %v", records)
	}
	if words, _ := os.ReadFile(filepath.Join(h.cfg.State, "shims.log")); len(words) > 0 {
		t.Logf("shims said: %s", words)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

// processes lists the command lines that name dir: the shims of this host.
func processes(dir string) (found []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		if data, err := os.ReadFile(p); err == nil && bytes.Contains(data, []byte(dir)) {
			found = append(found, p+": "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return found
}

// Boot implements conformance.Host.
func (h *host) Boot(t *testing.T) runtime.Runtime { return h.boot(t) }

// Halt implements conformance.Host.
func (h *host) Halt(t *testing.T) { h.halt(t) }

func TestConformance(t *testing.T) {
	conformance.Run(t, func(t *testing.T) conformance.Host { return newHost(t) })
}

// dirVolumes is the least that can be called volumes: directories.
type dirVolumes string

func (d dirVolumes) Unmount(context.Context, string, string) error { return nil }

func (d dirVolumes) Sweep(context.Context) error { return nil }

func (d dirVolumes) Mount(_ context.Context, _, name string, _, _ map[string]string) (string, error) {
	path := filepath.Join(string(d), name)
	return path, os.MkdirAll(path, 0o755)
}

func (d dirVolumes) Fill(_ context.Context, name, source string) error {
	return fs.CopyDir(filepath.Join(string(d), name), source)
}

func (d dirVolumes) Remove(_ context.Context, name string) error {
	return os.RemoveAll(filepath.Join(string(d), name))
}
