package pki

import (
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
)

const (
	tokenPrefix     = "SWMTKN-1-"
	fingerprintLen  = 50 // base-36 digits that hold 256 bits
	secretLen       = 25 // base-36 digits that hold 128 bits
	tokenLen        = len(tokenPrefix) + fingerprintLen + 1 + secretLen
	secretBytes     = 16
	fingerprintBits = 256
)

// ErrBadToken is a string that is not a join token.
var ErrBadToken = errors.New("invalid join token")

// ErrFingerprint is a root that is not the one a join token names.
var ErrFingerprint = errors.New("remote CA does not match fingerprint")

// NewSecret makes the secret part of a join token. A cluster has one for each
// role; a new one takes the old one's place when tokens are rotated.
func NewSecret(random io.Reader) (string, error) {
	var b [secretBytes]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("make join token: %w", err)
	}
	return base36(b[:], secretLen), nil
}

// JoinToken lets a node join: it knows the cluster by its root's fingerprint and
// shows the secret of a role.
type JoinToken struct {
	Root   Fingerprint
	Secret string
}

// MakeToken makes the token for a root and a role's secret.
func MakeToken(root *x509.Certificate, secret string) JoinToken {
	return JoinToken{Root: FingerprintOf(root), Secret: secret}
}

// String is the token as users copy it: SWMTKN-1-<50 digits>-<25 digits>.
func (t JoinToken) String() string {
	return tokenPrefix + base36(t.Root[:], fingerprintLen) + "-" + t.Secret
}

// ParseToken reads a join token; spaces around it are forgiven. The error is ErrBadToken.
func ParseToken(s string) (JoinToken, error) {
	s = strings.TrimSpace(s)
	if len(s) != tokenLen || !strings.HasPrefix(s, tokenPrefix) {
		return JoinToken{}, ErrBadToken
	}
	digits, secret := s[len(tokenPrefix):len(tokenPrefix)+fingerprintLen], s[tokenLen-secretLen:]
	if s[tokenLen-secretLen-1] != '-' || !isBase36(digits) || !isBase36(secret) {
		return JoinToken{}, ErrBadToken
	}
	n, ok := new(big.Int).SetString(digits, 36)
	if !ok || n.BitLen() > fingerprintBits {
		return JoinToken{}, ErrBadToken
	}
	t := JoinToken{Secret: secret}
	n.FillBytes(t.Root[:])
	return t, nil
}

// Verify picks, from the roots that a stranger presents, the one that the token
// names. Only that one may be trusted; the error is ErrFingerprint.
func (t JoinToken) Verify(roots []*x509.Certificate) (*x509.Certificate, error) {
	for _, root := range roots {
		if FingerprintOf(root) == t.Root {
			return root, nil
		}
	}
	return nil, ErrFingerprint
}

// Secrets are the secrets of a cluster's two join tokens.
type Secrets struct{ Worker, Manager string }

// Role is the role that a token's secret earns; false means none. The comparison
// takes the same time whatever the secret.
func (s Secrets) Role(secret string) (Role, bool) {
	worker := subtle.ConstantTimeCompare([]byte(secret), []byte(s.Worker))
	manager := subtle.ConstantTimeCompare([]byte(secret), []byte(s.Manager))
	switch {
	case len(secret) != secretLen:
		return "", false
	case manager == 1:
		return Manager, true
	case worker == 1:
		return Worker, true
	}
	return "", false
}

func base36(b []byte, width int) string {
	s := new(big.Int).SetBytes(b).Text(36)
	return strings.Repeat("0", width-len(s)) + s
}

func isBase36(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
