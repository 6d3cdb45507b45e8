package keeper

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/skep-swarm/skep/internal/keeper/jsonlog"
)

// maxLogs bounds the logs that are open at a time.
const maxLogs = 8192

// A logConfig is a LogSpec resolved: what the keeper needs to know.
type logConfig struct {
	ID       string            `json:"id"`
	Dir      string            `json:"dir"`
	TTY      bool              `json:"tty,omitempty"`
	MaxSize  int64             `json:"maxSize,omitempty"`
	MaxFiles int               `json:"maxFiles,omitempty"`
	Attrs    map[string]string `json:"attrs,omitempty"`
}

func (c logConfig) streams() []string {
	if c.TTY {
		return []string{"stdout"}
	}
	return []string{"stdout", "stderr"}
}

// Files are what a container writes its output to.
type Files struct {
	// Stdout and Stderr are FIFOs. Stderr is empty with a TTY, both are
	// when the output is not wanted.
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr,omitempty"`
}

// A taskLog is one container's open log.
type taskLog struct {
	cfg   logConfig
	pumps []*pump

	closing chan struct{} // made when closing begins, closed at its end; under logTable.mu

	mu     sync.Mutex // one pump at a time writes
	writer *jsonlog.Writer
}

// A logTable is all open logs. It is safe for concurrent use.
type logTable struct {
	dir    string // the keeper's directory
	shared jsonlog.Buffers
	reads  sync.Pool
	slots  chan struct{} // bounds the threads that disk writes can block

	mu      sync.Mutex
	logs    map[string]*taskLog
	running bool
}

func newLogTable(dir string) *logTable {
	return &logTable{dir: dir, logs: make(map[string]*taskLog), slots: make(chan struct{}, 8)}
}

func (t *logTable) fifoDir(id string) string { return filepath.Join(t.dir, "fifo", id) }

func (t *logTable) files(cfg logConfig) Files {
	f := Files{Stdout: filepath.Join(t.fifoDir(cfg.ID), "stdout")}
	if !cfg.TTY {
		f.Stderr = filepath.Join(t.fifoDir(cfg.ID), "stderr")
	}
	return f
}

// open makes the FIFOs of a log and reads them. A log that is open already
// stays as it is.
func (t *logTable) open(cfg logConfig) (Files, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for old := t.logs[cfg.ID]; old != nil; old = t.logs[cfg.ID] {
		if old.closing == nil {
			return t.files(old.cfg), nil
		}
		t.mu.Unlock()
		<-old.closing
		t.mu.Lock()
	}
	if len(t.logs) >= maxLogs {
		return Files{}, fmt.Errorf("opening a log: %d are open, which is the limit", maxLogs)
	}
	if err := os.MkdirAll(t.fifoDir(cfg.ID), 0o700); err != nil {
		return Files{}, fmt.Errorf("making a log's FIFOs: %w", err)
	}
	var fifos []*os.File
	for _, name := range cfg.streams() {
		f, err := openFIFO(filepath.Join(t.fifoDir(cfg.ID), name))
		if err != nil {
			closeFiles(fifos)
			return Files{}, err
		}
		fifos = append(fifos, f)
	}
	l, err := t.make(cfg, fifos, item{})
	if err == nil && t.running {
		// Before the container starts is the time to say so. A log that was
		// open before (in load) goes on regardless: its container must not
		// block, and the writer tries again by itself.
		err = l.writer.Open()
	}
	if err != nil {
		closeFiles(fifos)
		return Files{}, err
	}
	if err := t.saveLog(cfg); err != nil {
		closeFiles(fifos)
		l.writer.Close(time.Now())
		return Files{}, err
	}
	t.logs[cfg.ID] = l
	if t.running {
		l.start()
	}
	return t.files(cfg), nil
}

