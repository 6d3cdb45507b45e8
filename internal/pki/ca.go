package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"
)

const (
	// RootLifetime is how long a new cluster CA is valid (20 years).
	RootLifetime = 20 * 365 * 24 * time.Hour
	// DefaultNodeLifetime is how long a node certificate is valid unless the cluster says otherwise.
	DefaultNodeLifetime = 90 * 24 * time.Hour
	// MinNodeLifetime is the shortest node certificate that is issued: a node must
	// have time to renew it.
	MinNodeLifetime = time.Hour
	// Backdate is how far before now certificates begin, so that nodes whose clocks
	// are behind accept them.
	Backdate = time.Hour

	rootName = "swarm-ca"
)

// CA signs node certificates. It is immutable and safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes a cluster's certificate authority (ECDSA P-256), valid from
// Backdate before now for RootLifetime.
func NewCA(random io.Reader, now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	serial, err := newSerial(random)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: rootName},
		NotBefore:             now.Add(-Backdate).UTC().Truncate(time.Second),
		NotAfter:              now.Add(RootLifetime).UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		// One intermediate may stand between a root and a node: that is how an old
		// root vouches for a new one while roots are being changed.
		MaxPathLen: 1,
	}
	der, err := x509.CreateCertificate(random, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back CA certificate: %w", err)
	}
	return &CA{cert: cert, key: key}, nil
}

// LoadCA reads a CA from its certificate and key, PEM. The certificate must be a
// CA's, and the key must be its own.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	certs, err := DecodeCerts(certPEM)
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	key, err := DecodeKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read CA key: %w", err)
	}
	cert := certs[0]
	if !cert.IsCA {
		return nil, errors.New("read CA certificate: it is not a certificate authority's")
	}
	if !samePublicKey(cert.PublicKey, key.Public()) {
		return nil, errors.New("read CA: certificate and key do not belong together")
	}
	return &CA{cert: cert, key: key}, nil
}

// Certificate is the CA's own certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// CertPEM is the CA's certificate, PEM.
func (ca *CA) CertPEM() []byte { return EncodeCerts(ca.cert) }

// KeyPEM is the CA's private key, PEM (PKCS #8), unencrypted.
func (ca *CA) KeyPEM() ([]byte, error) { return EncodeKey(ca.key) }

// Fingerprint names a root in join tokens: SHA-256 of its canonical PEM, as
// Docker's tokens have it.
type Fingerprint [sha256.Size]byte

// FingerprintOf is the fingerprint of a root certificate.
func FingerprintOf(root *x509.Certificate) Fingerprint {
	return sha256.Sum256(EncodeCerts(root))
}

// TLSInfo is what Docker's API tells of the roots that a node or the cluster trusts.
type TLSInfo struct {
	TrustRoot           string // all roots, PEM
	CertIssuerSubject   []byte // DER of the issuer's subject
	CertIssuerPublicKey []byte // DER (PKIX) of the issuer's public key
}

// TLSInfoOf describes a trust bundle whose first root is the one that issues.
// It is the zero value without roots.
func TLSInfoOf(roots []*x509.Certificate) TLSInfo {
	if len(roots) == 0 {
		return TLSInfo{}
	}
	return TLSInfo{
		TrustRoot:           string(EncodeCerts(roots...)),
		CertIssuerSubject:   bytes.Clone(roots[0].RawSubject),
		CertIssuerPublicKey: bytes.Clone(roots[0].RawSubjectPublicKeyInfo),
	}
}

func newSerial(random io.Reader) (*big.Int, error) {
	var b [16]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	b[0] &= 0x7f // RFC 5280: positive, at most 20 octets
	b[0] |= 0x40 // never zero, constant length
	return new(big.Int).SetBytes(b[:]), nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
