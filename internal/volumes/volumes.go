// Package volumes keeps a node's local volumes: directories with a name that outlive the containers that mount them.
//
// The container runtime asks it for the directory of a volume, the API lists and removes volumes. A volume is the
// directory NAME/_data below the store's root, with NAME/volume.json beside it. A volume whose options name a device has that
// mounted there while containers use it. It must not know what a container is beyond its identifier.
package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/skep-swarm/skep/internal/durable"
)

// namePattern is Docker's rule for names, which also keeps a name from leaving the root.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

const (
	maxName = 255     // bytes, the file system's limit for a name
	maxMeta = 1 << 20 // bytes of a volume's labels and options on disk
	meta    = "volume.json"
	data    = "_data"
	removed = ".removed-" // a dot keeps what is being deleted out of List
	// rootMode is that of the root and of each volume's place in it. A container may give a file to root with the right to run as
	// root: users of the host must not come to it.
	rootMode = 0o700
)

// Volume is one named directory.
type Volume struct {
	Name       string            `json:"name"`
	Mountpoint string            `json:"-"`
	Labels     map[string]string `json:"labels,omitempty"`
	// Options are those of Docker's driver "local": type, device and o.
	Options   map[string]string `json:"options,omitempty"`
	CreatedAt time.Time         `json:"created"`
}

// Store keeps the volumes below one directory. Its methods are safe for concurrent use; two Stores on one directory are not.
type Store struct {
	root string
	mu   sync.Mutex
	uses map[string]*use // by the volume's name
	// halfRemoved are directories of removed volumes to be deleted yet.
	halfRemoved []string
}

// New returns a store of the volumes below root, which is made when it is needed.
func New(root string) *Store { return &Store{root: root, uses: map[string]*use{}} }

// Create makes a volume, or returns the one of that name unchanged. It fails with errdefs.ErrInvalidArgument for a
// name, labels or options that a volume cannot have.
func (s *Store) Create(ctx context.Context, name string, labels, options map[string]string) (Volume, error) {
	if err := checkName(name); err != nil {
		return Volume{}, err
	}
	if err := CheckOptions(options); err != nil {
		return Volume{}, err
	}
	if err := ctx.Err(); err != nil {
		return Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.read(name)
	if err == nil || !errors.Is(err, errdefs.ErrNotFound) {
		return v, err
	}
	v = Volume{Name: name, Mountpoint: s.path(name), Labels: maps.Clone(labels), Options: maps.Clone(options), CreatedAt: time.Now().UTC().Truncate(time.Second)}
	return v, s.write(v)
}

// write puts a new volume on disk; under mu.
func (s *Store) write(v Volume) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode volume %s: %w", v.Name, err)
	}
	if len(body) > maxMeta {
		return fmt.Errorf("volume %s: labels and options of %d bytes are too large: %w", v.Name, len(body), errdefs.ErrInvalidArgument)
	}
	dir := filepath.Join(s.root, v.Name)
	// What was acknowledged is there after a power loss, and what was not is there with its options, or not at all: one that lost
	// its options would take data to the wrong place.
	err = durable.MkdirAll(dir, rootMode)
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir, meta), body, 0o600)
	}
	if err != nil {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	// The directory comes last: it is what makes the volume exist.
	if err := os.Mkdir(v.Mountpoint, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	if err := os.Chmod(v.Mountpoint, 0o755); err != nil { // whatever the umask is
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	if err := durable.SyncDir(dir); err != nil {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	return nil
}

// Inspect returns a volume, or errdefs.ErrNotFound.
func (s *Store) Inspect(ctx context.Context, name string) (Volume, error) {
	if err := ctx.Err(); err != nil {
		return Volume{}, err
	}
	if checkName(name) != nil {
		return Volume{}, notFound(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read(name)
}

// List returns all volumes ordered by name.
func (s *Store) List(ctx context.Context) ([]Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var list []Volume
	for _, e := range entries {
		if checkName(e.Name()) != nil {
			continue
		}
		v, err := s.read(e.Name())
		if errors.Is(err, errdefs.ErrNotFound) {
			continue // half made or half removed
		}
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Remove deletes a volume and what is in it, but nothing of what its options mount there. One that does not exist is no
// error, one that a container uses is errdefs.ErrConflict.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if checkName(name) != nil {
		return nil
	}
	trash, err := s.discard(name)
	for _, dir := range trash {
		err = errors.Join(err, os.RemoveAll(dir)) // without the lock: it may take minutes
	}
	if err != nil {
		if errors.Is(err, errdefs.ErrConflict) {
			return err
		}
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}

// discard takes a volume's name away at once and returns what is to be deleted, which may take a while: its contents, and those of
// volumes whose removal an earlier store did not end.
func (s *Store) discard(name string) (trash []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if users := s.users(name); len(users) > 0 {
		return nil, conflictError{fmt.Sprintf("remove %s: volume is in use - [%s]", name, strings.Join(users, ", "))}
	}
	trash, s.halfRemoved = s.halfRemoved, nil
	dir := filepath.Join(s.root, name)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return trash, nil
	}
	if err := unmountBelow(dir); err != nil {
		return trash, err
	}
	to, err := os.MkdirTemp(s.root, removed)
	if err != nil {
		return trash, err
	}
	if err := os.Rename(dir, filepath.Join(to, name)); err != nil {
		return trash, errors.Join(err, os.Remove(to))
	}
	return append(trash, to), nil
}

// findRemoved finds what removals that were interrupted have left, for the next one to delete: the daemon's start does not wait for
// that. Nothing was mounted in it when it was taken away. Under mu, before the first Remove.
func (s *Store) findRemoved() error {
	entries, err := os.ReadDir(s.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(s.root, e.Name())
		if !strings.HasPrefix(e.Name(), removed) {
			continue
		}
		if at, err := mountsBelow(dir); err == nil && len(at) == 0 { // what is not known is not deleted
			s.halfRemoved = append(s.halfRemoved, dir)
		}
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.root, name, data) }

// read loads one volume; under mu. A directory without metadata is a volume all the same: its data counts.
func (s *Store) read(name string) (Volume, error) {
	v := Volume{}
	path := filepath.Join(s.root, name, meta)
	if m, err := os.Stat(path); err == nil && m.Size() <= maxMeta {
		body, err := os.ReadFile(path)
		if err != nil {
			return Volume{}, fmt.Errorf("look at volume %s: %w", name, err)
		}
		_ = json.Unmarshal(body, &v) // a broken file costs the labels, not the volume
	}
	v.Name, v.Mountpoint = name, s.path(name)
	if hasDevice(v.Options) {
		return v, nil // its directory is not looked at: the server behind it may not answer
	}
	info, err := os.Lstat(s.path(name))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return Volume{}, notFound(name)
	}
	if err != nil {
		return Volume{}, fmt.Errorf("look at volume %s: %w", name, err)
	}
	if v.CreatedAt.IsZero() {
		v.CreatedAt = info.ModTime().UTC()
	}
	return v, nil
}

func notFound(name string) error {
	return fmt.Errorf("get %s: no such volume: %w", name, errdefs.ErrNotFound)
}

func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("volume name is empty: %w", errdefs.ErrInvalidArgument)
	}
	if len(name) == 1 {
		return fmt.Errorf("volume name is too short, names should be at least two alphanumeric characters: %w", errdefs.ErrInvalidArgument)
	}
	if len(name) > maxName || !namePattern.MatchString(name) {
		return fmt.Errorf("%q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. "+
			"If you intended to pass a host directory, use absolute path: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}
