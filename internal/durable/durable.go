// Package durable replaces files whole: who reads one, also after a crash, finds what was there before or what was
// written, and never a part.
//
// There are two promises. WriteFile is for what a power loss must not take back: who a node is, what a volume is made of. Replace is for
// what the next boot makes anew, or checks and heals: it does not wait for the disk. Whoever keeps something on disk uses one of them; it
// knows nothing of what is kept.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteFile replaces the file at path, or makes it, with data and exactly the permissions perm, whatever the umask is. After it
// returned nil, a power loss does not take the new content back. After an error the old content is there, unless only
// the directory could not be brought to the disk: then it is the new one, which a power loss may take back.
// Several at once on one path, also of several processes, are safe: one of them wins. The directory must be there (see MkdirAll).
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return replace(path, perm, true, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// Replace replaces the file at path, or makes it, with what fill writes, and exactly the permissions perm. A process that is
// killed leaves the old file or the new one; a power loss may leave an empty file. After an error, also fill's, which is
// returned as it is, the old content is there. Several at once on one path, also of several processes, are safe: one of them
// wins. fill must not replace a file in the same directory.
func Replace(path string, perm fs.FileMode, fill func(w io.Writer) error) error {
	return replace(path, perm, false, fill)
}

func replace(path string, perm fs.FileMode, lasting bool, fill func(w io.Writer) error) error {
	dir, err := lockDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	// One name, under the lock, so that what a crash leaves goes with the next attempt.
	draft := filepath.Join(dir.Name(), "."+filepath.Base(path)+".new")
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = write(draft, perm, lasting, fill)
	if err == nil {
		err = os.Rename(draft, path)
	}
	if err != nil {
		os.Remove(draft) // or it was not even made
		return err
	}
	if lasting {
		return dir.Sync()
	}
	return nil
}

// write makes a new file. It is closed before it gets its name: a program that is open for writing cannot be run.
func write(path string, perm fs.FileMode, lasting bool, fill func(w io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Chmod(perm)
	if err == nil {
		err = fill(f)
	}
	if err == nil && lasting {
		// The content comes to the disk before the name that leads to it.
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// lockDir keeps those who replace files in one directory apart, until the directory is closed.
func lockDir(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), dir.Close())
		}
	}
}

// MkdirAll makes a directory and those above it that are missing, with permissions perm less the umask. After it returned nil,
// a power loss does not take away the ones that it made. What is there already is left as it is.
func MkdirAll(dir string, perm fs.FileMode) error {
	dir = filepath.Clean(dir)
	st, err := os.Stat(dir)
	if err == nil && !st.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	above := filepath.Dir(dir)
	if err := MkdirAll(above, perm); err != nil {
		return err
	}
	if err := os.Mkdir(dir, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(above)
}

// SyncDir waits until the entries of a directory are on the disk: what was made, renamed or removed in it.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
