package jsonlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	// flushSize is how much a Writer gathers before it writes in the
	// middle of a batch.
	flushSize = 256 << 10
	// retryAfter is how long a Writer waits after a failed write before it
	// tries again; what arrives meanwhile is counted and dropped.
	retryAfter = 250 * time.Millisecond
)

// A Config bounds a log on disk.
type Config struct {
	// MaxSize is the size in bytes at which a file is rotated; 0 means
	// never. A file exceeds it by at most one entry.
	MaxSize int64
	// MaxFiles is the number of files kept, the current one included; less
	// than 1 counts as 1.
	MaxFiles int
	// Attrs go into every entry.
	Attrs map[string]string
}

// Buffers is the memory that Writers share: a Writer needs a buffer only
// between Append and Flush, so a thousand quiet logs cost nothing. The zero
// value is ready and safe for concurrent use.
type Buffers struct{ pool sync.Pool }

func (p *Buffers) get() *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, flushSize+8*MaxPiece)
	return &b
}

func (p *Buffers) put(b *[]byte) {
	*b = (*b)[:0]
	p.pool.Put(b)
}

// A Writer appends entries to one log and rotates it. When the disk is full
// it neither blocks nor fails: it drops, counts, and writes a note about it
// once there is space. It is not safe for concurrent use.
type Writer struct {
	path   string
	cfg    Config
	attrs  []byte
	shared *Buffers

	file *os.File
	size int64

	buf   *[]byte // nil between Flush and Append
	lines int64   // lines that end in buf

	stamp   []byte
	stamped time.Time

	dropped int64
	why     error
	retryAt time.Time
}

// NewWriter makes a Writer for the log at path. No file is touched before
// Open or the first Flush.
func NewWriter(path string, cfg Config, shared *Buffers) *Writer {
	cfg.MaxFiles = max(cfg.MaxFiles, 1)
	return &Writer{path: path, cfg: cfg, attrs: encodeAttrs(cfg.Attrs), shared: shared}
}

// Open opens or creates the file, and its directory (0700) when it is
// missing. A last line that an earlier writer left torn is cut off. A full
// disk is no error: the Writer begins by dropping.
func (w *Writer) Open() error {
	err := w.open()
	if full(err) {
		return nil
	}
	return err
}

func (w *Writer) open() error {
	if w.file != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(w.path), 0o700); err != nil {
		return fmt.Errorf("making the log directory: %w", err)
	}
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	size, err := mendTail(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("mending the log's end: %w", err)
	}
	w.file, w.size = f, size
	return nil
}

// mendTail cuts a torn last line and returns the size left.
func mendTail(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size, end := st.Size(), int64(0)
	block := make([]byte, 4<<10)
	for at := size; at > 0; {
		n := min(at, int64(len(block)))
		at -= n
		if _, err := f.ReadAt(block[:n], at); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(block[:n], '\n'); i >= 0 {
			end = at + int64(i) + 1
			break
		}
	}
	if end == size {
		return size, nil
	}
	return end, f.Truncate(end)
}

// Append encodes one piece of a line that arrived at the time now. It
// becomes visible with the next Flush, or earlier when much is gathered.
func (w *Writer) Append(stream string, piece []byte, end bool, now time.Time) {
	if w.buf == nil {
		w.buf = w.shared.get()
	}
	if w.stamp == nil || !now.Equal(w.stamped) {
		w.stamp, w.stamped = encodeStamp(w.stamp[:0], now), now
	}
	if w.full(len(*w.buf)) {
		w.write(now)
		w.rotate()
	}
	*w.buf = appendEntry(*w.buf, stream, piece, end, w.attrs, w.stamp)
	if end {
		w.lines++
	}
	if len(*w.buf) >= flushSize {
		w.write(now)
	}
}

// full tells whether the file has reached its size once more bytes are in.
func (w *Writer) full(more int) bool {
	return w.cfg.MaxSize > 0 && w.size+int64(more) >= w.cfg.MaxSize
}

// Flush writes what was appended. It also tries to leave the dropping state,
// so it is worth calling without an Append then.
func (w *Writer) Flush(now time.Time) {
	w.write(now)
	if w.buf != nil {
		w.shared.put(w.buf)
		w.buf = nil
	}
}

