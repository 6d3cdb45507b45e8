package jsonlog

import (
	"bytes"
	"unicode/utf8"
)

// MaxPiece is the largest number of bytes of one line that go into one log
// entry. A longer line becomes several entries, all but the last of them
// partial (without "\n"), as Docker does it.
const MaxPiece = 16 << 10

// A Splitter cuts a byte stream into log entries. The result depends only on
// the bytes, not on how they were cut into chunks. It holds back at most
// MaxPiece bytes. The zero value is ready; it is not safe for concurrent use.
type Splitter struct {
	rest []byte
}

// Split feeds chunk and calls emit for each piece that is now complete. end
// tells that the piece ends its line; the newline itself is not in the piece.
// The piece is valid only during the call.
func (s *Splitter) Split(chunk []byte, emit func(piece []byte, end bool)) {
	for len(s.rest) > 0 && len(chunk) > 0 {
		// Complete the piece that is held back. One byte more than
		// MaxPiece decides between "exactly full" and "too long".
		take := min(MaxPiece+1-len(s.rest), len(chunk))
		if nl := bytes.IndexByte(chunk[:take], '\n'); nl >= 0 {
			s.rest = append(s.rest, chunk[:nl]...)
			chunk = chunk[nl+1:]
			emit(s.rest, true)
			s.clear()
			continue
		}
		s.rest = append(s.rest, chunk[:take]...)
		chunk = chunk[take:]
		if len(s.rest) > MaxPiece {
			n := cut(s.rest)
			emit(s.rest[:n], false)
			s.rest = append(s.rest[:0], s.rest[n:]...)
		}
	}
	for len(chunk) > 0 {
		window := chunk[:min(len(chunk), MaxPiece+1)]
		if nl := bytes.IndexByte(window, '\n'); nl >= 0 {
			emit(chunk[:nl], true)
			chunk = chunk[nl+1:]
			continue
		}
		if len(window) <= MaxPiece {
			s.rest = append(s.rest[:0], chunk...)
			return
		}
		n := cut(window)
		emit(chunk[:n], false)
		chunk = chunk[n:]
	}
}

// Finish emits what is held back as a whole line: the stream has ended.
func (s *Splitter) Finish(emit func(piece []byte, end bool)) {
	if len(s.rest) > 0 {
		emit(s.rest, true)
	}
	s.rest = nil
}

// Rest returns the bytes held back, at most MaxPiece of them, for handing
// them to another Splitter. They are valid until the next call.
func (s *Splitter) Rest() []byte { return s.rest }

// clear forgets the bytes held back. A large buffer is given up, for a node
// may have thousands of streams that had one long line once.
func (s *Splitter) clear() {
	if cap(s.rest) > 1<<10 {
		s.rest = nil
		return
	}
	s.rest = s.rest[:0]
}

// cut returns where to end a piece of at most MaxPiece bytes so that no
// character is torn.
func cut(b []byte) int {
	for n := MaxPiece; n > MaxPiece-utf8.UTFMax; n-- {
		if utf8.RuneStart(b[n]) {
			return n
		}
	}
	return MaxPiece // not text anyway
}
