package raftlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skep-swarm/skep/internal/durable"
)

// Log is a member's replicated log. Its methods are safe for concurrent use and
// work while Run does; before and after they return ErrNotRunning.
type Log struct {
	cfg    Config
	logger *hcLogger
	lock   *os.File
	space  *space
	file   *walFile
	store  *store
	snaps  *snapshots
	fsm    *fsm

	raft    atomic.Pointer[raft.Raft] // set while Run works
	ready   chan struct{}             // closed when the machine was restored
	stop    chan struct{}             // closed when Run begins to end
	ran     atomic.Bool
	stopped sync.Once

	slots   chan struct{} // one for each proposal that waits for its outcome
	futures tracker
	reads   chan chan readResult
	notify  chan bool // raft → watchLeadership
	lead    leading

	fatalMu sync.Mutex
	fatal   error
	failed  chan struct{} // closed with fatal
}

// Open locks the directory, checks the key, and opens what is on disk. Nothing is
// applied until Run. Whoever does not call Run must call Close.
//
// Errors: InUseError, ErrWrongKey, ErrCorrupt.
func Open(cfg Config, machine Machine) (*Log, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	lock, err := lockDir(cfg.Dir, cfg.DataRoot)
	if err != nil {
		return nil, err
	}
	l := &Log{
		cfg:    cfg,
		logger: newHCLogger(cfg.Logger, "raft"),
		lock:   lock,
		fsm:    newFSM(machine),
		ready:  make(chan struct{}),
		stop:   make(chan struct{}),
		slots:  make(chan struct{}, cfg.MaxInFlight),
		reads:  make(chan chan readResult),
		// Raft blocks on this channel, and watchLeadership may be waiting for raft:
		// there must be room for a loss and a gain behind the gain being handled.
		notify: make(chan bool, 8),
		failed: make(chan struct{}),
	}
	l.lead.init()
	if err := l.openStore(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *Log) openStore() error {
	cfg := l.cfg
	walDir := filepath.Join(cfg.Dir, "wal")
	if err := durable.MkdirAll(walDir, 0o700); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	l.space = &space{dir: cfg.Dir, mark: cfg.LowSpaceMark, reserve: cfg.ReserveSize, free: cfg.free}
	if err := l.space.hold(); err != nil && !isFull(err) {
		return err
	}
	l.file = &walFile{dir: walDir, vfs: cfg.vfs, segmentSize: cfg.SegmentSize, space: l.space, logger: l.logger}
	if err := l.file.open(); err != nil {
		return err
	}
	l.store = &store{file: l.file, space: l.space, fatal: l.setFatal, done: l.stop, quiet: make(map[uint64]struct{})}
	if !cfg.noEncrypt {
		sealer, err := newSealer(cfg.Key)
		if err != nil {
			return err
		}
		l.store.sealer = sealer
	}
	if err := l.checkOwner(); err != nil {
		return err
	}
	var err error
	l.snaps, err = openSnapshots(cfg.Dir, cfg.SnapshotsKept, cfg.Key, l.logger)
	return err
}

var ownerKey = []byte("skep-owner")

// checkOwner proves, by a record that says whose log this is, that key and node ID
// are the ones that the log was begun with. It is also the first write of every
// start: if the disk cannot take it, raft could not save its term either.
func (l *Log) checkOwner() error {
	context := []byte("skep log owner")
	record, err := l.store.Get(ownerKey)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if record != nil && l.store.sealer != nil {
		owner, err := l.store.sealer.open(record, context)
		if err != nil {
			return fmt.Errorf("open log in %s: %w: it was encrypted with another one", l.cfg.Dir, ErrWrongKey)
		}
		if string(owner) != l.cfg.NodeID {
			return fmt.Errorf("open log in %s: it belongs to node %s, not to %s", l.cfg.Dir, owner, l.cfg.NodeID)
		}
	}
	record = []byte(l.cfg.NodeID)
	if l.store.sealer != nil {
		record = l.store.sealer.seal(nil, record, context)
	}
	if err := l.store.Set(ownerKey, record); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	return nil
}

// Close gives up what Open took, if Run was not called; else it does nothing.
func (l *Log) Close() error {
	if l.ran.Swap(true) {
		return nil
	}
	return l.close()
}

func (l *Log) close() error {
	var err error
	if l.file != nil {
		err = l.file.close()
	}
	return errors.Join(err, l.lock.Close())
}

// Run restores the machine, takes part in the log until the context ends, and
// closes everything. It returns nil when the context ended it, and the reason when
// this member cannot go on (ErrCorrupt, a failed disk). It may be called once.
func (l *Log) Run(ctx context.Context) error {
	if l.ran.Swap(true) {
		return ErrNotRunning
	}
	defer l.stopped.Do(func() { close(l.stop) })
	trans, closeTransport := l.openTransport()
	r, err := l.startRaft(trans)
	if err != nil {
		l.stopped.Do(func() { close(l.stop) })
		return errors.Join(err, closeTransport(), l.close())
	}
	l.raft.Store(r)
	close(l.ready)
	l.hurryElection(r)

	loops, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { l.watchLeadership(loops, r) })
	wg.Go(func() { l.serveReads(loops, r) })
	wg.Go(func() { l.watchSpace(loops) })
	wg.Go(func() { l.watchSize(loops) })

	select {
	case <-ctx.Done():
	case <-l.failed:
	}
	cancel()
	wg.Wait()
	return errors.Join(l.fatalErr(), l.shutdown(r, closeTransport))
}

