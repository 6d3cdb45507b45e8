// Package vault keeps the files of containers' secrets and configs in memory: a tmpfs for each container, which outlives the
// daemon and not the host.
//
// The agent fills it before a container is made and empties it when the container has ended; the runtime binds the files into
// the container, one by one. What is in it is never on a disk of this node, not even in swap where the kernel can promise that.
// It must not know what the files mean, nor who reads them.
package vault

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// File is one file of a container.
type File struct {
	UID, GID int
	// Mode has permission bits only.
	Mode fs.FileMode
	Data []byte
}

// Store keeps the files below one directory. Its methods are safe for concurrent use, and may be repeated; two Stores on one
// directory are not safe.
type Store struct {
	dir string
	mu  sync.Mutex
}

// New makes a store below dir, which is made when it is needed. It mounts nothing.
func New(dir string) *Store { return &Store{dir: dir} }

// idPattern keeps names within the directory.
var idPattern = regexp.MustCompile(`^[0-9a-z]{1,64}$`)

const (
	mountFlags = unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV
	// slack is room for the file system's own sake, in pages and inodes.
	slack = 8
)

// Find returns the paths of a container's files, in the order in which they were put; ok is false when they have to be put
// (again): there are none, or not n, or their making was cut short.
func (s *Store) Find(id string, n int) (paths []string, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(id, n)
}

func (s *Store) find(id string, n int) ([]string, bool, error) {
	if !idPattern.MatchString(id) {
		return nil, false, fmt.Errorf("vault: %q is not the ID of a container", id)
	}
	dir := filepath.Join(s.dir, id)
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("vault: look at the files of container %.12s: %w", id, err)
	}
	// It becomes read-only when it is complete; the directory that it is mounted on never is.
	if st.Type != unix.TMPFS_MAGIC || st.Flags&unix.ST_RDONLY == 0 {
		return nil, false, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != n {
		return nil, false, err
	}
	return paths(dir, n), true, nil
}

func paths(dir string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = filepath.Join(dir, strconv.Itoa(i))
	}
	return out
}

// Put makes a container's files, unless they are there already, and returns their paths in the same order. The directory is
// root's alone; nobody can change the files any more, not even root, as long as they are there.
func (s *Store) Put(id string, files []File) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found, ok, err := s.find(id, len(files)); err != nil || ok {
		return found, err
	}
	dir := filepath.Join(s.dir, id)
	err := s.remove(id)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = fill(dir, files)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vault: make the files of container %.12s: %w", id, err), s.remove(id))
	}
	return paths(dir, len(files)), nil
}

func fill(dir string, files []File) error {
	page := os.Getpagesize()
	pages := slack
	for _, f := range files {
		pages += (len(f.Data) + page - 1) / page
	}
	options := fmt.Sprintf("mode=0700,size=%d,nr_inodes=%d", pages*page, len(files)+slack)
	// Kernels before 6.4 do not know noswap.
	err := unix.Mount("tmpfs", dir, "tmpfs", mountFlags, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", dir, "tmpfs", mountFlags, options)
	}
	if err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	for i, path := range paths(dir, len(files)) {
		if err := write(path, files[i]); err != nil {
			return err
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|mountFlags, ""); err != nil {
		return fmt.Errorf("make it read-only: %w", err)
	}
	return nil
}

func write(path string, f File) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(f.Data)
	if err == nil {
		err = file.Chown(f.UID, f.GID)
	}
	if err == nil {
		err = file.Chmod(f.Mode.Perm())
	}
	return errors.Join(err, file.Close())
}

// Remove takes a container's files away. A container that still runs keeps those that are bound into it.
func (s *Store) Remove(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.remove(id); err != nil {
		return fmt.Errorf("vault: remove the files of container %.12s: %w", id, err)
	}
	return nil
}

func (s *Store) remove(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("%q is not the ID of a container", id)
	}
	dir := filepath.Join(s.dir, id)
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if errors.Is(err, unix.EINVAL) { // nothing is mounted there (any more)
			break
		}
		if err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// List names the containers that have files, whole or not.
func (s *Store) List() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	var out []string
	for _, e := range entries {
		if idPattern.MatchString(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// Clear takes everything away, the directory included.
func (s *Store) Clear() error {
	ids, err := s.List()
	errs := []error{err}
	for _, id := range ids {
		errs = append(errs, s.Remove(id))
	}
	if err := os.Remove(s.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
