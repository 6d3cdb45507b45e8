package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// place is a name in an open directory, whatever is there or is to be. Links are not followed.
type place struct {
	dir  *os.File
	base string
}

// path is for people: the directory may have moved.
func (p place) path() string { return path.Join(p.dir.Name(), p.base) }

// fail is an error that says what could not be done; nil when there is none.
func (p place) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: p.path(), Err: err}
}

// status is what is there; nil when there is nothing.
func (p place) status() (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(p.dir.Fd()), p.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return &st, p.fail("stat", err)
}

// mounted reports whether something is mounted there.
func (p place) mounted() (bool, error) {
	var dir, entry unix.Statx_t
	const want = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID
	err := unix.Statx(int(p.dir.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, want, &dir)
	if err == nil {
		err = unix.Statx(int(p.dir.Fd()), p.base, unix.AT_SYMLINK_NOFOLLOW, want, &entry)
	}
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, p.fail("stat", err)
	}
	if dir.Mask&entry.Mask&unix.STATX_MNT_ID != 0 {
		return dir.Mnt_id != entry.Mnt_id, nil
	}
	return dir.Dev_major != entry.Dev_major || dir.Dev_minor != entry.Dev_minor, nil
}

// remove takes away what is there, which is no directory.
func (p place) remove() error {
	err := unix.Unlinkat(int(p.dir.Fd()), p.base, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return p.fail("replace", err)
}

func (p place) chown(uid, gid int) error {
	return p.fail("chown", unix.Fchownat(int(p.dir.Fd()), p.base, uid, gid, unix.AT_SYMLINK_NOFOLLOW))
}

// setTime says when what is there was changed.
func (p place) setTime(at time.Time) error {
	if at.IsZero() || at.Unix() < 0 {
		at = time.Unix(0, 0)
	}
	ts, err := unix.TimeToTimespec(at)
	if err == nil {
		err = unix.UtimesNanoAt(int(p.dir.Fd()), p.base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
	return p.fail("set the time of", err)
}
