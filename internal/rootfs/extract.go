package rootfs

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
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
	// maxEntries bounds an archive.
	maxEntries = 1 << 20
	// maxDirs is how many directories get their times back when all is written.
	maxDirs = 1 << 16
	// maxTail is how much may follow an archive's end.
	maxTail = 1 << 20
	// maxID is the highest user or group there can be.
	maxID = 1<<32 - 2
)

// Owner is who owns what is extracted.
type Owner struct{ UID, GID int }

// Extract writes the entries of a tar archive, which may be compressed with gzip, below a directory, links to it followed. Files are
// replaced; a directory is never replaced by something else, nor something else by a directory. Device nodes and entries that
// lead out of the directory by their name are refused. What was written before an error stays, but for half a file. A nil owner leaves files to
// those whom the archive names.
func (r *Root) Extract(ctx context.Context, name string, archive io.Reader, owner *Owner) error {
	dest, err := r.destination(absolute(name))
	if err != nil {
		return err
	}
	raw := bufio.NewReader(&untilDone{ctx, archive})
	plain, err := decompress(raw)
	if err != nil {
		return err
	}
	x := &extractor{ctx: ctx, root: r, dest: dest, owner: owner}
	in := tar.NewReader(plain)
	for n := 0; ; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badArchive(ctx, err)
		}
		if n >= maxEntries {
			return invalid("the archive has more than %d entries", maxEntries)
		}
		if err := x.entry(h, in); err != nil {
			return badArchive(ctx, err)
		}
	}
	if err := x.setTimes(); err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, raw, maxTail)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// badArchive tells a client whose archive cannot be read so.
func badArchive(ctx context.Context, err error) error {
	if ctx.Err() == nil && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong)) {
		return invalid("the archive is damaged: %v", err)
	}
	return err
}

func decompress(in *bufio.Reader) (io.Reader, error) {
	magic, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, invalid("the archive is damaged: %v", err)
		}
		return z, nil
	case bytes.HasPrefix(magic, []byte("BZh")), bytes.HasPrefix(magic, []byte("\xfd7zXZ")), bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return nil, invalid("the archive is compressed with something else than gzip: send it plain")
	}
	return in, nil
}

// destination checks that a directory can be written to and returns it with all links followed.
func (r *Root) destination(abs string) (string, error) {
	dest, err := r.resolve(abs)
	if err != nil {
		return "", err
	}
	dir, err := r.openDir(dest)
	if errors.Is(err, unix.ENOTDIR) {
		return "", ErrNotDirectory
	}
	if err != nil {
		return "", err
	}
	defer dir.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return "", &fs.PathError{Op: "statfs", Path: dest, Err: err}
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return "", r.readOnly(dir)
	}
	return dest, nil
}

// readOnly is the error for a directory that cannot be written to.
func (r *Root) readOnly(dir *os.File) error {
	if st, err := status(dir); err == nil && st.Dev != r.dev {
		return ErrReadOnlyMount
	}
	return ErrReadOnly
}

type extractor struct {
	ctx   context.Context
	root  *Root
	dest  string
	owner *Owner
	dirs  []dirTime
}

// dirTime is when a directory was changed, which each entry in it would change again.
type dirTime struct {
	path string
	at   time.Time
}

// entry writes one entry of the archive.
func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := inside(h.Name)
	if err != nil || name == "." {
		return err // the directory itself is the container's
	}
	parent, err := x.parent(path.Join(x.dest, path.Dir(name)), 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	at := place{parent, path.Base(name)}
	exists, err := x.makeRoom(at, h)
	if err == nil {
		err = x.make(at, h, content, exists)
	}
	if errors.Is(err, unix.EROFS) {
		return x.root.readOnly(parent)
	}
	return err
}

// inside is an entry's name from the destination; absolute names begin there too.
func inside(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", invalid("the archive's entry %q is outside of the destination", name)
	}
	return clean, nil
}

