package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"
)

// snapshots is raft's SnapshotStore: the library's files, with the state in them
// encrypted and bound to its place in the log. Readers get plaintext, also when a
// snapshot is sent to another member, which encrypts it with its own key.
type snapshots struct {
	inner raft.SnapshotStore
	key   [32]byte
}

var _ raft.SnapshotStore = (*snapshots)(nil)

func openSnapshots(dir string, keep int, key [32]byte, logger *hcLogger) (*snapshots, error) {
	// A crash leaves half-written snapshots behind; nothing else removes them.
	entries, err := os.ReadDir(filepath.Join(dir, "snapshots"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			if err := os.RemoveAll(filepath.Join(dir, "snapshots", e.Name())); err != nil {
				return nil, fmt.Errorf("remove unfinished snapshot: %w", err)
			}
		}
	}
	inner, err := raft.NewFileSnapshotStoreWithLogger(dir, keep, logger)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return &snapshots{inner: inner, key: key}, nil
}

func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.inner.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, fmt.Errorf("make snapshot: %w", err)
	}
	seal, err := newSealWriter(sink, s.key, snapshotContext(index, term))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make snapshot: %w", err), sink.Cancel())
	}
	return &snapshotSink{SnapshotSink: sink, seal: seal}, nil
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
	closed bool
}

func (s *snapshotSink) Write(p []byte) (int, error) { return s.seal.Write(p) }

func (s *snapshotSink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.seal.Close(); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), s.SnapshotSink.Cancel())
	}
	return s.SnapshotSink.Close()
}

func (s *snapshotSink) Cancel() error {
	s.closed = true
	return s.SnapshotSink.Cancel()
}
