package raftlog

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
)

// A sealed record is: version (1 byte), salt (16), counter (8), ciphertext and tag.
//
// AES-GCM must never see a nonce twice under one key. Random 96-bit nonces would
// wear a key out after some 2^32 records, which a busy log writes in days. So every
// opening of the log draws a salt, derives a key of its own from it, and counts.
const (
	recordVersion  = 1
	saltLen        = 16
	recordOverhead = 1 + saltLen + 8 + 16
	// maxEpochs bounds the derived keys that are remembered: one for each time the
	// process was started while the log was not yet compacted.
	maxEpochs = 64
)

// sealer encrypts log records. Safe for concurrent use.
type sealer struct {
	key     [32]byte
	salt    [saltLen]byte
	aead    cipher.AEAD
	counter atomic.Uint64

	mu     sync.Mutex
	epochs map[[saltLen]byte]cipher.AEAD
}

func newSealer(key [32]byte) (*sealer, error) {
	s := &sealer{key: key, epochs: make(map[[saltLen]byte]cipher.AEAD)}
	rand.Read(s.salt[:])
	var err error
	s.aead, err = deriveAEAD(key, s.salt[:], "skep raft log record")
	if err != nil {
		return nil, err
	}
	s.epochs[s.salt] = s.aead
	return s, nil
}

// seal appends the sealed plaintext to dst. The context is not stored: whoever
// opens the record must know it.
func (s *sealer) seal(dst, plaintext, context []byte) []byte {
	n := s.counter.Add(1)
	var nonce [12]byte
	binary.BigEndian.PutUint64(nonce[4:], n)
	dst = append(dst, recordVersion)
	dst = append(dst, s.salt[:]...)
	dst = binary.BigEndian.AppendUint64(dst, n)
	return s.aead.Seal(dst, nonce[:], plaintext, context)
}

// open decrypts a record in place. The error is ErrCorrupt.
func (s *sealer) open(record, context []byte) ([]byte, error) {
	if len(record) < recordOverhead || record[0] != recordVersion {
		return nil, fmt.Errorf("%w: not an encrypted record", ErrCorrupt)
	}
	aead, err := s.epoch([saltLen]byte(record[1 : 1+saltLen]))
	if err != nil {
		return nil, err
	}
	var nonce [12]byte
	copy(nonce[4:], record[1+saltLen:])
	sealed := record[1+saltLen+8:]
	plaintext, err := aead.Open(sealed[:0], nonce[:], sealed, context)
	if err != nil {
		return nil, fmt.Errorf("%w: it does not decrypt", ErrCorrupt)
	}
	return plaintext, nil
}

func (s *sealer) epoch(salt [saltLen]byte) (cipher.AEAD, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if aead, ok := s.epochs[salt]; ok {
		return aead, nil
	}
	aead, err := deriveAEAD(s.key, salt[:], "skep raft log record")
	if err != nil {
		return nil, err
	}
	if len(s.epochs) >= maxEpochs {
		clear(s.epochs)
	}
	s.epochs[salt] = aead
	return aead, nil
}

func deriveAEAD(key [32]byte, salt []byte, purpose string) (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, key[:], salt, purpose, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return cipher.NewGCM(block)
}
