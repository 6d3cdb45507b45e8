package rootfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxChanges bounds what is told of one container.
const maxChanges = 1 << 17

// Kind is what happened to a file.
type Kind int

// The kinds of changes, numbered as Docker's API has them.
const (
	Modified Kind = iota
	Added
	Deleted
)

// Change is one file that is not as it was in the image.
type Change struct {
	Kind Kind
	Path string
}

// Changes compares the uppermost directory of an overlay file system with those below, highest first, and returns what is different,
// by path. A directory counts as modified when something in it is. Empty files and directories at the paths in ignore, which
// mounts were made for, are left out.
func Changes(ctx context.Context, upper *os.File, lower []*os.File, ignore []string) ([]Change, error) {
	d := &differ{ctx: ctx, ignore: map[string]bool{}}
	for _, p := range ignore {
		d.ignore[path.Clean(p)] = true
	}
	dir, err := openAt(upper, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if _, err := d.walk(dir, lower, "/", 0); err != nil {
		return nil, err
	}
	slices.SortFunc(d.found, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return d.found, nil
}

type differ struct {
	ctx    context.Context
	ignore map[string]bool
	found  []Change
}

func (d *differ) add(kind Kind, name string) error {
	if len(d.found) >= maxChanges {
		return invalid("the container has changed more than %d files", maxChanges)
	}
	d.found = append(d.found, Change{kind, name})
	return nil
}

// walk compares one directory. It reports whether all that is in it was left out.
func (d *differ) walk(dir *os.File, lower []*os.File, name string, depth int) (ignored bool, err error) {
	if depth > maxDepth {
		return false, invalid("%s is more than %d directories deep", name, maxDepth)
	}
	if opaque(dir) {
		// It replaces what is below: what it does not have is gone.
		if err := d.gone(dir, lower, name); err != nil {
			return false, err
		}
	}
	left, all := 0, 0
	for {
		names, err := dir.Readdirnames(dirBatch)
		for _, n := range names {
			if err := d.ctx.Err(); err != nil {
				return false, err
			}
			all++
			out, err := d.entry(dir, lower, n, path.Join(name, n), depth)
			if err != nil {
				return false, err
			}
			if out {
				left++
			}
		}
		if errors.Is(err, io.EOF) {
			return all > 0 && all == left, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// entry compares one entry of a directory, and reports whether it is left out.
func (d *differ) entry(dir *os.File, lower []*os.File, base, name string, depth int) (ignored bool, err error) {
	st, err := place{dir, base}.status()
	if err != nil || st == nil {
		return false, err // it went meanwhile
	}
	if whiteout(st) {
		return false, d.add(Deleted, name)
	}
	kind := Added
	if existed(lower, base) {
		kind = Modified
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if d.ignore[name] && st.Size == 0 {
			return true, nil
		}
		return false, d.add(kind, name)
	}
	sub, err := openAt(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	defer sub.Close()
	below, err := merged(lower, base)
	defer func() {
		for _, f := range below {
			_ = f.Close()
		}
	}()
	if err != nil {
		return false, err
	}
	before := len(d.found)
	out, err := d.walk(sub, below, name, depth+1)
	if err != nil {
		return false, err
	}
	nothing := len(d.found) == before
	if nothing && (out || d.ignore[name]) {
		return true, nil
	}
	return false, d.add(kind, name)
}

// gone notes what an opaque directory hides and does not have.
func (d *differ) gone(dir *os.File, lower []*os.File, name string) error {
	seen := map[string]bool{}
	for _, l := range lower {
		in, err := openAt(l, ".", unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		names, err := in.Readdirnames(maxChanges)
		_ = in.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for _, n := range names {
			if seen[n] {
				continue
			}
			seen[n] = true
			now, err := place{dir, n}.status()
			if err != nil {
				return err
			}
			if now == nil && existed(lower, n) {
				if err := d.add(Deleted, path.Join(name, n)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// existed reports whether the merged lower directories have an entry.
func existed(lower []*os.File, base string) bool {
	for _, l := range lower {
		if st, err := (place{l, base}).status(); err == nil && st != nil {
			return !whiteout(st)
		}
	}
	return false
}

// merged opens the lower directories that are seen as one under a name, highest first.
func merged(lower []*os.File, base string) ([]*os.File, error) {
	var out []*os.File
	for _, l := range lower {
		st, err := place{l, base}.status()
		if err != nil {
			return out, err
		}
		if st == nil {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			break // a file, or the mark of one that was deleted, hides what is below
		}
		f, err := openAt(l, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return out, err
		}
		out = append(out, f)
		if opaque(f) {
			break
		}
	}
	return out, nil
}

// whiteout reports whether an entry is overlayfs's mark of one that was deleted.
func whiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// opaque reports whether a directory hides those below it.
func opaque(dir *os.File) bool {
	buf := make([]byte, 8)
	n, err := unix.Fgetxattr(int(dir.Fd()), "trusted.overlay.opaque", buf)
	return err == nil && bytes.Equal(buf[:n], []byte("y"))
}
