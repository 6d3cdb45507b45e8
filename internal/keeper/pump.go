package keeper

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/keeper/jsonlog"
)

const (
	// pipeSize is how much a FIFO holds, in bytes, where the kernel allows
	// it: what a container can write while no keeper reads.
	pipeSize = 256 << 10
	// lull is how long a pump lets little output gather when there was some
	// just before: a line becomes visible that much later, and a chatty
	// container does not cost two system calls a line.
	lull   = 5 * time.Millisecond
	little = 16 << 10
	// maxDrain bounds what is read from a FIFO that is being closed while
	// somebody still writes.
	maxDrain = 16 << 20
	// dropRetry is how often a log that drops lines tries to write.
	dropRetry = time.Second
)

// openFIFO makes the FIFO at path if need be and opens it. It is opened for
// writing too, so that a writer's end is not the stream's.
func openFIFO(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("making a FIFO: %w", &os.PathError{Op: "mkfifo", Path: path, Err: err})
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a FIFO: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize) // the default size does too
	return os.NewFile(uintptr(fd), path), nil
}

// A pump carries one stream from its FIFO to the log. While there is nothing
// to read it holds no buffer.
type pump struct {
	table  *logTable
	log    *taskLog
	stream string
	file   *os.File
	raw    syscall.RawConn
	split  jsonlog.Splitter

	stopping atomic.Bool
	done     chan struct{}
}

func (p *pump) start() {
	p.stopping.Store(false)
	p.file.SetReadDeadline(time.Time{})
	p.done = make(chan struct{})
	go p.run()
}

// halt asks the pump to stop; wait joins it.
func (p *pump) halt() {
	p.stopping.Store(true)
	p.file.SetReadDeadline(time.Unix(1, 0))
}

func (p *pump) wait() {
	if p.done != nil {
		<-p.done
	}
}

func (p *pump) run() {
	defer close(p.done)
	dropping := p.retry() // an earlier keeper may have left a note to write
	for armed := false; ; {
		if dropping {
			p.file.SetReadDeadline(time.Now().Add(dropRetry))
		} else if armed {
			p.file.SetReadDeadline(time.Time{})
		}
		armed = dropping
		// halt sets its flag before the deadline, so looking at the flag
		// after setting one cannot miss it.
		if p.stopping.Load() {
			return
		}
		var n int
		var err error
		n, dropping, err = p.pass()
		if errors.Is(err, os.ErrDeadlineExceeded) && !p.stopping.Load() {
			dropping = p.retry()
		} else if err != nil {
			return // stopped or closed
		} else if n < little {
			time.Sleep(lull)
		}
	}
}

// pass waits for output, reads it once and writes it to the log.
func (p *pump) pass() (n int, dropping bool, err error) {
	var buf *[]byte
	var failed error
	err = p.raw.Read(func(fd uintptr) bool {
		p.table.slots <- struct{}{}
		buf = p.table.buffer()
		n, failed = readFD(fd, *buf)
		if failed == unix.EAGAIN {
			p.table.release(buf)
			buf = nil
			return false
		}
		return true
	})
	if buf == nil {
		return 0, false, err
	}
	defer p.table.release(buf)
	if failed != nil {
		return 0, false, os.NewSyscallError("read", failed)
	}
	return n, p.write((*buf)[:n]), nil
}

func readFD(fd uintptr, b []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), b)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// buffer and release hand out the memory for one pass; the caller of buffer
// holds a slot.
func (t *logTable) buffer() *[]byte {
	if b, ok := t.reads.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, pipeSize)
	return &b
}

func (t *logTable) release(b *[]byte) {
	t.reads.Put(b)
	<-t.slots
}

// write puts a chunk into the log and tells whether lines are being dropped.
func (p *pump) write(chunk []byte) bool {
	now := time.Now()
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	p.split.Split(chunk, p.appender(now))
	p.log.writer.Flush(now)
	return p.log.writer.Dropped() > 0
}

func (p *pump) appender(now time.Time) func([]byte, bool) {
	return func(piece []byte, end bool) { p.log.writer.Append(p.stream, piece, end, now) }
}

// retry lets a log that drops lines look whether it can write again.
func (p *pump) retry() bool {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	p.log.writer.Flush(time.Now())
	return p.log.writer.Dropped() > 0
}

// drain moves what is left in a stopped pump's FIFO to the log, the
// unfinished last line too.
func (p *pump) drain() {
	p.table.slots <- struct{}{}
	buf := p.table.buffer()
	defer p.table.release(buf)
	p.raw.Control(func(fd uintptr) {
		for total := 0; total < maxDrain; {
			n, err := readFD(fd, *buf)
			if err != nil || n == 0 {
				return
			}
			total += n
			p.write((*buf)[:n])
		}
	})
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	p.split.Finish(p.appender(time.Now()))
}
