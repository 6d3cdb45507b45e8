package jsonlog

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// All as ReadOptions.Tail asks for every entry.
const All = -1

// pollEvery is how often a follower looks when the kernel grants no inotify
// watch.
const pollEvery = 250 * time.Millisecond

// ReadOptions select what Read hands over.
type ReadOptions struct {
	// Stdout and Stderr select streams; neither means both.
	Stdout, Stderr bool
	// Since leaves out entries before it, Until ends before the first
	// entry after it; zero means no bound.
	Since, Until time.Time
	// Tail is the number of last entries to begin with, counted as Docker
	// counts (before Since and the streams are looked at). All for all.
	Tail int
	// Follow goes on with entries as they arrive, until the context ends,
	// Until has passed, Done is closed or the directory is removed.
	Follow bool
	// Done, when closed, tells a follower that the log is complete: it
	// hands over the rest and returns.
	Done <-chan struct{}
}

// A Reader reads logs. Its zero value is ready and safe for concurrent use;
// all its followers share one inotify descriptor, which is open only while
// there are any.
type Reader struct {
	watch watcher
}

// errStop ends a scan early; it never leaves the package.
var errStop = errors.New("stop")

// Read calls fn for the entries of the log of container id in directory dir,
// oldest first, over rotated files too. What is no entry is skipped and a
// torn last line is not handed over. It returns fn's error, the context's, an
// error that is fs.ErrNotExist when there is no log (unless following: then
// it waits for it), or nil at the end.
func (r *Reader) Read(ctx context.Context, dir, id string, o ReadOptions, fn func(*Message) error) error {
	if !o.Stdout && !o.Stderr {
		o.Stdout, o.Stderr = true, true
	}
	c := &cursor{path: Path(dir, id), opts: o, fn: fn, ctx: ctx}
	defer c.close()
	var err error
	if o.Follow {
		err = r.follow(c)
	} else {
		err = c.begin()
	}
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// follow reads what is there and what comes.
func (r *Reader) follow(c *cursor) error {
	wake, cancel, err := r.watch.add(filepath.Dir(c.path))
	if err == nil {
		defer cancel()
	}
	var poll <-chan time.Time
	if err != nil {
		t := time.NewTicker(pollEvery)
		defer t.Stop()
		poll = t.C
	}
	var until <-chan time.Time
	if !c.opts.Until.IsZero() {
		t := time.NewTimer(time.Until(c.opts.Until))
		defer t.Stop()
		until = t.C
	}
	for last := false; ; {
		if err := c.advance(); err != nil {
			return err
		}
		if last {
			return nil
		}
		if _, err := os.Stat(filepath.Dir(c.path)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-c.opts.Done:
			last = true
		case <-until:
			last = true
		case <-wake:
		case <-poll:
		}
	}
}

// A cursor is one Read's place in a log.
type cursor struct {
	ctx  context.Context
	path string
	opts ReadOptions
	fn   func(*Message) error

	scan  scanner
	dec   decoder
	file  *os.File // the newest file read so far
	off   int64
	count int
}

func (c *cursor) close() {
	if c.file != nil {
		c.file.Close()
	}
}

// begin reads what the log holds now.
func (c *cursor) begin() error {
	files, err := openAll(c.path)
	if err != nil {
		return err
	}
	first, off := 0, int64(0)
	if c.opts.Tail >= 0 {
		first, off, err = tailStart(files, c.opts.Tail)
	} else if !c.opts.Since.IsZero() {
		first = c.firstSince(files)
	}
	if err != nil {
		closeAll(files)
		return err
	}
	closeAll(files[:first])
	return c.through(files[first:], off)
}

// through reads the files from off in the first one on, keeps the last open
// and closes the others.
func (c *cursor) through(files []*os.File, off int64) error {
	for i, f := range files {
		if c.file != nil {
			c.file.Close()
		}
		c.file, c.off = f, off
		c.scan.skip = false
		if err := c.drain(); err != nil {
			closeAll(files[i+1:])
			return err
		}
		off = 0
	}
	return nil
}

func (c *cursor) drain() (err error) {
	c.off, err = c.scan.lines(c.file, c.off, c.line)
	return err
}

func (c *cursor) line(b []byte) error {
	if c.count++; c.count&63 == 0 && c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	m, ok := c.dec.decode(b)
	if !ok || m.Time.Before(c.opts.Since) {
		return nil
	}
	if !c.opts.Until.IsZero() && m.Time.After(c.opts.Until) {
		return errStop
	}
	if m.Stream == "stdout" && !c.opts.Stdout || m.Stream == "stderr" && !c.opts.Stderr {
		return nil
	}
	return c.fn(m)
}

// firstSince returns the first file that can hold entries since the asked
// time: the newest one that begins before it.
func (c *cursor) firstSince(files []*os.File) int {
	for i := len(files) - 1; i > 0; i-- {
		var s scanner
		var d decoder
		before := false
		s.lines(files[i], 0, func(b []byte) error {
			m, ok := d.decode(b)
			if !ok {
				return nil
			}
			before = m.Time.Before(c.opts.Since)
			return errStop
		})
		if before {
			return i
		}
	}
	return 0
}

// advance reads what has come since the last call, over rotations.
func (c *cursor) advance() error {
	if c.file == nil {
		err := c.begin()
		if errors.Is(err, fs.ErrNotExist) {
			c.opts.Tail = All // not made yet: all of it will be new
			return nil
		}
		return err
	}
	st, err := c.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() < c.off {
		c.off = 0 // somebody truncated it
	}
	for !sameAsPath(c.file, c.path) {
		// Rotated: the old file is final now, so this drain is its last.
		files, err := openAll(c.path)
		if errors.Is(err, fs.ErrNotExist) {
			return c.orphan() // between two files, or removed
		}
		if err != nil {
			return err
		}
		if err := c.drain(); err != nil {
			closeAll(files)
			return err
		}
		newer := c.newer(files)
		closeAll(files[:newer])
		if err := c.through(files[newer:], 0); err != nil {
			return err
		}
	}
	return c.drain()
}

// orphan reads on in a file that is not the log's current one any more, while
// there is no current one. When the file was removed it is let go of: while it
// is open the kernel does not tell that its directory is removed.
func (c *cursor) orphan() error {
	var st unix.Stat_t
	raw, err := c.file.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) })
	}
	if err != nil {
		return err
	}
	if err := c.drain(); err != nil || st.Nlink > 0 {
		return err
	}
	c.file.Close()
	c.file, c.opts.Tail = nil, All
	return nil
}

// newer returns the index of the first file after the current one.
func (c *cursor) newer(files []*os.File) int {
	cur, err := c.file.Stat()
	if err != nil {
		return 0
	}
	for i, f := range files {
		if st, err := f.Stat(); err == nil && os.SameFile(cur, st) {
			return i + 1
		}
	}
	return 0
}
