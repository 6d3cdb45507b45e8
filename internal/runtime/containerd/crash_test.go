package containerd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/conformance"
)

// daemonEnv makes the test binary be a daemon that starts containers until it is killed.
const daemonEnv = "SKEP_TEST_DAEMON"

// beDaemon starts one container after the other, several at a time, and prints what it started.
func beDaemon(config string) int {
	var cfg struct{ Root, State, Instance, Shim string }
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	rt, err := New(Config{Root: cfg.Root, State: cfg.State, Instance: cfg.Instance, Shim: cfg.Shim, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	go func() { _ = rt.Run(ctx) }()
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 100 {
				spec := conformance.NewSpec(fmt.Sprintf("crash%d-%d", worker, i), conformance.Obeys())
				c, err := rt.Controller(spec)
				if err == nil {
					err = c.Prepare(ctx)
				}
				pid := 0
				if err == nil {
					pid, err = c.Start(ctx)
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				fmt.Println(spec.ID, pid)
			}
		})
	}
	wg.Wait()
	return 1 // the test was too slow to kill it
}

// TestDaemonKilled kills a daemon in the middle of its work, again and again, and takes over each time: what it had
// started runs on with the same processes, and what it was making can be made.
func TestDaemonKilled(t *testing.T) {
	h := newHost(t)
	h.boot(t) // to load the image
	pids := make(map[string]int)
	for round := range 3 {
		h.halt(t)
		h.crash(t, pids, 3+2*round)
		h.boot(t)
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		list, err := h.runtime.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[string]runtime.Container)
		for _, c := range list {
			found[c.ID] = c
		}
		for id, pid := range pids {
			if c := found[id]; c.State != runtime.Running || c.PID != pid {
				t.Errorf("round %d: container %s is %s with process %d, want %d", round, id[:8], c.State, c.PID, pid)
			}
		}
		for _, c := range list {
			ctl, err := h.runtime.Open(c.ID)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := ctl.Start(ctx)
			if err != nil {
				t.Errorf("round %d: start what was being made: %v", round, err)
			}
			pids[c.ID] = pid
		}
		t.Logf("round %d: %d containers", round, len(list))
	}
}

// crash runs a daemon until it has started n containers, and kills it.
func (h *host) crash(t *testing.T, pids map[string]int, n int) {
	t.Helper()
	config, err := json.Marshal(map[string]string{"Root": h.cfg.Root, "State": h.cfg.State, "Instance": h.cfg.Instance, "Shim": h.cfg.Shim})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), daemonEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fresh := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var id, pid string
		if _, err := fmt.Sscan(lines.Text(), &id, &pid); err != nil {
			t.Errorf("the daemon said %q", lines.Text())
			break
		}
		number, err := strconv.Atoi(pid)
		if err != nil {
			t.Error(err)
		}
		if old, ok := pids[id]; ok && old != number {
			t.Errorf("container %s has process %d, had %d", id[:8], number, old)
		} else if !ok {
			fresh++
		}
		pids[id] = number
		if fresh == n {
			break
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if fresh < n {
		t.Fatalf("the daemon ended by itself after %d containers", fresh)
	}
}

// TestOrphanedSnapshot makes what a kill leaves between the making of a snapshot's directory and the note of it.
func TestOrphanedSnapshot(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	h.halt(t)
	dir := filepath.Join(h.cfg.Root, "io.containerd.snapshotter.v1."+snapshotter, "snapshots")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	last := 0
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			last = max(last, n)
		}
	}
	for n := range 3 {
		if err := os.MkdirAll(filepath.Join(dir, strconv.Itoa(last+1+n), "fs"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	rt := h.boot(t)
	c, err := rt.Controller(conformance.NewSpec("orphaned", conformance.Obeys()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := c.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestKilledInALook makes what a kill leaves of a look at an image's files: a mount, and the snapshot that was mounted.
func TestKilledInALook(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	ctx := h.runtime.namespaced(t.Context())
	img, err := h.runtime.images.find(ctx, conformance.Image, "")
	must(t, err)
	sn := h.runtime.client.SnapshotService(snapshotter)
	var seen string
	must(t, h.runtime.images.view(ctx, img, "a", func(root string) error {
		seen = root
		_, err := os.Stat(filepath.Join(root, "bin"))
		return err
	}))
	mounts, err := sn.View(ctx, viewPrefix+"b", img.chain)
	must(t, err)
	must(t, os.Mkdir(seen, 0o700))
	must(t, mount.All(mounts, seen))
	h.halt(t)
	h.boot(t)
	if _, err := os.Lstat(seen); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mount is left: %v", err)
	}
	if _, err := h.runtime.client.SnapshotService(snapshotter).Stat(ctx, viewPrefix+"b"); !errdefs.IsNotFound(err) {
		t.Errorf("the snapshot is left: %v", err)
	}
}

// TestBundleMadeAnew makes what runc may leave that is killed with its daemon: a folder of mount points where containerd had removed it.
func TestBundleMadeAnew(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	for name, start := range map[string]bool{"started": true, "removed": false} {
		spec := conformance.NewSpec(name, conformance.Obeys())
		c, err := h.runtime.Controller(spec)
		must(t, err)
		must(t, c.Prepare(t.Context()))
		must(t, os.MkdirAll(filepath.Join(h.runtime.bundle(spec.ID), "rootfs", "proc"), 0o755))
		if start {
			_, err = c.Start(t.Context())
			must(t, err)
		}
		must(t, c.Remove(t.Context()))
		if exists(h.runtime.bundle(spec.ID)) {
			t.Errorf("%s: the folder is left", name)
		}
	}
}

// TestFailedStartLeavesNoProcess: the shim of a container that cannot be made is ended and reaped.
func TestFailedStartLeavesNoProcess(t *testing.T) {
	h := newHost(t)
	h.boot(t)
	before := zombies(t)
	for range 3 {
		spec := conformance.NewSpec("missing", conformance.Missing())
		c, err := h.runtime.Controller(spec)
		must(t, err)
		must(t, c.Prepare(t.Context()))
		if _, err := c.Start(t.Context()); runtime.KindOf(err) != runtime.KindCommand {
			t.Errorf("Start = %v", err)
		}
		must(t, c.Remove(t.Context()))
	}
	for _, z := range zombies(t) {
		if !slices.Contains(before, z) {
			t.Errorf("process %s is left", z)
		}
	}
}

// zombies are the processes of ours that have ended and nobody waits for.
func zombies(t *testing.T) (found []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	must(t, err)
	for _, path := range all {
		stat, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(stat), " Z "+strconv.Itoa(os.Getpid())+" ") {
			found = append(found, filepath.Base(filepath.Dir(path)))
		}
	}
	return found
}