// Dropped counts the lines that were dropped and that no note in the log
// tells of yet.
func (w *Writer) Dropped() int64 { return w.dropped }

// AddDropped adds lines that an earlier Writer of this log dropped because
// the disk was full.
func (w *Writer) AddDropped(n int64) {
	if n > 0 {
		w.dropped += n
		w.why = syscall.ENOSPC
	}
}

// Abandon closes the file and writes nothing: another process has the log.
func (w *Writer) Abandon() {
	if w.file != nil {
		w.file.Close()
		w.file = nil
	}
}

// Close flushes and closes the file.
func (w *Writer) Close(now time.Time) error {
	w.retryAt = time.Time{}
	w.Flush(now)
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// write empties the buffer, onto the disk or, when that fails, nowhere.
func (w *Writer) write(now time.Time) {
	pending := w.buf != nil && len(*w.buf) > 0
	if !pending && w.dropped == 0 {
		return
	}
	if w.why != nil && now.Before(w.retryAt) {
		w.drop(w.why)
		return
	}
	err := w.open()
	if err == nil && w.dropped > 0 {
		err = w.put(w.note(now))
	}
	if err == nil {
		w.dropped, w.why = 0, nil
	}
	if err == nil && pending {
		err = w.put(*w.buf)
	}
	if err != nil {
		w.retryAt = now.Add(retryAfter)
		w.drop(err)
		return
	}
	w.lines = 0
	if w.buf != nil {
		*w.buf = (*w.buf)[:0]
	}
}

func (w *Writer) drop(why error) {
	if w.buf != nil {
		*w.buf = (*w.buf)[:0]
	}
	w.dropped += w.lines
	w.lines = 0
	w.why = why
}

// put writes whole entries. After a short write it keeps the entries that
// fitted and cuts the torn one off.
func (w *Writer) put(b []byte) error {
	n, err := w.file.Write(b)
	if err == nil {
		w.size += int64(n)
		return nil
	}
	whole := bytes.LastIndexByte(b[:n], '\n') + 1
	if terr := w.file.Truncate(w.size + int64(whole)); terr != nil {
		// The tail stays torn; opening again mends it.
		w.file.Close()
		w.file = nil
		return errors.Join(err, terr)
	}
	w.size += int64(whole)
	w.lines -= min(w.lines, int64(bytes.Count(b[:whole], []byte(`\n","stream":"`))))
	return err
}

// note is the entry that stands for the lines dropped.
func (w *Writer) note(now time.Time) []byte {
	why := "disk full"
	if !full(w.why) {
		why = w.why.Error()
	}
	text := "skep: " + strconv.FormatInt(w.dropped, 10) + " lines dropped, " + why
	return appendEntry(nil, "stderr", []byte(text), true, w.attrs, encodeStamp(nil, now))
}

// rotate renames the files upwards and begins a new one. When it cannot, the
// current file goes on and the next Append tries again.
func (w *Writer) rotate() {
	if w.file == nil {
		return
	}
	if w.cfg.MaxFiles == 1 {
		// A new file rather than a truncated one: whoever reads the old
		// one can finish.
		if os.Remove(w.path) != nil {
			return
		}
	} else {
		for i := w.cfg.MaxFiles - 2; i >= 1; i-- {
			err := os.Rename(Rotated(w.path, i), Rotated(w.path, i+1))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return
			}
		}
		if os.Rename(w.path, Rotated(w.path, 1)) != nil {
			return
		}
	}
	w.file.Close()
	w.file, w.size = nil, 0
	if err := w.open(); err != nil {
		w.why = err
	}
}

// Rotated returns the name of the i-th rotated file of the log at path; the
// highest i is the oldest.
func Rotated(path string, i int) string { return path + "." + strconv.Itoa(i) }

// Remove deletes the log at path with all its rotated files. What is not
// there is no error.
func Remove(path string) error {
	var errs []error
	names, err := rotatedNames(path)
	if err != nil {
		return err
	}
	for _, name := range append(names, path) {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// full tells that an error comes from a lack of space.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, io.ErrShortWrite)
}