// make builds a log over open FIFOs, going on where the one described left
// off.
func (t *logTable) make(cfg logConfig, fifos []*os.File, it item) (*taskLog, error) {
	l := &taskLog{cfg: cfg}
	l.writer = jsonlog.NewWriter(jsonlog.Path(cfg.Dir, cfg.ID),
		jsonlog.Config{MaxSize: cfg.MaxSize, MaxFiles: cfg.MaxFiles, Attrs: cfg.Attrs}, &t.shared)
	l.writer.AddDropped(it.Dropped)
	for i, f := range fifos {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, fmt.Errorf("reading a FIFO: %w", err)
		}
		p := &pump{log: l, table: t, stream: cfg.streams()[i], file: f, raw: raw}
		if i < len(it.Rest) {
			p.split.Split(it.Rest[i], p.appender(time.Now()))
		}
		l.pumps = append(l.pumps, p)
	}
	return l, nil
}

func (l *taskLog) start() {
	for _, p := range l.pumps {
		p.start()
	}
}

func (l *taskLog) stop() {
	for _, p := range l.pumps {
		p.halt()
	}
	for _, p := range l.pumps {
		p.wait()
	}
}

// close ends a log: what is in its FIFOs goes to the file first. What is not
// open is no error.
func (t *logTable) close(id string) error {
	t.mu.Lock()
	l := t.logs[id]
	if l == nil {
		t.mu.Unlock()
		return nil
	}
	if l.closing != nil {
		t.mu.Unlock()
		<-l.closing
		return nil
	}
	l.closing = make(chan struct{})
	t.mu.Unlock()
	l.stop()
	err := errors.Join(l.finish(), t.dropLog(id))
	closeFiles(l.fifos())
	err = errors.Join(err, os.RemoveAll(t.fifoDir(id)))
	t.mu.Lock()
	delete(t.logs, id)
	t.mu.Unlock()
	close(l.closing)
	return err
}

func (l *taskLog) fifos() []*os.File {
	files := make([]*os.File, len(l.pumps))
	for i, p := range l.pumps {
		files[i] = p.file
	}
	return files
}

// finish drains a stopped log and closes its file.
func (l *taskLog) finish() error {
	for _, p := range l.pumps {
		p.drain()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writer.Close(time.Now())
}

// pause stops all logs with everything read so far in their files. The FIFOs
// stay open.
func (t *logTable) pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running = false
	for _, l := range t.logs {
		for _, p := range l.pumps {
			p.halt()
		}
	}
	for _, l := range t.logs {
		l.stop()
		l.writer.Close(time.Now())
	}
}

// start begins or resumes reading all logs.
func (t *logTable) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running = true
	for _, l := range t.logs {
		l.start()
	}
}

// end closes all logs; with keep the table on disk and the FIFOs stay for
// the next keeper.
func (t *logTable) end(keep bool) error {
	var errs []error
	if !keep {
		for _, id := range t.list() {
			errs = append(errs, t.close(id))
		}
		return errors.Join(errs...)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, l := range t.logs {
		l.stop()
		errs = append(errs, l.finish())
		closeFiles(l.fifos())
		delete(t.logs, id)
	}
	return errors.Join(errs...)
}

func (t *logTable) list() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.logs))
}

// items describes all (paused) logs for the next keeper.
func (t *logTable) items(send func(item, []*os.File) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.logs {
		it := item{Kind: itemLog, Log: &l.cfg, Dropped: l.writer.Dropped()}
		for _, p := range l.pumps {
			it.Rest = append(it.Rest, p.split.Rest())
		}
		if err := send(it, l.fifos()); err != nil {
			return err
		}
	}
	return nil
}

// adopt takes over a log; start begins to read it.
func (t *logTable) adopt(it item, fifos []*os.File) error {
	if len(fifos) != len(it.Log.streams()) {
		return fmt.Errorf("log %s comes with %d descriptors", it.Log.ID, len(fifos))
	}
	l, err := t.make(*it.Log, fifos, it)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.logs[it.Log.ID] = l
	return nil
}

// forget lets go of (paused) logs that another process has.
func (t *logTable) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, l := range t.logs {
		l.writer.Abandon()
		closeFiles(l.fifos())
		delete(t.logs, id)
	}
}
