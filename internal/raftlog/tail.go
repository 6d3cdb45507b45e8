package raftlog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// The layout of a segment file: a header, then frames. A frame has a header of
// eight bytes (its kind, three zeros, and a length, or for a commit the checksum of
// all since the commit before), then its payload, padded to eight bytes.
const (
	segmentHeader = 32
	frameHeader   = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// repairTail makes the last segment fit to be appended to, which the library leaves
// undone in three cases:
//
//   - The process died after a segment was sealed and before its successor was
//     recorded: the library would refuse every append from then on. The successor is
//     recorded here.
//   - The last batch is torn: it was never acknowledged. The library skips it but
//     leaves its bytes, which could be taken for frames after later appends. They are
//     overwritten with zeros here.
//   - A batch before the last one is damaged: the library would silently drop it and
//     all that follow. That is ErrCorrupt here.
func repairTail(dir string, vfs types.VFS, segmentSize int) (err error) {
	if _, err := os.Stat(filepath.Join(dir, metadb.FileName)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var meta metadb.BoltMetaDB
	defer func() { err = errors.Join(err, meta.Close()) }()
	state, err := meta.Load(dir)
	if err != nil {
		return fmt.Errorf("read log directory: %w", err)
	}
	n := len(state.Segments)
	if n == 0 || !state.Segments[n-1].SealTime.IsZero() {
		return nil
	}
	last := &state.Segments[n-1]
	f, err := vfs.OpenWriter(dir, segment.FileName(*last))
	if errors.Is(err, os.ErrNotExist) {
		return nil // recorded and not yet made: the library makes it
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	end, err := scanTail(f)
	if err != nil {
		return fmt.Errorf("read log segment %s: %w", segment.FileName(*last), err)
	}
	if err := clearTorn(f, end.offset); err != nil {
		return fmt.Errorf("repair log segment %s: %w", segment.FileName(*last), err)
	}
	if end.indexStart == 0 {
		return nil
	}
	seal(&state, end, segmentSize)
	if err := meta.CommitState(state); err != nil {
		return fmt.Errorf("seal log segment: %w", err)
	}
	return nil
}

// seal records that the last segment is complete, and its successor.
func seal(state *types.PersistentState, end tailEnd, segmentSize int) {
	last := &state.Segments[len(state.Segments)-1]
	last.SealTime = time.Now()
	last.MaxIndex = last.BaseIndex + end.entries - 1
	last.IndexStart = end.indexStart
	state.Segments = append(state.Segments, types.SegmentInfo{
		ID:         state.NextSegmentID,
		BaseIndex:  last.MaxIndex + 1,
		MinIndex:   last.MaxIndex + 1,
		SizeLimit:  uint32(segmentSize),
		Codec:      wal.CodecBinaryV1,
		CreateTime: last.SealTime,
	})
	state.NextSegmentID++
}

// tailEnd is where the good part of a segment ends.
type tailEnd struct {
	offset     int64  // behind the last good commit
	entries    uint64 // up to there
	indexStart uint64 // of the index block, if the segment was sealed
}

// scanTail reads a segment commit by commit and checks every batch.
func scanTail(r io.ReaderAt) (good tailEnd, err error) {
	in := bufio.NewReaderSize(io.NewSectionReader(r, 0, math.MaxInt64), 256<<10)
	crc := crc32.New(castagnoli)
	if _, err := io.CopyN(crc, in, segmentHeader); err != nil {
		return good, ignoreEOF(err)
	}
	now := tailEnd{offset: segmentHeader}
	for {
		var h [frameHeader]byte
		if _, err := io.ReadFull(in, h[:]); err != nil {
			return good, ignoreEOF(err)
		}
		kind, value := frameOf(h)
		now.offset += frameHeader
		switch kind {
		case segment.FrameCommit:
			if value != crc.Sum32() {
				return good, nil
			}
			crc.Reset()
			good = now
			continue
		case segment.FrameEntry:
			now.entries++
		case segment.FrameIndex:
			now.indexStart = uint64(now.offset)
		default:
			return good, nil
		}
		crc.Write(h[:])
		size := padded(value)
		if _, err := io.CopyN(crc, in, size); err != nil {
			return good, ignoreEOF(err)
		}
		now.offset += size
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// frameOf is a frame's kind (FrameInvalid for none that there is) and its length or checksum.
func frameOf(h [frameHeader]byte) (kind uint8, value uint32) {
	kind, value = h[0], binary.LittleEndian.Uint32(h[4:])
	if h[1]|h[2]|h[3] != 0 || kind > segment.FrameCommit ||
		kind != segment.FrameCommit && value > segment.MaxEntrySize {
		return segment.FrameInvalid, 0
	}
	return kind, value
}

func padded(length uint32) int64 { return (int64(length) + frameHeader - 1) &^ (frameHeader - 1) }

// clearTorn overwrites with zeros what lies behind the good part, after making sure
// that it is no more than one torn batch.
func clearTorn(f types.WritableFile, end int64) error {
	rest, err := readRest(f, end)
	if err != nil || len(rest) == 0 {
		return err
	}
	if hasBatch(rest) {
		return fmt.Errorf("%w: at byte %d, with good entries behind it", ErrCorrupt, end)
	}
	clear(rest)
	if _, err := f.WriteAt(rest, end); err != nil {
		return err
	}
	return f.Sync()
}

// readRest is what lies behind an offset, in whole frame headers, without the zeros
// at its end.
func readRest(r io.ReaderAt, offset int64) ([]byte, error) {
	in := bufio.NewReaderSize(io.NewSectionReader(r, offset, math.MaxInt64-offset), 256<<10)
	var rest []byte
	zeros := 0
	for {
		chunk, err := in.Peek(in.Size())
		if used := usedLen(chunk); used > 0 {
			rest = append(rest, make([]byte, zeros)...)
			rest = append(rest, chunk[:used]...)
			zeros = len(chunk) - used
		} else {
			zeros += len(chunk)
		}
		if err != nil {
			missing := padded(uint32(len(rest))) - int64(len(rest))
			return append(rest, make([]byte, missing)...), ignoreEOF(err)
		}
		if _, err := in.Discard(len(chunk)); err != nil {
			return nil, err
		}
	}
}

func usedLen(b []byte) int {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return len(b)
}

// hasBatch reports whether there is a whole good batch in bytes that do not begin
// with one: a commit, and behind it frames whose checksum is in the next commit. A
// torn write has one commit at most, so this means that something older is damaged.
func hasBatch(b []byte) bool {
	for at := 0; at+frameHeader <= len(b); at += frameHeader {
		if kind, _ := frameOf([frameHeader]byte(b[at:])); kind == segment.FrameCommit && goodBatch(b[at+frameHeader:]) {
			return true
		}
	}
	return false
}

func goodBatch(b []byte) bool {
	for at := int64(0); at+frameHeader <= int64(len(b)); {
		kind, value := frameOf([frameHeader]byte(b[at:]))
		switch kind {
		case segment.FrameCommit:
			return at > 0 && crc32.Checksum(b[:at], castagnoli) == value
		case segment.FrameInvalid:
			return false
		}
		at += frameHeader + padded(value)
	}
	return false
}
