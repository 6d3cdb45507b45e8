package raftlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/durable"
)

// segmentFS is the file system of the write-ahead log. It differs from the
// library's own in what a nearly full disk needs: a new segment that cannot be
// allocated whole is made all the same and grows as it is written. Files are
// private to the daemon's user.
type segmentFS struct{}

var _ types.VFS = segmentFS{}

func (segmentFS) ListDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (segmentFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, int64(size))
	switch {
	case err == nil, errors.Is(err, unix.EOPNOTSUPP):
	case isFull(err):
		// A failed allocation may have taken what there was.
		err = f.Truncate(0)
	}
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, errors.Join(fmt.Errorf("allocate log segment: %w", err), f.Close(), os.Remove(f.Name()))
	}
	return &segmentFile{File: f, dir: dir}, nil
}

func (segmentFS) Delete(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

func (segmentFS) OpenReader(dir, name string) (types.ReadableFile, error) {
	return os.Open(filepath.Join(dir, name))
}

func (segmentFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	return os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
}

// segmentFile syncs its directory with its first sync, so that a new file is still
// there after a power loss once something in it was acknowledged.
type segmentFile struct {
	*os.File
	dir    string
	synced atomic.Bool
}

func (f *segmentFile) Sync() error {
	if err := f.File.Sync(); err != nil {
		return err
	}
	if f.synced.Swap(true) {
		return nil
	}
	return durable.SyncDir(f.dir)
}
