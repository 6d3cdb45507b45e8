package raftlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// space knows how much room the data disk has. It keeps a reserve: a file that is
// given up when the disk is full, so that the few bytes without which a member
// cannot even vote can still be written. Safe for concurrent use.
type space struct {
	dir     string
	mark    uint64 // proposals are refused below it
	reserve int64
	free    func(dir string) (uint64, error)

	mu   sync.Mutex
	held bool // the reserve exists
}

// freeSpace is the room that this process may use on the file system of dir, in bytes.
func freeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("measure free space of %s: %w", dir, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// admit refuses a proposal when the disk is below the mark.
func (s *space) admit() error { return s.above(s.mark) }

// admitEntry refuses an entry that the leader has already admitted, on its disk,
// only at half the mark: a member that falls behind for want of space costs the
// others more than one that stops a little later.
func (s *space) admitEntry() error { return s.above(s.mark / 2) }

func (s *space) above(mark uint64) error {
	free, err := s.free(s.dir)
	if err != nil {
		return err
	}
	if free < mark {
		return &NoSpaceError{Dir: s.dir, Free: free, Mark: mark}
	}
	return nil
}

func (s *space) path() string { return filepath.Join(s.dir, "reserve") }

// hold makes the reserve if it is missing and there is room for it above the mark.
func (s *space) hold() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held {
		return nil
	}
	if err := s.above(s.mark + uint64(s.reserve)); err != nil {
		return nil // not now; it is tried again
	}
	f, err := os.OpenFile(s.path(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("make disk reserve: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, s.reserve)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.WriteAt(make([]byte, s.reserve), 0)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(s.path())
		return fmt.Errorf("make disk reserve: %w", err)
	}
	s.held = true
	return nil
}

// release gives the reserve up. It reports whether there was one.
func (s *space) release() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	return os.Remove(s.path()) == nil
}

// isFull reports whether an error means that the disk is full.
func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
