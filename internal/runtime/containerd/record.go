package containerd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/skep-swarm/skep/internal/durable"
	"github.com/skep-swarm/skep/internal/runtime"
)

// record is what is kept of a container on disk beyond containerd's own: what the agent asks for, how to stop it when its
// spec is forgotten, and how it ended.
type record struct {
	ID          string                        `json:"id"`
	TaskID      string                        `json:"task"`
	Name        string                        `json:"name"`
	Image       string                        `json:"image"`
	ImageDigest string                        `json:"imageDigest"`
	Labels      map[string]string             `json:"labels,omitempty"`
	StopSignal  string                        `json:"stopSignal"`
	StopGrace   time.Duration                 `json:"stopGrace"`
	Stdout      string                        `json:"stdout,omitempty"`
	Stderr      string                        `json:"stderr,omitempty"`
	TTY         bool                          `json:"tty,omitempty"`
	Volumes     []string                      `json:"anonymousVolumes,omitempty"`
	Mounted     []string                      `json:"volumes,omitempty"` // all volumes, the anonymous ones too
	Mounts      []runtime.MountPoint          `json:"mounts,omitempty"`
	Parts       []part                        `json:"parts,omitempty"`
	Health      *dockerspec.HealthcheckConfig `json:"health,omitempty"`
	CreatedAt   time.Time                     `json:"created"`
	StartedAt   time.Time                     `json:"started,omitzero"`
	PID         int                           `json:"pid,omitempty"`
	Exit        *runtime.Exit                 `json:"exit,omitempty"`

	news bool // it ended while no daemon was there to tell of it
}

// maxRecord bounds a record file, in bytes: labels and names, no more.
const maxRecord = 1 << 20

func (r *Runtime) recordDir() string { return filepath.Join(r.cfg.Root, "skep") }

func (r *Runtime) recordPath(id string) string { return filepath.Join(r.recordDir(), id+".json") }

// saveRecord writes a record so that a reader sees the old one or the new one. It does not wait for the disk: after a
// power loss no container lives, and one whose record is lost is pruned.
func (r *Runtime) saveRecord(rec *record) error {
	err := durable.Replace(r.recordPath(rec.ID), 0o600, func(w io.Writer) error { return json.NewEncoder(w).Encode(rec) })
	if err != nil {
		return fmt.Errorf("write the record of container %s: %w", rec.ID, err)
	}
	return nil
}

func (r *Runtime) dropRecord(id string) error {
	if err := os.Remove(r.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of container %s: %w", id, err)
	}
	return nil
}

// loadRecords reads all records. One that cannot be read is as good as none: its container is pruned.
func (r *Runtime) loadRecords() (map[string]*record, error) {
	if err := os.MkdirAll(r.recordDir(), 0o700); err != nil {
		return nil, fmt.Errorf("make the record directory: %w", err)
	}
	entries, err := os.ReadDir(r.recordDir())
	if err != nil {
		return nil, fmt.Errorf("list the container records: %w", err)
	}
	records := make(map[string]*record, len(entries))
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			_ = os.Remove(filepath.Join(r.recordDir(), e.Name())) // a temporary file of a crashed write
			continue
		}
		info, err := e.Info()
		if err != nil || info.Size() > maxRecord {
			continue
		}
		data, err := os.ReadFile(r.recordPath(id))
		if err != nil {
			continue
		}
		rec := new(record)
		if json.Unmarshal(data, rec) == nil && rec.ID == id {
			records[id] = rec
		}
	}
	return records, nil
}