// startRaft begins the log if it must, restores the machine, and starts raft. Raft
// panics on a damaged log; that comes back as an error.
func (l *Log) startRaft(trans raft.Transport) (r *raft.Raft, err error) {
	defer func() {
		if p := recover(); p != nil {
			perr, ok := p.(error)
			if !ok {
				perr = fmt.Errorf("%v", p)
			}
			err = fmt.Errorf("start log: %w", perr)
		}
	}()
	rc := l.cfg.raftConfig(l.logger, l.notify)
	if l.cfg.Bootstrap {
		exists, err := raft.HasExistingState(l.store, l.store, l.snaps)
		if err != nil {
			return nil, fmt.Errorf("start log: %w", err)
		}
		if !exists {
			self := raft.Server{ID: rc.LocalID, Address: raft.ServerAddress(l.cfg.NodeID)}
			alone := raft.Configuration{Servers: []raft.Server{self}}
			if err := raft.BootstrapCluster(rc, l.store, l.store, l.snaps, trans, alone); err != nil {
				return nil, fmt.Errorf("begin log: %w", err)
			}
		}
	}
	r, err = raft.NewRaft(rc, l.fsm, l.store, l.store, l.snaps, trans)
	if err != nil {
		return nil, fmt.Errorf("start log: %w", err)
	}
	l.store.setLive()
	return r, nil
}

// hurryElection makes a member that is alone stand for election at once: there is
// nobody whose heartbeat it could miss. Shortening the timeout is what wakes raft.
func (l *Log) hurryElection(r *raft.Raft) {
	servers := r.GetConfiguration().Configuration().Servers
	if len(servers) != 1 || servers[0].ID != raft.ServerID(l.cfg.NodeID) {
		return
	}
	rc := r.ReloadableConfig()
	rc.HeartbeatTimeout -= time.Millisecond
	if err := r.ReloadConfig(rc); err != nil {
		l.logger.Warn("the first election will take its time", "err", err)
	}
}

const drainTime = time.Second

// shutdown stops raft. Proposals that are on their way get a moment to finish: one
// that raft has committed but not yet answered when it stops is never answered.
func (l *Log) shutdown(r *raft.Raft, closeTransport func() error) error {
	l.stopped.Do(func() { close(l.stop) })
	if l.fatalErr() == nil {
		l.waitFutures(drainTime)
		if r.State() == raft.Leader && len(r.GetConfiguration().Configuration().Servers) > 1 {
			// Best effort: without it the others notice after a heartbeat timeout.
			l.future(r.LeadershipTransfer, func(error) {})
			l.waitFutures(drainTime)
		}
	}
	err := r.Shutdown().Error()
	err = errors.Join(err, closeTransport())
	l.raft.Store(nil)
	l.waitFutures(drainTime)
	return errors.Join(err, l.close())
}

// future waits for one of raft's futures on a goroutine that shutdown waits for.
func (l *Log) future(start func() raft.Future, done func(error)) {
	l.futures.run(func() { done(start().Error()) })
}

func (l *Log) waitFutures(limit time.Duration) {
	select {
	case <-l.futures.idle():
	case <-time.After(limit):
	}
}

func (l *Log) setFatal(err error) {
	l.fatalMu.Lock()
	defer l.fatalMu.Unlock()
	if l.fatal == nil {
		l.fatal = err
		close(l.failed)
	}
}

func (l *Log) fatalErr() error {
	l.fatalMu.Lock()
	defer l.fatalMu.Unlock()
	return l.fatal
}

// watchSpace keeps the disk's reserve, and says when changes begin and cease to be refused.
func (l *Log) watchSpace(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	low := false
	for {
		err := l.space.admit()
		if (err != nil) != low {
			if low = err != nil; low {
				l.cfg.Logger.Warn("changes are refused", "err", err)
			} else {
				l.cfg.Logger.Info("the data disk has room again: changes are accepted")
			}
		}
		if err := l.space.hold(); err != nil {
			l.logger.Debug("no disk reserve", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watchSize takes a snapshot when much was appended: raft counts entries only, and
// entries may be large.
func (l *Log) watchSize(ctx context.Context) {
	tick := time.NewTicker(sizeInterval)
	defer tick.Stop()
	var done uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		written := l.store.written.Load()
		if written-done < l.cfg.SnapshotBytes {
			continue
		}
		if err := l.Compact(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Logger.Warn("the log is not cut", "err", err)
			continue
		}
		done = written
	}
}

const sizeInterval = 500 * time.Millisecond
