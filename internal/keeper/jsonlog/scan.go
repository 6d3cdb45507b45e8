package jsonlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	// MaxEntry is the largest line of a log file that a Reader accepts, in
	// bytes; longer ones (which no Writer makes) are skipped.
	MaxEntry = 1 << 20
	// maxFiles bounds the files of one log that a Reader opens.
	maxFiles = 1000
)

// rotatedNames lists the rotated files of the log at path, oldest first.
func rotatedNames(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing log files: %w", err)
	}
	var nums []int
	for _, e := range entries {
		ext, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if n, err := strconv.Atoi(ext); ok && err == nil && n > 0 && strconv.Itoa(n) == ext {
			nums = append(nums, n)
		}
	}
	slices.Sort(nums)
	slices.Reverse(nums)
	names := make([]string, len(nums))
	for i, n := range nums {
		names[i] = Rotated(path, n)
	}
	return names, nil
}

// openAll opens all files of the log, oldest first. It looks again when a
// rotation came between, so that no file is missed or seen twice.
func openAll(path string) ([]*os.File, error) {
	for try := 0; ; try++ {
		files, err := openOnce(path)
		if err != nil {
			return nil, err
		}
		last := files[len(files)-1]
		if sameAsPath(last, path) || try >= 20 {
			return files, nil
		}
		closeAll(files)
	}
}

func openOnce(path string) ([]*os.File, error) {
	cur, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	names, err := rotatedNames(path)
	if err != nil {
		cur.Close()
		return nil, err
	}
	names = names[max(0, len(names)-maxFiles):]
	var files []*os.File
	for _, name := range names {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // rotated away; openAll notices
		}
		if err != nil {
			cur.Close()
			closeAll(files)
			return nil, fmt.Errorf("opening a rotated log: %w", err)
		}
		files = append(files, f)
	}
	return append(files, cur), nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// sameAsPath tells whether f is still what path names.
func sameAsPath(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// A scanner walks over the complete lines of files.
type scanner struct {
	buf  []byte
	skip bool // inside a line that is too long
}

// lines calls fn for each complete line of f from offset off on and returns
// the offset behind the last of them. A torn last line is left for later.
func (s *scanner) lines(f *os.File, off int64, fn func([]byte) error) (int64, error) {
	if s.buf == nil {
		s.buf = make([]byte, 64<<10)
	}
	n := 0
	for {
		m, err := f.ReadAt(s.buf[n:], off+int64(n))
		if err != nil && err != io.EOF {
			return off, fmt.Errorf("reading the log: %w", err)
		}
		scanned := n
		n += m
		used := 0
		for {
			i := bytes.IndexByte(s.buf[max(used, scanned):n], '\n')
			if i < 0 {
				break
			}
			i += max(used, scanned)
			line := s.buf[used:i]
			used = i + 1
			if s.skip {
				s.skip = false
				continue
			}
			if err := fn(line); err != nil {
				return off + int64(used), err
			}
		}
		off += int64(used)
		n = copy(s.buf, s.buf[used:n])
		if err == io.EOF || m == 0 && n < len(s.buf) {
			return off, nil
		}
		if n == len(s.buf) {
			if len(s.buf) < MaxEntry {
				s.buf = append(s.buf, make([]byte, len(s.buf))...)
				continue
			}
			s.skip = true
			off += int64(n)
			n = 0
		}
	}
}

// tailStart finds where the last n lines begin: the index of a file and an
// offset in it. It reads from the end, so its cost depends on n only.
func tailStart(files []*os.File, n int) (int, int64, error) {
	block := make([]byte, 64<<10)
	for i := len(files) - 1; i >= 0; i-- {
		st, err := files[i].Stat()
		if err != nil {
			return 0, 0, fmt.Errorf("looking at the log's size: %w", err)
		}
		if n == 0 {
			end, err := lastNewline(files[i], st.Size(), block)
			return i, end, err
		}
		off, got, err := back(files[i], st.Size(), n, block)
		if err != nil {
			return 0, 0, err
		}
		if got == n && (off > 0 || i == 0) {
			return i, off, nil
		}
		if n -= got; n == 0 {
			return i, 0, nil
		}
	}
	return 0, 0, nil
}

// lastNewline returns the offset behind the last newline before size.
func lastNewline(f *os.File, size int64, block []byte) (int64, error) {
	for at := size; at > 0; {
		k := min(at, int64(len(block)))
		at -= k
		if _, err := f.ReadAt(block[:k], at); err != nil && err != io.EOF {
			return 0, fmt.Errorf("reading the log's end: %w", err)
		}
		if i := bytes.LastIndexByte(block[:k], '\n'); i >= 0 {
			return at + int64(i) + 1, nil
		}
	}
	return 0, nil
}

// back finds the start of the last n complete lines of f, and how many there
// are, at most n.
func back(f *os.File, size int64, n int, block []byte) (off int64, got int, err error) {
	ends := 0 // newlines seen; the first one ends the last line
	for at := size; at > 0; {
		k := min(at, int64(len(block)))
		at -= k
		if _, err := f.ReadAt(block[:k], at); err != nil && err != io.EOF {
			return 0, 0, fmt.Errorf("reading the log's end: %w", err)
		}
		for i := k; ; {
			j := bytes.LastIndexByte(block[:i], '\n')
			if j < 0 {
				break
			}
			if ends == n {
				return at + int64(j) + 1, n, nil
			}
			ends++
			i = int64(j)
		}
	}
	return 0, ends, nil
}
