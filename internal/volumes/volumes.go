// Package volumes keeps a node's local volumes: directories with a name that outlive the containers that mount them.
//
// The container runtime asks it for the directory of a volume, the API lists and removes volumes. A volume is the
// directory NAME/_data below the store's root, with NAME/volume.json beside it. It must not know who mounts what.
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
)

// namePattern is Docker's rule for names, which also keeps a name from leaving the root.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

const (
	maxName = 255     // bytes, the file system's limit for a name
	maxMeta = 1 << 20 // bytes of a volume's labels on disk
	meta    = "volume.json"
	data    = "_data"
)

// Volume is one named directory.
type Volume struct {
	Name       string            `json:"name"`
	Mountpoint string            `json:"-"`
	Labels     map[string]string `json:"labels,omitempty"`
	CreatedAt  time.Time         `json:"created"`
}

// Store keeps the volumes below one directory. Its methods are safe for concurrent use; two Stores on one directory are not.
type Store struct {
	root string
	mu   sync.Mutex
}

// New returns a store of the volumes below root, which is made when it is needed.
func New(root string) *Store { return &Store{root: root} }

// Create makes a volume, or returns the one of that name unchanged. It fails with errdefs.ErrInvalidArgument for a
// name or labels that a volume cannot have.
func (s *Store) Create(ctx context.Context, name string, labels map[string]string) (Volume, error) {
	if err := checkName(name); err != nil {
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
	v = Volume{Name: name, Mountpoint: s.path(name), Labels: maps.Clone(labels), CreatedAt: time.Now().UTC().Truncate(time.Second)}
	body, err := json.Marshal(v)
	if err != nil {
		return Volume{}, fmt.Errorf("encode volume %s: %w", name, err)
	}
	if len(body) > maxMeta {
		return Volume{}, fmt.Errorf("volume %s: labels of %d bytes are too large: %w", name, len(body), errdefs.ErrInvalidArgument)
	}
	dir := filepath.Join(s.root, name)
	if err := os.MkdirAll(dir, 0o701); err != nil {
		return Volume{}, fmt.Errorf("make volume %s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, meta), body, 0o600); err != nil {
		return Volume{}, fmt.Errorf("make volume %s: %w", name, err)
	}
	// The directory comes last: it is what makes the volume exist.
	if err := os.Mkdir(v.Mountpoint, 0o755); err != nil {
		return Volume{}, fmt.Errorf("make volume %s: %w", name, err)
	}
	return v, os.Chmod(v.Mountpoint, 0o755) // whatever the umask is
}

// Mountpoint makes the volume if it does not exist and returns its directory.
func (s *Store) Mountpoint(ctx context.Context, name string, labels map[string]string) (string, error) {
	v, err := s.Create(ctx, name, labels)
	return v.Mountpoint, err
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

// Remove deletes a volume and what is in it. One that does not exist is no error. The caller makes sure nobody mounts it.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if checkName(name) != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := filepath.Join(s.root, name)
	// The name goes at once; the contents may take a while and may be interrupted. The dot keeps it out of List.
	trash := filepath.Join(s.root, ".removed-"+name)
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	if err := os.Rename(dir, trash); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.root, name, data) }

// read loads one volume; under mu. A directory without metadata is a volume all the same: its data counts.
func (s *Store) read(name string) (Volume, error) {
	info, err := os.Lstat(s.path(name))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return Volume{}, notFound(name)
	}
	if err != nil {
		return Volume{}, fmt.Errorf("look at volume %s: %w", name, err)
	}
	v := Volume{CreatedAt: info.ModTime().UTC()}
	path := filepath.Join(s.root, name, meta)
	if m, err := os.Stat(path); err == nil && m.Size() <= maxMeta {
		body, err := os.ReadFile(path)
		if err != nil {
			return Volume{}, fmt.Errorf("look at volume %s: %w", name, err)
		}
		_ = json.Unmarshal(body, &v) // a torn file costs the labels, not the volume
	}
	v.Name, v.Mountpoint = name, s.path(name)
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
