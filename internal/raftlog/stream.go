package raftlog

import (
	"bufio"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// An encrypted stream is: version (1 byte), salt (16), then chunks of 64 KB of
// plaintext, each with its tag. The nonce of a chunk is its number and whether it
// is the last, so chunks cannot be dropped, swapped, repeated or cut off unseen.
// Every stream has a key of its own, derived with its salt.
const (
	streamVersion   = 2
	streamHeaderLen = 1 + saltLen
	chunkSize       = 64 << 10
	tagLen          = 16
)

// sealWriter encrypts what is written to it. Close writes the last chunk; without
// it the stream is not complete and will not decrypt.
type sealWriter struct {
	w       io.Writer
	aead    cipher.AEAD
	context []byte
	chunk   uint32
	buf     []byte // plaintext of the chunk so far; room for the tag behind it
	err     error
}

func newSealWriter(w io.Writer, key [32]byte, context []byte) (*sealWriter, error) {
	header := make([]byte, streamHeaderLen)
	header[0] = streamVersion
	rand.Read(header[1:])
	aead, err := deriveAEAD(key, header[1:], "skep raft snapshot")
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(header); err != nil {
		return nil, err
	}
	return &sealWriter{w: w, aead: aead, context: context, buf: make([]byte, 0, chunkSize+tagLen)}, nil
}

func (s *sealWriter) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 && s.err == nil {
		// A full chunk is only written when more follows: it might be the last.
		if len(s.buf) == chunkSize {
			s.flush(false)
		}
		take := min(len(p), chunkSize-len(s.buf))
		s.buf = append(s.buf, p[:take]...)
		p, n = p[take:], n+take
	}
	return n, s.err
}

// Close ends the stream; it does not close what is written to.
func (s *sealWriter) Close() error {
	if s.err == nil {
		s.flush(true)
	}
	if s.err == nil {
		s.err = errors.New("stream is closed")
		return nil
	}
	return s.err
}

func (s *sealWriter) flush(last bool) {
	nonce := chunkNonce(s.chunk, last)
	sealed := s.aead.Seal(s.buf[:0], nonce[:], s.buf, s.context)
	if s.chunk++; s.chunk == 0 {
		s.err = errors.New("snapshot is too long")
		return
	}
	_, s.err = s.w.Write(sealed)
	s.buf = s.buf[:0]
}

// openReader decrypts a stream. Any damage is ErrCorrupt; io.EOF comes only after
// the true end was seen.
type openReader struct {
	r       *bufio.Reader
	aead    cipher.AEAD
	context []byte
	chunk   uint32
	buf     []byte
	plain   []byte // decrypted and not yet read; lies in buf
	done    bool
}

func newOpenReader(r io.Reader, key [32]byte, context []byte) (*openReader, error) {
	var header [streamHeaderLen]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, fmt.Errorf("%w: cut off", ErrCorrupt)
	}
	if header[0] != streamVersion {
		return nil, fmt.Errorf("%w: not an encrypted stream", ErrCorrupt)
	}
	aead, err := deriveAEAD(key, header[1:], "skep raft snapshot")
	if err != nil {
		return nil, err
	}
	return &openReader{
		r: bufio.NewReaderSize(r, chunkSize), aead: aead, context: context,
		buf: make([]byte, chunkSize+tagLen),
	}, nil
}

func (o *openReader) Read(p []byte) (int, error) {
	for len(o.plain) == 0 {
		if o.done {
			return 0, io.EOF
		}
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, o.plain)
	o.plain = o.plain[n:]
	return n, nil
}

func (o *openReader) next() error {
	n, err := io.ReadFull(o.r, o.buf)
	last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !last {
		return err
	}
	if !last {
		// A full chunk is the last one if nothing follows it.
		_, err := o.r.Peek(1)
		last = errors.Is(err, io.EOF)
	}
	nonce := chunkNonce(o.chunk, last)
	plain, err := o.aead.Open(o.buf[:0], nonce[:], o.buf[:n], o.context)
	if err != nil {
		return fmt.Errorf("%w: chunk %d does not decrypt", ErrCorrupt, o.chunk)
	}
	o.plain, o.done = plain, last
	o.chunk++
	return nil
}

func chunkNonce(chunk uint32, last bool) (nonce [12]byte) {
	binary.BigEndian.PutUint32(nonce[7:], chunk)
	if last {
		nonce[11] = 1
	}
	return nonce
}

// plainSize is the length of the plaintext of a stream of a length.
func plainSize(sealed int64) int64 {
	body := sealed - streamHeaderLen
	chunks := (body + chunkSize + tagLen - 1) / (chunkSize + tagLen)
	return max(0, body-chunks*tagLen)
}
