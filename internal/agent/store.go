package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"github.com/skep-swarm/skep/internal/durable"
)

const (
	journalName   = "agent.journal"
	journalMagic  = "skep-agent-1\n"
	maxRecord     = 64 << 20
	maxStoreBytes = 256 << 20
	compactSlack  = 1 << 20 // bytes of the journal beyond twice what is alive
)

// op puts a value, or deletes the key when the value is nil.
type op struct {
	Key   string `cbor:"1,keyasint"`
	Value []byte `cbor:"2,keyasint"` // nil and empty differ
}

// store keeps what the node must know when it starts without a manager: a small table of bytes in memory, written as a
// journal of records (length, checksum, operations). A record reaches the kernel before the call returns, so it
// survives kill -9; after a power cut the containers are gone as well, and a torn tail is cut off. When the disk is full
// the table lives on in memory and is written whole once there is space. Safe for concurrent use.
type store struct {
	path string

	mu     sync.Mutex
	table  map[string][]byte
	file   *os.File
	size   int64 // of the journal
	live   int64 // bytes that a fresh journal would take, about
	broken bool  // the journal lags behind the table
}

// openStore reads the journal in dir, which is made when it is missing.
func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("agent's store: %w", err)
	}
	s := &store{path: filepath.Join(dir, journalName), table: map[string][]byte{}}
	data, err := os.ReadFile(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("agent's store: %w", err)
	}
	good := 0
	if strings.HasPrefix(string(data[:min(len(data), len(journalMagic))]), journalMagic) {
		good = len(journalMagic)
		good += s.replay(data[good:])
	}
	if good == 0 {
		if err := s.rewrite(); err != nil {
			return nil, fmt.Errorf("agent's store: %w", err)
		}
		return s, nil
	}
	if s.file, err = os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, fmt.Errorf("agent's store: %w", err)
	}
	s.size = int64(good)
	if err := s.file.Truncate(s.size); err != nil { // a torn tail
		s.file.Close()
		return nil, fmt.Errorf("agent's store: %w", err)
	}
	return s, nil
}

// replay applies records until the first that is torn or damaged, and returns how many bytes were good.
func (s *store) replay(data []byte) int {
	good := 0
	for len(data) >= 8 {
		n := int(binary.BigEndian.Uint32(data))
		if n > maxRecord || len(data) < 8+n || crc32.ChecksumIEEE(data[8:8+n]) != binary.BigEndian.Uint32(data[4:]) {
			break
		}
		var ops []op
		if cbor.Unmarshal(data[8:8+n], &ops) != nil {
			break
		}
		s.apply(ops)
		good += 8 + n
		data = data[8+n:]
	}
	return good
}

func (s *store) apply(ops []op) {
	for _, o := range ops {
		if old, ok := s.table[o.Key]; ok {
			s.live -= int64(len(o.Key)+len(old)) + 8
			delete(s.table, o.Key)
		}
		if o.Value != nil {
			s.table[o.Key] = o.Value
			s.live += int64(len(o.Key)+len(o.Value)) + 8
		}
	}
}

// write applies the operations together. With an error they hold in this process, but a restart may not know them.
func (s *store) write(ops ...op) error {
	if len(ops) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.apply(ops)
	if s.live > maxStoreBytes {
		s.broken = true // once there is room again, the whole is written
		return fmt.Errorf("agent's store: %d bytes are more than its limit", s.live)
	}
	if s.broken || s.size > 2*s.live+compactSlack {
		if err := s.rewrite(); err != nil {
			s.broken = true
			return fmt.Errorf("agent's store: %w", err)
		}
		s.broken = false
		return nil
	}
	rec, err := record(ops)
	if err == nil {
		_, err = s.file.Write(rec)
	}
	if err != nil {
		s.broken = true
		return fmt.Errorf("agent's store: %w", errors.Join(err, s.file.Truncate(s.size)))
	}
	s.size += int64(len(rec))
	return nil
}

func record(ops []op) ([]byte, error) {
	body, err := cbor.Marshal(ops)
	if err != nil {
		return nil, err
	}
	if len(body) > maxRecord {
		return nil, fmt.Errorf("a record of %d bytes", len(body))
	}
	rec := make([]byte, 8, 8+len(body))
	binary.BigEndian.PutUint32(rec, uint32(len(body)))
	binary.BigEndian.PutUint32(rec[4:], crc32.ChecksumIEEE(body))
	return append(rec, body...), nil
}

// rewrite replaces the journal by a fresh one with what is alive.
func (s *store) rewrite() error {
	ops := make([]op, 0, len(s.table))
	for k, v := range s.table {
		ops = append(ops, op{k, v})
	}
	sort.Slice(ops, func(i, j int) bool { return ops[i].Key < ops[j].Key })
	data := []byte(journalMagic)
	for len(ops) > 0 {
		n := min(len(ops), 256)
		rec, err := record(ops[:n])
		if err != nil {
			return err
		}
		data, ops = append(data, rec...), ops[n:]
	}
	// Records are not waited for, but a fresh journal is: it takes the place of records that came to the disk long ago. It
	// costs milliseconds, once for a megabyte of records or more.
	if err := durable.WriteFile(s.path, data, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if s.file != nil {
		s.file.Close()
	}
	s.file, s.size = f, int64(len(data))
	return nil
}

// each calls fn for the keys with a prefix, in order; fn must not call the store.
func (s *store) each(prefix string, fn func(key string, value []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for k := range s.table {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	for _, k := range keys {
		if err := fn(k, s.table[k]); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) get(key string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table[key]
}

func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file.Close()
}
