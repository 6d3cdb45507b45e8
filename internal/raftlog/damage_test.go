package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// tailFile is the last segment of a log that holds n proposals in batches of one.
func tailFile(t *testing.T, cfg Config, n int) (path string, data []byte) {
	t.Helper()
	m := start(t, cfg)
	m.lead(t)
	for i := range n {
		m.propose(t, fmt.Sprintf("p%d", i))
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(cfg.Dir, "wal", "*.wal"))
	if err != nil || len(files) == 0 {
		t.Fatalf("segments %v: %v", files, err)
	}
	path = files[len(files)-1]
	if data, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return path, data
}

// runOnce starts a log and returns why it ended, or stops it when it leads.
func runOnce(cfg Config) (*member, error) {
	m, err := tryStart(cfg)
	if err != nil {
		return nil, err
	}
	for {
		select {
		case l := <-m.Leadership():
			if l.Leader {
				return m, m.stop()
			}
		case err := <-m.done:
			m.done <- err
			return m, m.stop()
		}
	}
}

// TestTornTail cuts and garbles the last batch in every way a crash can: the log
// starts without it, and everything before is there.
func TestTornTail(t *testing.T) {
	cfg := testConfig(t)
	cfg.SegmentSize = 64 << 10
	path, whole := tailFile(t, cfg, 20)
	end := usedLen(whole)
	for cut := 1; cut < 79; cut += 6 {
		for _, garbage := range []byte{0, 0xff} {
			torn := bytes.Clone(whole)
			for i := end - cut; i < end; i++ {
				torn[i] &= garbage
				torn[i] ^= garbage & 0x55
			}
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := runOnce(cfg)
			if err != nil {
				t.Fatalf("cut %d, %x: %v", cut, garbage, err)
			}
			// The last batch is a proposal, 80 bytes long; a torn one
			// was never acknowledged.
			for i := range 19 {
				if !m.machine.has(fmt.Sprintf("p%d", i)) {
					t.Fatalf("cut %d, %x: p%d is gone", cut, garbage, i)
				}
			}
		}
	}
}

// TestDamage flips bits all over a log: it is an error or harmless, never other data
// and never silently less.
func TestDamage(t *testing.T) {
	cfg := testConfig(t)
	cfg.SegmentSize = 64 << 10
	path, whole := tailFile(t, cfg, 20)
	end := usedLen(whole)
	refused := 0
	for at := segmentHeader; at < end-200; at += 37 {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x10
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := runOnce(cfg)
		switch {
		case errors.Is(err, ErrCorrupt):
			refused++
		case err != nil:
			t.Errorf("byte %d: %v", at, err)
		default:
			for i := range 20 {
				if !m.machine.has(fmt.Sprintf("p%d", i)) {
					t.Errorf("byte %d: p%d is gone without an error", at, i)
				}
			}
		}
	}
	if refused < 20 {
		t.Errorf("only %d damaged logs were refused", refused)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runOnce(cfg); err != nil {
		t.Error(err)
	}
}

// TestDamagedRecord changes a record in a way that the log's own checksum does not
// see: the encryption must.
func TestDamagedRecord(t *testing.T) {
	s, err := newSealer([32]byte{7})
	if err != nil {
		t.Fatal(err)
	}
	at := &raft.Log{Index: 5, Term: 2}
	record := s.seal(nil, []byte("proposal"), recordContext(at))
	if got, err := s.open(bytes.Clone(record), recordContext(at)); err != nil || string(got) != "proposal" {
		t.Fatalf("%q, %v", got, err)
	}
	// Another opening of the log reads it too.
	s2, err := newSealer([32]byte{7})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s2.open(bytes.Clone(record), recordContext(at)); err != nil || string(got) != "proposal" {
		t.Fatalf("%q, %v", got, err)
	}
	for i := range record {
		bad := bytes.Clone(record)
		bad[i] ^= 1
		if _, err := s2.open(bad, recordContext(at)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for _, moved := range []raft.Log{{Index: 6, Term: 2}, {Index: 5, Term: 3}, {Index: 5, Term: 2, Type: raft.LogNoop}} {
		if _, err := s.open(bytes.Clone(record), recordContext(&moved)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("moved to %+v: %v", moved, err)
		}
	}
}

func TestStreamLaws(t *testing.T) {
	key, context := [32]byte{1}, []byte("at 5")
	sizes := []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 2 * chunkSize, 2*chunkSize + 77}
	rapid.Check(t, func(t *rapid.T) {
		plain := bytes.Repeat([]byte{9}, rapid.SampledFrom(sizes).Draw(t, "size"))
		var out bytes.Buffer
		w, err := newSealWriter(&out, key, context)
		if err != nil {
			t.Fatal(err)
		}
		for rest := plain; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "write")
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		sealed := out.Bytes()
		if got := plainSize(int64(len(sealed))); got != int64(len(plain)) {
			t.Fatalf("plainSize %d, want %d", got, len(plain))
		}
		if got, err := readSealed(sealed, key, context); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		cut := rapid.IntRange(0, len(sealed)-1).Draw(t, "cut")
		if _, err := readSealed(sealed[:cut], key, context); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d of %d: %v", cut, len(sealed), err)
		}
		bad := bytes.Clone(sealed)
		bad[rapid.IntRange(0, len(bad)-1).Draw(t, "flip")] ^= 4
		if _, err := readSealed(bad, key, context); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("flipped: %v", err)
		}
		if _, err := readSealed(sealed, key, []byte("at 6")); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("moved: %v", err)
		}
	})
	// Whole chunks dropped, swapped, or the stream cut between two.
	var out bytes.Buffer
	w, err := newSealWriter(&out, key, context)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 3*chunkSize)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	const sealedChunk = chunkSize + tagLen
	head, body := out.Bytes()[:streamHeaderLen], out.Bytes()[streamHeaderLen:]
	a, b, c := body[:sealedChunk], body[sealedChunk:2*sealedChunk], body[2*sealedChunk:]
	for name, parts := range map[string][][]byte{
		"dropped first": {head, b, c}, "dropped middle": {head, a, c}, "dropped last": {head, a, b},
		"swapped": {head, b, a, c}, "repeated": {head, a, a, b, c}, "longer": {head, a, b, c, c},
	} {
		if _, err := readSealed(bytes.Join(parts, nil), key, context); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func readSealed(sealed []byte, key [32]byte, context []byte) ([]byte, error) {
	r, err := newOpenReader(bytes.NewReader(sealed), key, context)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// TestDamagedSnapshot starts from the older snapshot when the newest is damaged, and
// refuses to start when there is no good one.
func TestDamagedSnapshot(t *testing.T) {
	cfg := testConfig(t)
	cfg.TrailingLogs = 1000
	m := start(t, cfg)
	m.lead(t)
	for i := range 2 {
		m.propose(t, fmt.Sprintf("p%d", i))
		if err := m.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	// What a crash leaves behind is removed.
	tmp := filepath.Join(cfg.Dir, "snapshots", "9-9-9.tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	states, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*", "state.bin"))
	if err != nil || len(states) != 2 {
		t.Fatalf("%v, %v", states, err)
	}
	for i := len(states) - 1; i >= 0; i-- {
		data, err := os.ReadFile(states[i])
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(states[i], data, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := runOnce(cfg)
		if i == 1 && (err != nil || !m.machine.has("p0") || !m.machine.has("p1")) {
			t.Errorf("with the older snapshot: %v", err)
		}
		if i == 0 && err == nil {
			t.Error("started without a good snapshot")
		}
	}
	if _, err := os.Stat(tmp); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished snapshot is still there: %v", err)
	}
}
