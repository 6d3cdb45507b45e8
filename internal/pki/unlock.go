package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	unlockPrefix   = "SWMKEY-1-"
	lockedKeyBlock = "SKEP ENCRYPTED PRIVATE KEY"
)

// ErrKeyLocked is a private key that needs the unlock key first.
var ErrKeyLocked = errors.New("the private key is encrypted and needs the swarm's unlock key")

// ErrBadUnlockKey is a string that is not an unlock key, or one of another swarm.
var ErrBadUnlockKey = errors.New("invalid key provided")

// UnlockKey encrypts what a locked manager keeps on disk.
type UnlockKey [32]byte

// NewUnlockKey makes an unlock key.
func NewUnlockKey(random io.Reader) (UnlockKey, error) {
	var k UnlockKey
	if _, err := io.ReadFull(random, k[:]); err != nil {
		return UnlockKey{}, fmt.Errorf("make unlock key: %w", err)
	}
	return k, nil
}

// String is the key as users keep it: SWMKEY-1-<base64>.
func (k UnlockKey) String() string { return unlockPrefix + base64.RawStdEncoding.EncodeToString(k[:]) }

// ParseUnlockKey reads an unlock key; spaces around it are forgiven. The error is ErrBadUnlockKey.
func ParseUnlockKey(s string) (UnlockKey, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), unlockPrefix)
	raw, err := base64.RawStdEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(raw) != len(UnlockKey{}) {
		return UnlockKey{}, ErrBadUnlockKey
	}
	return UnlockKey(raw), nil
}

// LockKey encrypts a private key's PEM with AES-256-GCM; the result is PEM too.
func LockKey(random io.Reader, keyPEM []byte, k UnlockKey) ([]byte, error) {
	if _, err := DecodeKey(keyPEM); err != nil {
		return nil, fmt.Errorf("lock private key: %w", err)
	}
	aead, err := k.aead()
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(keyPEM)+aead.Overhead())
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("lock private key: %w", err)
	}
	sealed := aead.Seal(nonce, nonce, keyPEM, []byte(lockedKeyBlock))
	return pem.EncodeToMemory(&pem.Block{Type: lockedKeyBlock, Bytes: sealed}), nil
}

// UnlockKeyPEM decrypts what LockKey made. The error is ErrBadUnlockKey when the key
// is another one or the text was changed.
func UnlockKeyPEM(lockedPEM []byte, k UnlockKey) ([]byte, error) {
	block, _ := pem.Decode(lockedPEM)
	if block == nil || block.Type != lockedKeyBlock {
		return nil, errors.New("unlock private key: it is not encrypted")
	}
	aead, err := k.aead()
	if err != nil {
		return nil, err
	}
	if len(block.Bytes) < aead.NonceSize() {
		return nil, ErrBadUnlockKey
	}
	nonce, sealed := block.Bytes[:aead.NonceSize()], block.Bytes[aead.NonceSize():]
	keyPEM, err := aead.Open(nil, nonce, sealed, []byte(lockedKeyBlock))
	if err != nil {
		return nil, ErrBadUnlockKey
	}
	return keyPEM, nil
}

// IsLocked reports whether a private key's PEM is encrypted with an unlock key.
func IsLocked(keyPEM []byte) bool {
	block, _ := pem.Decode(keyPEM)
	return block != nil && block.Type == lockedKeyBlock
}

func (k UnlockKey) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, fmt.Errorf("use unlock key: %w", err)
	}
	return cipher.NewGCM(block)
}
