package jsonlog

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const watchMask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_ONLYDIR

// A watcher wakes followers when something in a directory changes. It has
// one inotify descriptor for all of them (a user may have few), open while
// there are followers. The zero value is ready.
type watcher struct {
	mu   sync.Mutex
	file *os.File
	done chan struct{}
	subs map[int32]map[chan struct{}]bool
}

// add watches dir. The channel gets a value when something changed, several
// changes may share one. cancel ends it and joins what was started.
func (w *watcher) add(dir string) (wake <-chan struct{}, cancel func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fresh := w.file == nil
	if fresh {
		fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
		if err != nil {
			return nil, nil, fmt.Errorf("watching for log lines: %w", err)
		}
		w.file = os.NewFile(uintptr(fd), "inotify")
		w.subs = make(map[int32]map[chan struct{}]bool)
		w.done = make(chan struct{})
		go w.loop(w.file, w.done)
	}
	wd := -1
	ctlErr := w.control(func(fd int) { wd, err = unix.InotifyAddWatch(fd, dir, watchMask) })
	if err == nil {
		err = ctlErr
	}
	if err != nil {
		if fresh {
			w.file.Close() // the loop ends on its own
			w.file = nil
		}
		return nil, nil, fmt.Errorf("watching %s for log lines: %w", dir, err)
	}
	key, ch := int32(wd), make(chan struct{}, 1)
	if w.subs[key] == nil {
		w.subs[key] = make(map[chan struct{}]bool)
	}
	w.subs[key][ch] = true
	return ch, func() { w.drop(key, ch) }, nil
}

func (w *watcher) drop(key int32, ch chan struct{}) {
	w.mu.Lock()
	delete(w.subs[key], ch)
	if len(w.subs[key]) == 0 {
		delete(w.subs, key)
		w.control(func(fd int) { unix.InotifyRmWatch(fd, uint32(key)) })
	}
	if len(w.subs) > 0 {
		w.mu.Unlock()
		return
	}
	file, done := w.file, w.done
	w.file = nil
	w.mu.Unlock()
	file.Close()
	<-done
}

func (w *watcher) control(fn func(fd int)) error {
	c, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control(func(fd uintptr) { fn(int(fd)) })
}

func (w *watcher) loop(f *os.File, done chan struct{}) {
	defer close(done)
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return // closed
		}
		w.mu.Lock()
		if w.file == f {
			w.dispatch(buf[:n])
		}
		w.mu.Unlock()
	}
}

func (w *watcher) dispatch(events []byte) {
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		mask := binary.NativeEndian.Uint32(events[4:])
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		events = events[min(size, len(events)):]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			for _, subs := range w.subs {
				wakeAll(subs)
			}
			continue
		}
		wakeAll(w.subs[wd])
	}
}

func wakeAll(subs map[chan struct{}]bool) {
	for ch := range subs {
		select {
		case ch <- struct{}{}:
		default: // already awake
		}
	}
}
