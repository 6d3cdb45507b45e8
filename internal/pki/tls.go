package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Credentials are what a node shows and what it trusts. Immutable: a renewed
// certificate or a changed root makes new ones.
type Credentials struct {
	// Identity is what the certificate says.
	Identity Identity
	// Leaf is the node's own certificate.
	Leaf *x509.Certificate
	// Roots are trusted; the first is the one that issues. There are several while
	// roots are being changed.
	Roots []*x509.Certificate

	cert tls.Certificate
	pool *x509.CertPool
}

// NewCredentials builds credentials from PEM: the node's chain (leaf first), its
// unencrypted key, and the trusted roots. The chain must lead to a root at now.
func NewCredentials(chainPEM, keyPEM, rootsPEM []byte, now time.Time) (*Credentials, error) {
	chain, err := DecodeCerts(chainPEM)
	if err != nil {
		return nil, fmt.Errorf("read node certificate: %w", err)
	}
	roots, err := DecodeCerts(rootsPEM)
	if err != nil {
		return nil, fmt.Errorf("read trusted roots: %w", err)
	}
	key, err := DecodeKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	return newCredentials(chain, key, roots, now)
}

func newCredentials(chain []*x509.Certificate, key crypto.Signer, roots []*x509.Certificate, now time.Time) (*Credentials, error) {
	id, err := VerifyNode(chain, roots, now)
	if err != nil {
		return nil, err
	}
	if !samePublicKey(chain[0].PublicKey, key.Public()) {
		return nil, errors.New("read node certificate: it does not belong to the key")
	}
	c := &Credentials{Identity: id, Leaf: chain[0], Roots: roots, pool: pool(roots)}
	c.cert = tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		c.cert.Certificate = append(c.cert.Certificate, cert.Raw)
	}
	return c, nil
}

// TLSInfo describes the roots as Docker's API does.
func (c *Credentials) TLSInfo() TLSInfo { return TLSInfoOf(c.Roots) }

// Source gives the credentials of this moment, so that renewal and root changes
// reach connections made afterwards. It is called for every handshake, from any goroutine.
type Source func() *Credentials

// ServerTLS is the configuration of a listener: TLS 1.3, the first of protos that
// the client offers (ALPN). Clients show a node certificate; a node that is not yet
// one may come without, so whoever serves must check with PeerIdentity. With
// requireCert, such clients are turned away in the handshake.
func ServerTLS(current Source, now func() time.Time, requireCert bool, protos ...string) *tls.Config {
	forCredentials := func(c *Credentials) *tls.Config {
		// Roots are sent along, which TLS does not need, for joiners (see JoinTLS).
		shown := c.cert
		shown.Certificate = slices.Clone(shown.Certificate)
		for _, root := range c.Roots {
			shown.Certificate = append(shown.Certificate, root.Raw)
		}
		cfg := &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Time:         now,
			NextProtos:   protos,
			Certificates: []tls.Certificate{shown},
			ClientCAs:    c.pool,
			ClientAuth:   tls.VerifyClientCertIfGiven,
			// A resumed session would carry an identity that was checked against
			// roots which may be gone.
			SessionTicketsDisabled: true,
		}
		if requireCert {
			cfg.ClientAuth = tls.RequireAndVerifyClientCert
		}
		return cfg
	}
	outer := forCredentials(current())
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return forCredentials(current()), nil
	}
	return outer
}

// ClientTLS is the configuration for dialing a node that must hold the name
// serverName: a node ID, or a role such as string(Manager). It shows the current
// certificate and trusts the current roots at every handshake.
func ClientTLS(current Source, now func() time.Time, serverName string, protos ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		Time:       now,
		NextProtos: protos,
		ServerName: serverName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert := current().cert
			return &cert, nil
		},
		// RootCAs could not follow a change of roots; VerifyConnection below does
		// the whole check with the roots of the moment instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verifyServer(cs, current().Roots, now(), serverName)
		},
	}
}

// JoinTLS is the configuration for a node's first connection, when all it has is a
// join token: it shows no certificate, and accepts a manager whose chain leads to
// the root that the token names (ServerTLS sends the roots along). JoinRoot then
// tells which root that was. A wrong root is ErrFingerprint.
func JoinTLS(token JoinToken, now func() time.Time, protos ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		Time:       now,
		NextProtos: protos,
		ServerName: string(Manager),
		// The root is not known before the handshake; VerifyConnection does the
		// whole check.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			root, err := JoinRoot(cs, token)
			if err != nil {
				return err
			}
			return verifyServer(cs, []*x509.Certificate{root}, now(), string(Manager))
		},
	}
}

// JoinRoot is the root that the token names, out of what the server sent.
func JoinRoot(cs tls.ConnectionState, token JoinToken) (*x509.Certificate, error) {
	return token.Verify(cs.PeerCertificates)
}

func verifyServer(cs tls.ConnectionState, roots []*x509.Certificate, now time.Time, name string) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("check server: it showed no certificate")
	}
	return verifyChain(cs.PeerCertificates, roots, now, name)
}

// PeerIdentity is who the other end of a finished handshake is. The error is
// ErrNotNode when it showed no certificate or one that is not a node's.
func PeerIdentity(cs tls.ConnectionState) (Identity, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return Identity{}, ErrNotNode
	}
	return IdentityOf(cs.PeerCertificates[0])
}
