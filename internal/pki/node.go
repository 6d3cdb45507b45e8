package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Role is what a node may do; it is the organizational unit of its certificate.
type Role string

const (
	Manager Role = "swarm-manager"
	Worker  Role = "swarm-worker"
)

// Valid reports whether r is one of the roles.
func (r Role) Valid() bool { return r == Manager || r == Worker }

// Identity is who a node certificate says its holder is.
type Identity struct {
	Node    string // node ID
	Cluster string // cluster ID
	Role    Role
}

// ErrNotNode is a certificate that is not a node's.
var ErrNotNode = errors.New("not a swarm node's certificate")

// NewNodeKey makes a node's private key (ECDSA P-256).
func NewNodeKey(random io.Reader) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return nil, fmt.Errorf("make node key: %w", err)
	}
	return key, nil
}

// NewCSR asks for a certificate for key, PEM. It says nothing but the key: who the
// node is, the issuer decides.
func NewCSR(random io.Reader, key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(random, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: csrBlock, Bytes: der}), nil
}

// Issue signs a node certificate for the key of a request. lifetime is raised to
// MinNodeLifetime and cut to the CA's own; 0 means DefaultNodeLifetime. The result
// is the node's certificate.
func (ca *CA) Issue(random io.Reader, now time.Time, csrPEM []byte, id Identity, lifetime time.Duration) (*x509.Certificate, error) {
	if id.Node == "" || id.Cluster == "" || !id.Role.Valid() {
		return nil, fmt.Errorf("issue certificate: incomplete identity %+v", id)
	}
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial(random)
	if err != nil {
		return nil, err
	}
	if lifetime == 0 {
		lifetime = DefaultNodeLifetime
	}
	lifetime = max(lifetime, MinNodeLifetime)
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			CommonName:         id.Node,
			OrganizationalUnit: []string{string(id.Role)},
			Organization:       []string{id.Cluster},
		},
		DNSNames:              dnsNames(id),
		NotBefore:             now.Add(-Backdate).UTC().Truncate(time.Second),
		NotAfter:              now.Add(lifetime).UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(random, template, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for node %s: %w", id.Node, err)
	}
	return x509.ParseCertificate(der)
}

// dnsNames are the names that a peer may dial a node by: its role and its ID, and
// for a manager, which also answers certificate requests, the CA's.
func dnsNames(id Identity) []string {
	names := []string{string(id.Role), id.Node}
	if id.Role == Manager {
		names = append(names, rootName)
	}
	return names
}

func parseCSR(csrPEM []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != csrBlock {
		return nil, errors.New("read certificate request: not a PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check certificate request: %w", err)
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("check certificate request: the key is not ECDSA P-256")
	}
	return csr, nil
}

// VerifyNode checks a node's chain (leaf first) against the roots at a time and
// returns who the node is.
func VerifyNode(chain []*x509.Certificate, roots []*x509.Certificate, now time.Time) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, errors.New("check node certificate: none was presented")
	}
	if err := verifyChain(chain, roots, now, ""); err != nil {
		return Identity{}, err
	}
	return IdentityOf(chain[0])
}

// IdentityOf reads who a certificate says its holder is. The chain must have been
// verified already; the error is ErrNotNode.
func IdentityOf(leaf *x509.Certificate) (Identity, error) {
	s := leaf.Subject
	if leaf.IsCA || s.CommonName == "" || len(s.OrganizationalUnit) != 1 || len(s.Organization) != 1 || s.Organization[0] == "" {
		return Identity{}, ErrNotNode
	}
	id := Identity{Node: s.CommonName, Cluster: s.Organization[0], Role: Role(s.OrganizationalUnit[0])}
	if !id.Role.Valid() || !slices.Contains(leaf.DNSNames, id.Node) {
		return Identity{}, ErrNotNode
	}
	return id, nil
}

func verifyChain(chain, roots []*x509.Certificate, now time.Time, name string) error {
	opts := x509.VerifyOptions{
		DNSName:       name,
		Roots:         pool(roots),
		Intermediates: pool(chain[1:]),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return fmt.Errorf("check node certificate: %w", err)
	}
	return nil
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// RenewAt is when a certificate should be renewed: at a point between 50 % and
// 80 % of its life that follows from the certificate itself, so that a cluster's
// nodes do not all ask at once and a restarted node keeps to its point.
func RenewAt(cert *x509.Certificate) time.Time {
	life := cert.NotAfter.Sub(cert.NotBefore)
	sum := sha256.Sum256(cert.Raw)
	jitter := float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32)
	return cert.NotBefore.Add(life/2 + time.Duration(float64(life)*0.3*jitter))
}

// ShouldRenew reports whether the certificate's point of renewal has come.
func ShouldRenew(cert *x509.Certificate, now time.Time) bool { return !now.Before(RenewAt(cert)) }
