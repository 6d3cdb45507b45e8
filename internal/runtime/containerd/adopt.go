package containerd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/runc"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	gorunc "github.com/containerd/go-runc"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/runtime"
)

// open makes the client and takes over the containers of an earlier daemon.
func (r *Runtime) open(ctx context.Context) error {
	records, err := r.loadRecords()
	if err != nil {
		return err
	}
	if err := r.sweepMounts(); err != nil {
		return err
	}
	if r.cfg.Address == "" {
		if err := r.harvest(records); err != nil {
			return err
		}
		r.client, r.closer, err = r.openEngine(ctx)
	} else {
		r.client, r.closer, err = r.dialSystem(ctx)
	}
	if err != nil {
		return err
	}
	r.images = &imageCache{client: r.client, byRoot: make(map[digest.Digest]*image)}
	known, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, k := range known {
		rec := records[k.ID]
		delete(records, k.ID)
		if rec == nil {
			// Without a record it belongs to nobody; it is listed so that the agent prunes it.
			rec = &record{ID: k.ID, CreatedAt: k.CreatedAt, StopSignal: "SIGTERM", StopGrace: defaultGrace, StartedAt: k.CreatedAt}
		}
		if err := r.adopt(ctx, rec); err != nil {
			return fmt.Errorf("adopt container %s: %w", k.ID, err)
		}
	}
	if r.cfg.Volumes != nil {
		if err := r.cfg.Volumes.Sweep(ctx); err != nil {
			r.cfg.Log.Warn("unmount volumes that nobody uses", "err", err)
		}
	}
	for id := range records { // of a container that was being made or removed
		if err := r.dropRecord(id); err != nil {
			return err
		}
	}
	if r.cfg.Address == "" {
		r.endStrayShims(ctx)
	}
	if err := r.sweepParts(); err != nil { // who was making a container with them has been ended
		r.cfg.Log.Warn("unmount the parts of volumes that containers were made with", "err", err)
	}
	return r.sweepSnapshots(ctx)
}

// sweepMounts takes away the mounts by which a daemon that was killed looked at an image or unpacked it, and has containerd make those of
// this one where the next finds them. It knows one such place in a process: the one that was opened last.
func (r *Runtime) sweepMounts() error {
	if err := mount.SetTempMountLocation(filepath.Join(r.cfg.State, "mounts")); err != nil {
		return fmt.Errorf("make a place for mounts: %w", err)
	}
	left, err := mount.CleanupTempMounts(unix.MNT_DETACH)
	if err := errors.Join(append(left, err)...); err != nil {
		r.cfg.Log.Warn("unmount what an earlier daemon has left", "error", err)
	}
	return nil
}

// harvest reads the exits of containers that ended while no daemon ran. It must come before containerd's own start,
// which clears away what belongs to ended containers, the exit code included.
func (r *Runtime) harvest(records map[string]*record) error {
	entries, err := os.ReadDir(filepath.Join(r.cfg.State, taskPlugin, r.Namespace()))
	if err != nil {
		if os.IsNotExist(err) {
			return nil
		}
		return fmt.Errorf("look for containers that ended: %w", err)
	}
	patience := time.After(shimPatience)
	for _, e := range entries {
		rec := records[e.Name()]
		if rec == nil || rec.Exit != nil {
			continue
		}
		exit, ok := r.recordedExit(rec, patience)
		if !ok {
			continue // it runs
		}
		rec.Exit = &runtime.Exit{Code: exit.Status, At: exit.Timestamp.UTC(), OOMKilled: r.oomKilled(rec.ID)}
		if rec.StartedAt.IsZero() {
			rec.StartedAt = exit.Timestamp.UTC()
		}
		if err := r.saveRecord(rec); err != nil {
			return err
		}
		rec.news = true
	}
	return nil
}

// recordedExit reads a container's exit record. One whose process has just gone is given a moment, for its shim writes
// the record after that; one whose shim has gone too never gets a record.
func (r *Runtime) recordedExit(rec *record, patience <-chan time.Time) (gorunc.Exit, bool) {
	for {
		exit, err := runc.ReadExitStatus(r.bundle(rec.ID))
		if err == nil {
			return exit, true
		}
		if rec.PID == 0 || exists("/proc/"+strconv.Itoa(rec.PID)) || !answers(r.socket(rec.ID)) {
			return exit, false
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-patience:
			return exit, false
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// answers reports whether a program listens on a socket.
func answers(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// deletedExit reads the exit of a container whose task containerd deleted as this daemon started, and removes the file.
func (r *Runtime) deletedExit(id string) *runtime.Exit {
	defer r.dropSocket(id)
	data, err := os.ReadFile(r.exitFile(id))
	if err != nil {
		return nil
	}
	var exit gorunc.Exit
	if json.Unmarshal(data, &exit) != nil || exit.Timestamp.IsZero() {
		return nil
	}
	return &runtime.Exit{Code: exit.Status, At: exit.Timestamp}
}

// adopt makes the unit of a container that an earlier daemon made.
func (r *Runtime) adopt(ctx context.Context, rec *record) error {
	u := r.unit(rec.ID, true)
	resp, err := r.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: rec.ID})
	if err != nil {
		if err = errgrpc.ToNative(err); !errdefs.IsNotFound(err) {
			return fmt.Errorf("look at its task: %w", err)
		}
	}
	alive := err == nil && resp.Process != nil
	if rec.Exit == nil && (alive || rec.StartedAt.IsZero()) {
		r.claimVolumes(ctx, rec) // before anybody can hear of its end
	}
	switch {
	case alive && resp.Process.Status == tasktypes.Status_CREATED:
		// Its daemon died between making and starting it; starting makes it anew.
		if err := r.deleteTask(ctx, rec.ID); err != nil {
			return err
		}
		rec.StartedAt = time.Time{}
		u.settle(rec, runtime.Created)
	case alive && rec.Exit == nil:
		if rec.StartedAt.IsZero() {
			rec.StartedAt = time.Now().UTC()
		}
		u.settle(rec, runtime.Running)
		u.started(int(resp.Process.Pid), nil, false)
	case alive:
		u.settle(rec, runtime.Exited)
		if err := r.deleteTask(ctx, rec.ID); err != nil {
			return err
		}
	case rec.Exit == nil && rec.StartedAt.IsZero():
		u.settle(rec, runtime.Created)
	default:
		seen := r.deletedExit(rec.ID)
		if rec.Exit == nil {
			rec.Exit = cmp.Or(seen, &runtime.Exit{Code: killed, Err: "the container ended while the node or its shim was down"})
			if err := r.saveRecord(rec); err != nil {
				return err
			}
			rec.news = true
		}
		u.settle(rec, runtime.Exited)
	}
	if rec.news {
		u.tellExit()
	}
	return nil
}

// sweepSnapshots removes file systems whose container was never recorded, and those of looks at an image that were cut short.
func (r *Runtime) sweepSnapshots(ctx context.Context) error {
	sn := r.client.SnapshotService(snapshotter)
	var stale []string
	err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		id := info.Labels[snapshotLabel]
		if id != "" && r.unit(id, false) == nil || strings.HasPrefix(info.Name, viewPrefix) {
			stale = append(stale, info.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for file systems without a container: %w", err)
	}
	for _, key := range stale {
		if err := sn.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove the stale file system %s: %w", key, err)
		}
	}
	return nil
}
