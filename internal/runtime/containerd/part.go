package containerd

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/runtime"
)

// part is a place in a volume that a container mounts instead of the whole. Other containers that use the volume may make links of
// what is on the way to it at any moment, and runc looks for its mounts by their names. So the place is mounted where no container
// comes, by its descriptor, while runc makes the container, and that mount point is what runc is told of.
type part struct {
	Volume string `json:"volume"`
	Dir    string `json:"dir"`  // the volume's directory
	Path   string `json:"path"` // within it
	At     string `json:"at"`   // the mount point
}

// maxPartTries bounds how often a place is looked for again because a directory on the way was moved meanwhile.
const maxPartTries = 1000

// open opens the part: a directory, a file or whatever a program made there.
func (p *part) open() (*os.File, error) {
	root, err := unix.Open(p.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", p.Volume, err)
	}
	defer unix.Close(root)
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd := -1
	for range maxPartTries {
		if fd, err = unix.Openat2(root, p.Path, how); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case err == nil:
		return os.NewFile(uintptr(fd), p.Path), nil
	case errors.Is(err, iofs.ErrNotExist):
		return nil, p.refuse("there is nothing of that name in volume "+p.Volume, err)
	case errors.Is(err, unix.EXDEV):
		return nil, p.refuse("a link on its way leads out of volume "+p.Volume, err)
	}
	return nil, p.refuse("it cannot be opened in volume "+p.Volume+": "+err.Error(), err)
}

func (p *part) refuse(why string, err error) error {
	return &runtime.Error{Kind: runtime.KindMount, Text: "cannot access path " + p.Path + ": " + why, Err: err}
}

// mount mounts the part, with what is mounted below it, at its mount point.
func (p *part) mount() error {
	f, err := p.open()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.makePoint(f); err != nil {
		return fmt.Errorf("make a mount point for %s of volume %s: %w", p.Path, p.Volume, err)
	}
	tree, err := privateCopy(f)
	if err == nil {
		defer unix.Close(tree)
		err = unix.MoveMount(tree, "", unix.AT_FDCWD, p.At, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err != nil {
		return fmt.Errorf("mount %s of volume %s: %w", p.Path, p.Volume, err)
	}
	return nil
}

// privateCopy makes another mount of an open file or directory and of what is mounted below it, private before it is mounted: what is unmounted
// there later must not be unmounted in the volume as well. Before Linux 5.12 that cannot be had, and what is mounted below is left out.
func privateCopy(f *os.File) (fd int, err error) {
	fd, err = copyMount(f, unix.AT_RECURSIVE)
	if err != nil {
		return -1, err
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	if err == nil {
		return fd, nil
	}
	_ = unix.Close(fd)
	if errors.Is(err, unix.ENOSYS) {
		return copyMount(f, 0)
	}
	return -1, &os.PathError{Op: "make private the mount of", Path: f.Name(), Err: err}
}

// makePoint makes a directory for a directory and a file for anything else.
func (p *part) makePoint(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.MkdirAll(p.At, 0o700)
	}
	if err := os.MkdirAll(filepath.Dir(p.At), 0o700); err != nil {
		return err
	}
	point, err := os.OpenFile(p.At, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return point.Close()
}

func (r *Runtime) partDir() string { return filepath.Join(r.cfg.State, "parts") }

// partPoint is where a container's nth part is mounted.
func (r *Runtime) partPoint(id string, n int) string {
	return filepath.Join(r.partDir(), id, strconv.Itoa(n))
}

// mountParts mounts the parts of volumes that a container sees, until release is called: once runc has made the container, it has mounts
// of its own.
func (r *Runtime) mountParts(ctx context.Context, rec *record) (release func(), err error) {
	if len(rec.Parts) == 0 {
		return func() {}, nil
	}
	release = func() {
		if err := dropParts(filepath.Join(r.partDir(), rec.ID)); err != nil {
			r.cfg.Log.Warn("unmount the parts of volumes that a container was made with", "container", rec.ID, "err", err)
		}
	}
	// An earlier try may have been cut short.
	if err := dropParts(filepath.Join(r.partDir(), rec.ID)); err != nil {
		return nil, fmt.Errorf("unmount parts of volumes: %w", err)
	}
	for _, p := range rec.Parts {
		if err := ctx.Err(); err != nil {
			release()
			return nil, err
		}
		if err := p.mount(); err != nil {
			release()
			return nil, err
		}
	}
	return release, nil
}

// sweepParts unmounts what a daemon that was killed while it started containers has left.
func (r *Runtime) sweepParts() error {
	entries, err := os.ReadDir(r.partDir())
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, dropParts(filepath.Join(r.partDir(), e.Name())))
	}
	return errors.Join(errs...)
}

// dropParts unmounts and removes the mount points in a directory, and it. Nothing is removed but what is empty: where something were still
// mounted, that would be a volume's files.
func dropParts(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, dropPoint(filepath.Join(dir, e.Name())))
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}

// dropPoint removes a mount point with whatever is mounted over it.
func dropPoint(at string) error {
	for {
		err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) {
			break // nothing is mounted there
		}
		if err != nil {
			return &os.PathError{Op: "unmount", Path: at, Err: err}
		}
	}
	return os.Remove(at)
}
