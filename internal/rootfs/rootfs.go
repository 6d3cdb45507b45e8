// Package rootfs looks at, reads and writes the files below a directory that somebody else controls: a container's root.
//
// It stands below the API's copies into and out of containers. Programs in the container may change every link and directory at
// any moment, and archives come from anywhere: the kernel keeps each lookup inside of the root, and nothing that is
// opened is followed by its name again. The kernel's own file systems (/proc, /sys) are not files and left alone. It knows
// nothing of containers, users' names or HTTP.
package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxLinks is how many symbolic links one path may lead through, as the kernel has it.
	maxLinks = 40
	// maxDepth bounds how deep directories are followed: each level holds a descriptor.
	maxDepth = 200
	// maxTries bounds how often a path is looked up again because the container moves the directories on it.
	maxTries = 1000
)

// The errors that a caller answers in its own words. Others have the kernel's cause.
var (
	// ErrNotDirectory is for an archive that should be extracted into something else.
	ErrNotDirectory = errors.New("extraction point is not a directory")
	// ErrReadOnly is for the root's own file system, ErrReadOnlyMount for one that is mounted in it.
	ErrReadOnly      = errors.New("container rootfs is marked read-only")
	ErrReadOnlyMount = errors.New("mounted volume is marked read-only")
	// ErrInvalid is for an archive or a path that is refused; the text says what of it.
	ErrInvalid = errors.New("invalid")
)

// invalid makes an ErrInvalid whose text is the reason alone.
func invalid(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

type refusal struct{ text string }

func (r *refusal) Error() string        { return r.text }
func (r *refusal) Is(target error) bool { return target == ErrInvalid }

// Root is a directory with all below it. Its methods may be used by several goroutines.
type Root struct {
	dir *os.File
	dev uint64
}

// New makes a Root of an open directory, which stays the caller's to close, after the Root's last use.
func New(dir *os.File) (*Root, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, fmt.Errorf("look at a file system's root: %w", err)
	}
	return &Root{dir: dir, dev: st.Dev}, nil
}

// Stat is what is known of one file.
type Stat struct {
	// Name is the last element of the path as it was asked for.
	Name    string
	Size    int64
	Mode    fs.FileMode
	ModTime time.Time
	// LinkTarget is where a symbolic link leads in the end, from the root.
	LinkTarget string
}

// Stat looks at a path. A link is not followed, unless the path ends in a slash or a dot.
func (r *Root) Stat(name string) (Stat, error) {
	abs := absolute(name)
	f, err := r.openLast(abs)
	if err != nil {
		return Stat{}, err
	}
	defer f.Close()
	st, err := status(f)
	if err != nil {
		return Stat{}, err
	}
	out := Stat{Name: path.Base(abs), Size: st.Size, Mode: modeOf(st), ModTime: time.Unix(st.Mtim.Unix())}
	if out.Mode&fs.ModeSymlink != 0 {
		out.LinkTarget, err = r.resolve(abs)
	}
	return out, err
}

// ReadFile reads a regular file of at most limit bytes, links followed.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	at, err := r.open(absolute(name), unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	st, err := status(at)
	if err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, invalid("%s is not a regular file", name)
	}
	f, err := openHeld(at)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// openHeld opens for reading the file that a descriptor names, whatever its name has come to mean since: only opening a device may
// do something already, and a pipe's other end would notice.
func openHeld(at *os.File) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: at.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), at.Name()), nil
}

// absolute is a client's path from the root, cleaned. The slash or dot at its end that makes it a directory's stays.
func absolute(name string) string {
	clean := path.Join("/", name)
	switch {
	case clean == "/" && !strings.HasSuffix(name, "/."):
		return clean
	case strings.HasSuffix(name, "/."), name == ".":
		return strings.TrimSuffix(clean, "/") + "/."
	case strings.HasSuffix(name, "/"):
		return clean + "/"
	}
	return clean
}

// open opens a path from the root, links followed as the container sees them.
func (r *Root) open(name string, flags int, resolve uint64) (*os.File, error) {
	rel := strings.TrimLeft(name, "/")
	if rel == "" {
		rel = "."
	}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(int(r.dir.Fd()), rel, &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve})
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN) && try < maxTries:
			continue // a directory on the way was moved meanwhile
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
}

// openLast opens what an absolute path names itself, without following it.
func (r *Root) openLast(abs string) (*os.File, error) {
	dir, base := path.Split(abs)
	if base == "" || base == "." {
		return r.open(abs, unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	parent, err := r.openDir(dir)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	return openAt(parent, base, unix.O_PATH|unix.O_NOFOLLOW)
}

// openDir opens a directory for lookups below it. The kernel's own file systems have none.
func (r *Root) openDir(name string) (*os.File, error) {
	f, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if kernels, err := ofKernel(f); err != nil || kernels {
		_ = f.Close()
		if err == nil {
			err = invalid("%s is in a file system of the kernel, whose files cannot be copied", path.Clean(name))
		}
		return nil, err
	}
	return f, nil
}

// openAt opens one entry of an open directory.
func openAt(dir *os.File, base string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), base, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path.Join(dir.Name(), base), Err: err}
	}
	return os.NewFile(uintptr(fd), path.Join(dir.Name(), base)), nil
}

// resolve is where a path leads when all links are followed, from the root. It need not exist.
func (r *Root) resolve(abs string) (string, error) {
	done, todo := "/", strings.Split(abs, "/")
	for links := 0; len(todo) > 0; {
		next := todo[0]
		todo = todo[1:]
		if next == "" || next == "." || next == ".." {
			done = path.Join(done, next)
			continue
		}
		target, err := r.readLink(done, next)
		if err != nil {
			return "", err
		}
		if target == "" {
			done = path.Join(done, next)
			continue
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "resolve", Path: abs, Err: unix.ELOOP}
		}
		if path.IsAbs(target) {
			done = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return done, nil
}

// readLink reads the link of a name in a directory without links on its path; "" when it is none.
func (r *Root) readLink(dir, base string) (string, error) {
	d, err := r.open(dir, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer d.Close()
	return readLinkAt(d, base)
}

// readLinkAt reads the link of an entry; "" when it is none or is not there.
func readLinkAt(dir *os.File, base string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), base, buf)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: path.Join(dir.Name(), base), Err: err}
	}
	return string(buf[:n]), nil
}

func status(f *os.File) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(f.Fd()), "", &st, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return &st, nil
}

// modeOf is a file's mode as Go has it.
func modeOf(st *unix.Stat_t) fs.FileMode {
	mode := fs.FileMode(st.Mode & 0o777)
	for bit, to := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if st.Mode&bit != 0 {
			mode |= to
		}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	}
	return mode
}

// ofKernel reports whether a directory is of a file system that the kernel makes up.
func ofKernel(f *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	switch int64(st.Type) { // it is 32 bits wide on some machines
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.DEBUGFS_MAGIC,
		unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.BINFMTFS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC, mqueueMagic:
		return true, nil
	}
	return false, nil
}

// mqueueMagic is the type of message queues, which x/sys does not name.
const mqueueMagic = 0x19800202
