package rootfs

import (
	"archive/tar"
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
	// dirBatch is how many names of a directory are held at a time.
	dirBatch = 1024
	// maxHardLinks bounds how many files with several names are remembered; of more, each name is a file of its own.
	maxHardLinks = 1 << 16
	capability   = "security.capability"
	xattrPrefix  = "SCHILY.xattr."
)

// Archive writes what a path names as a tar archive, a directory with all that is below it. Entries begin with the last element
// of the path as it was asked for. Sockets, and what the kernel's own file systems show, are left out.
func (r *Root) Archive(ctx context.Context, name string, w io.Writer) error {
	abs := absolute(name)
	dir, base := path.Split(abs)
	as := path.Base(abs)
	if base == "" || base == "." {
		dir, base = abs, "."
	}
	parent, err := r.openDir(dir)
	if err != nil {
		return err
	}
	defer parent.Close()
	a := &archiver{ctx: ctx, tar: tar.NewWriter(w), links: map[[2]uint64]string{}}
	if err := a.add(parent, base, as, 0); err != nil {
		return err
	}
	if err := a.tar.Close(); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}

type archiver struct {
	ctx context.Context
	tar *tar.Writer
	// links are the names under which files with several have been written.
	links map[[2]uint64]string
}

// add writes an entry of an open directory, as name.
func (a *archiver) add(dir *os.File, base, name string, depth int) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return invalid("%s is more than %d directories deep", name, maxDepth)
	}
	f, err := openAt(dir, base, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		if depth > 0 && errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		return err
	}
	defer f.Close()
	st, err := status(f)
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return a.addDir(f, h, depth)
	case unix.S_IFREG:
		return a.addFile(f, h, st)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readLinkAt(f, ""); err != nil {
			return err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return nil
	}
	return a.header(h)
}

func (a *archiver) header(h *tar.Header) error {
	if err := a.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}

func (a *archiver) addDir(at *os.File, h *tar.Header, depth int) error {
	dir, err := openHeld(at)
	if err != nil {
		return err
	}
	defer dir.Close()
	name := h.Name
	h.Typeflag, h.Name = tar.TypeDir, strings.TrimSuffix(name, "/")+"/"
	if err := a.header(h); err != nil {
		return err
	}
	if kernels, err := ofKernel(dir); err != nil || kernels {
		return err
	}
	for {
		names, err := dir.Readdirnames(dirBatch)
		for _, n := range names {
			if err := a.add(dir, n, strings.TrimSuffix(name, "/")+"/"+n, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (a *archiver) addFile(at *os.File, h *tar.Header, st *unix.Stat_t) error {
	if st.Nlink > 1 {
		key := [2]uint64{st.Dev, st.Ino}
		if first, ok := a.links[key]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return a.header(h)
		}
		if len(a.links) < maxHardLinks && len(h.Name) <= unix.PathMax {
			a.links[key] = h.Name
		}
	}
	f, err := openHeld(at)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := status(f)
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, now.Size
	buf := make([]byte, 1024)
	if n, err := unix.Fgetxattr(int(f.Fd()), capability, buf); err == nil {
		h.PAXRecords = map[string]string{xattrPrefix + capability: string(buf[:n])}
	}
	if err := a.header(h); err != nil {
		return err
	}
	n, err := io.Copy(a.tar, io.LimitReader(&untilDone{a.ctx, f}, h.Size))
	if err == nil && n < h.Size {
		err = fmt.Errorf("%s was cut short while it was read: try again", h.Name)
	}
	return err
}

// untilDone reads until its context ends.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u *untilDone) Read(b []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(b)
}
