package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	cfs "github.com/containerd/continuity/fs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// filling begins the name of a directory, beside a volume's own, with what is on its way into it. It must be on the same file
// system, and where no container sees it.
const filling = ".fill-"

// Fill copies what is in a directory of the host, which nobody changes meanwhile, to a volume that is empty: files with their owners,
// modes and attributes, and the owner and mode of the directory itself. A volume that has something in it is left as it is. The caller has
// mounted it. Other containers may use the volume and do in it what they like: they gain nothing that is outside of it.
func (s *Store) Fill(ctx context.Context, name, source string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if checkName(name) != nil {
		return notFound(name)
	}
	dir := s.path(name)
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) == 0 {
		var mounted bool
		if mounted, err = mountinfo.Mounted(dir); err == nil && mounted {
			err = copyConfined(dir, source)
		} else if err == nil {
			err = copyWhole(dir, source)
		}
	}
	if err != nil {
		return fmt.Errorf("fill volume %s: %w", name, err)
	}
	return nil
}

// copyWhole fills an empty directory: whoever is interrupted while copying leaves it empty, to be filled by the next. The directory
// stays the same one, for other containers may have it mounted already: in one that is replaced they could make no file any more.
func copyWhole(dir, source string) error {
	part, err := os.MkdirTemp(filepath.Dir(dir), filling)
	if err != nil {
		return err
	}
	defer os.RemoveAll(part)
	if err := cfs.CopyDir(part, source); err != nil {
		return err
	}
	entries, err := os.ReadDir(part)
	if err != nil {
		return err
	}
	if now, err := os.ReadDir(dir); err != nil || len(now) > 0 {
		return err // somebody wrote to it meanwhile: it is not new any more
	}
	for _, e := range entries {
		from, to := filepath.Join(part, e.Name()), filepath.Join(dir, e.Name())
		if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
	}
	var like unix.Stat_t
	if err := unix.Stat(part, &like); err != nil {
		return &os.PathError{Op: "stat", Path: part, Err: err}
	}
	return errors.Join(os.Chown(dir, int(like.Uid), int(like.Gid)), unix.Chmod(dir, like.Mode&0o7777))
}

// copyConfined fills a directory at which something is mounted, into which nothing can be moved: the containers that have it mounted
// see each file come, and may put a link in the place of a directory that was just made. The copy is made by a thread to which the
// volume and what is copied are the whole world, so that no link leads anywhere else.
func copyConfined(dir, source string) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread has a root of its own and ends with this goroutine.
		runtime.LockOSThread()
		err := confine(filepath.Dir(dir), map[string]string{"to": dir, "from": source})
		if err == nil {
			err = cfs.CopyDir("/to", "/from")
		}
		done <- err
	}()
	return <-done
}

// confine makes a root for the calling thread, in which there are only some directories by these names; all but "to" are read-only.
// It is mounted over a directory, in a mount namespace that goes with the thread.
func confine(at string, dirs map[string]string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	held := map[string]int{}
	defer func() {
		for _, fd := range held {
			_ = unix.Close(fd)
		}
	}()
	for name, dir := range dirs {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: dir, Err: err}
		}
		held[name] = fd
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700,size=64k"); err != nil {
		return &os.PathError{Op: "mount", Path: at, Err: err}
	}
	for name, fd := range held {
		place := filepath.Join(at, name)
		if err := os.Mkdir(place, 0o700); err != nil {
			return err
		}
		err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), place, "", unix.MS_BIND, "")
		if err == nil && name != "to" {
			err = unix.Mount("", place, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
		}
		if err != nil {
			return &os.PathError{Op: "mount", Path: place, Err: err}
		}
	}
	if err := unix.Chroot(at); err != nil {
		return &os.PathError{Op: "chroot", Path: at, Err: err}
	}
	return unix.Chdir("/")
}

// removeFilling removes what a fill that was cut short has left of a volume; before the first Fill.
func (s *Store) removeFilling(name string) error {
	entries, err := os.ReadDir(filepath.Join(s.root, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filling) {
			errs = append(errs, os.RemoveAll(filepath.Join(s.root, name, e.Name())))
		}
	}
	return errors.Join(append(errs, err)...)
}