// parent opens a directory for an entry and makes it when it is not there.
func (x *extractor) parent(name string, depth int) (*os.File, error) {
	dir, err := x.root.openDir(name)
	if !errors.Is(err, fs.ErrNotExist) || name == "/" {
		return dir, err
	}
	if depth > maxDepth {
		return nil, invalid("%s is more than %d directories deep", name, maxDepth)
	}
	above, err := x.parent(path.Dir(name), depth+1)
	if err != nil {
		return nil, err
	}
	defer above.Close()
	at := place{above, path.Base(name)}
	if err := unix.Mkdirat(int(above.Fd()), at.base, 0o755); err != nil {
		if errors.Is(err, unix.EROFS) {
			return nil, x.root.readOnly(above)
		}
		// A link that leads nowhere is there and is not.
		return nil, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	if err := x.chown(at, &tar.Header{}); err != nil {
		return nil, err
	}
	return x.root.openDir(name)
}

// makeRoom takes away what an entry replaces; true when it is a directory that stays.
func (x *extractor) makeRoom(at place, h *tar.Header) (bool, error) {
	st, err := at.status()
	if err != nil || st == nil {
		return false, err
	}
	isDir, toBe := st.Mode&unix.S_IFMT == unix.S_IFDIR, h.Typeflag == tar.TypeDir
	switch {
	case isDir && toBe:
		return true, nil
	case isDir:
		return false, invalid("cannot overwrite directory %q with non-directory %q", at.path(), x.dest)
	case toBe:
		return false, invalid("cannot overwrite non-directory %q with directory %q", at.path(), x.dest)
	}
	// The kernel protects only the mounts of our own namespace: those of the container would go with the name.
	if mounted, err := at.mounted(); err != nil || mounted {
		if err == nil {
			err = invalid("%s is mounted into the container and cannot be replaced", at.path())
		}
		return false, err
	}
	return false, at.remove()
}

func (x *extractor) make(at place, h *tar.Header, content io.Reader, exists bool) error {
	fd, base, perm := int(at.dir.Fd()), at.base, uint32(h.Mode&0o7777)
	var err error
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return x.makeFile(at, h, content)
	case tar.TypeDir:
		if !exists {
			err = unix.Mkdirat(fd, base, perm)
		}
		if len(x.dirs) < maxDirs {
			x.dirs = append(x.dirs, dirTime{at.path(), h.ModTime})
		}
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, fd, base)
	case tar.TypeFifo:
		err = unix.Mknodat(fd, base, unix.S_IFIFO|perm, 0)
	case tar.TypeLink:
		return x.makeLink(at, h)
	case tar.TypeChar, tar.TypeBlock:
		return invalid("the archive's entry %q is a device, which cannot be copied into a container", h.Name)
	default:
		return invalid("the archive's entry %q is of the unknown type %q", h.Name, h.Typeflag)
	}
	if err != nil {
		return &fs.PathError{Op: "make", Path: h.Name, Err: err}
	}
	if err := x.chown(at, h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		return at.setTime(h.ModTime)
	}
	f, err := openAt(at.dir, base, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer f.Close()
	// A descriptor that only names a file takes no mode but by this way; what it names cannot be exchanged any more.
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), perm); err != nil {
		return &fs.PathError{Op: "chmod", Path: h.Name, Err: err}
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	return at.setTime(h.ModTime)
}

func (x *extractor) makeFile(at place, h *tar.Header, content io.Reader) error {
	perm := uint32(h.Mode & 0o7777)
	fd, err := unix.Openat(int(at.dir.Fd()), at.base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "create", Path: h.Name, Err: err}
	}
	f := os.NewFile(uintptr(fd), h.Name)
	// The holes of a sparse file take nothing of the archive: only here is it seen that nobody waits any more.
	_, err = io.Copy(f, &untilDone{x.ctx, content})
	uid, gid, ownerErr := x.ids(h)
	err = errors.Join(err, ownerErr)
	if err == nil {
		// The mode comes last: a new owner takes its special bits away.
		err = errors.Join(unix.Fchown(fd, uid, gid), unix.Fchmod(fd, perm))
	}
	if data := h.PAXRecords[xattrPrefix+capability]; data != "" && err == nil {
		if err = unix.Fsetxattr(fd, capability, []byte(data), 0); errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
	}
	if err == nil {
		err = at.setTime(h.ModTime)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		return nil
	}
	// Half a file would pass for a whole one, and keep a full disk full.
	_ = at.remove()
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return fmt.Errorf("write %s: %w", h.Name, err)
}

// makeLink gives a file of the archive one more name.
func (x *extractor) makeLink(at place, h *tar.Header) error {
	target, err := inside(h.Linkname)
	if err != nil {
		return err
	}
	dir, err := x.root.openDir(path.Join(x.dest, path.Dir(target)))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Linkat(int(dir.Fd()), path.Base(target), int(at.dir.Fd()), at.base, 0); err != nil {
		return &fs.PathError{Op: "link", Path: h.Name, Err: err}
	}
	return nil
}

// ids are those of an entry's owner.
func (x *extractor) ids(h *tar.Header) (uid, gid int, err error) {
	uid, gid = h.Uid, h.Gid
	if x.owner != nil {
		uid, gid = x.owner.UID, x.owner.GID
	}
	if uid < 0 || gid < 0 || int64(uid) > maxID || int64(gid) > maxID {
		return 0, 0, invalid("the archive's entry %q belongs to user %d and group %d, which cannot be", h.Name, uid, gid)
	}
	return uid, gid, nil
}

func (x *extractor) chown(at place, h *tar.Header) error {
	uid, gid, err := x.ids(h)
	if err != nil {
		return err
	}
	return at.chown(uid, gid)
}

// setTimes gives directories their times back.
func (x *extractor) setTimes() error {
	for i := len(x.dirs) - 1; i >= 0; i-- {
		d := x.dirs[i]
		parent, err := x.root.openDir(path.Dir(d.path))
		if err == nil {
			err = place{parent, path.Base(d.path)}.setTime(d.at)
			_ = parent.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
	}
	return nil
}
