package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
)

// snapshots is raft's SnapshotStore: the library's files, with the state in them
// encrypted and bound to its place in the log. Readers get plaintext, also when a
// snapshot is sent to another member, which encrypts it with its own key.
type snapshots struct {
	dir   string
	inner raft.SnapshotStore
	key   [32]byte

	mu   sync.Mutex
	open map[string]bool // being written
}

var _ raft.SnapshotStore = (*snapshots)(nil)

func openSnapshots(dir string, keep int, key [32]byte, logger *hcLogger) (*snapshots, error) {
	s := &snapshots{dir: filepath.Join(dir, "snapshots"), key: key, open: make(map[string]bool)}
	if err := s.sweep(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	var err error
	if s.inner, err = raft.NewFileSnapshotStoreWithLogger(dir, keep, logger); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return s, nil
}

// sweep removes what unfinished snapshots left behind, which the library does not:
// after a crash, or because the disk got full. On a full disk each attempt would
// leave its share there.
func (s *snapshots) sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, unfinished := strings.CutSuffix(e.Name(), ".tmp")
		if unfinished && !s.open[id] {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, e.Name())))
		}
	}
	return err
}

func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sink, err := s.inner.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make snapshot: %w", err), s.sweep())
	}
	seal, err := newSealWriter(sink, s.key, snapshotContext(index, term))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make snapshot: %w", err), sink.Cancel(), s.sweep())
	}
	s.open[sink.ID()] = true
	return &snapshotSink{SnapshotSink: sink, seal: seal, store: s}, nil
}

func (s *snapshots) closed(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, id)
	return s.sweep()
}

func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	metas, err := s.inner.List()
	if err != nil {
		return nil, err
	}
	for _, m := range metas {
		m.Size = plainSize(m.Size)
	}
	return metas, nil
}

func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, file, err := s.inner.Open(id)
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot %s: %w", id, err)
	}
	r, err := newOpenReader(file, s.key, snapshotContext(meta.Index, meta.Term))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open snapshot %s: %w", id, err), file.Close())
	}
	meta.Size = plainSize(meta.Size)
	return meta, struct {
		io.Reader
		io.Closer
	}{r, file}, nil
}

func snapshotContext(index, term uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, index)
	return binary.BigEndian.AppendUint64(b, term)
}

type snapshotSink struct {
	raft.SnapshotSink
	seal   *sealWriter
	store  *snapshots
	closed bool
}

func (s *snapshotSink) Write(p []byte) (int, error) { return s.seal.Write(p) }

func (s *snapshotSink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.seal.Close()
	if err != nil {
		err = errors.Join(fmt.Errorf("write snapshot: %w", err), s.SnapshotSink.Cancel())
	} else {
		err = s.SnapshotSink.Close()
	}
	return errors.Join(err, s.store.closed(s.ID()))
}

func (s *snapshotSink) Cancel() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(s.SnapshotSink.Cancel(), s.store.closed(s.ID()))
}
