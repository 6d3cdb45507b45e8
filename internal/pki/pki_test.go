package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"math/big"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(now time.Time) func() time.Time { return func() time.Time { return now } }

func newCA(t testing.TB) *CA {
	t.Helper()
	ca, err := NewCA(rand.Reader, t0)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// credentials issues a node certificate and builds credentials that trust roots
// (the issuer's own when none are given).
func credentials(t testing.TB, ca *CA, id Identity, roots ...*x509.Certificate) *Credentials {
	t.Helper()
	key, err := NewNodeKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := NewCSR(rand.Reader, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(rand.Reader, t0, csr, id, 0)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) == 0 {
		roots = []*x509.Certificate{ca.Certificate()}
	}
	c, err := NewCredentials(EncodeCerts(cert), keyPEM, EncodeCerts(roots...), t0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCA(t *testing.T) {
	ca := newCA(t)
	cert := ca.Certificate()
	if cert.Subject.CommonName != "swarm-ca" || !cert.IsCA || cert.NotAfter.Sub(t0) != RootLifetime || t0.Sub(cert.NotBefore) != time.Hour {
		t.Errorf("root %v from %v to %v", cert.Subject, cert.NotBefore, cert.NotAfter)
	}
	keyPEM, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadCA(ca.CertPEM(), keyPEM)
	if err != nil || !again.Certificate().Equal(cert) {
		t.Fatalf("load: %v", err)
	}
	if _, err := LoadCA(newCA(t).CertPEM(), keyPEM); err == nil {
		t.Error("a CA was loaded with another one's key")
	}
	node := credentials(t, ca, Identity{"n1", "c1", Manager})
	if _, err := LoadCA(EncodeCerts(node.Leaf), keyPEM); err == nil {
		t.Error("a node certificate was loaded as a CA")
	}
	info := TLSInfoOf([]*x509.Certificate{cert})
	key, err := x509.ParsePKIXPublicKey(info.CertIssuerPublicKey)
	if err != nil || !samePublicKey(key, cert.PublicKey) || !bytes.Equal(info.CertIssuerSubject, node.Leaf.RawIssuer) ||
		info.TrustRoot != string(ca.CertPEM()) {
		t.Errorf("TLSInfo %+v, %v", info, err)
	}
}

func TestIssue(t *testing.T) {
	ca := newCA(t)
	m := credentials(t, ca, Identity{Node: "node1", Cluster: "cluster1", Role: Manager}).Leaf
	if got := m.Subject.String(); got != "CN=node1,OU=swarm-manager,O=cluster1" {
		t.Errorf("subject %s", got)
	}
	if got := strings.Join(m.DNSNames, " "); got != "swarm-manager node1 swarm-ca" {
		t.Errorf("names %s", got)
	}
	if m.NotAfter.Sub(t0) != 2160*time.Hour || t0.Sub(m.NotBefore) != time.Hour {
		t.Errorf("valid from %v to %v", m.NotBefore, m.NotAfter)
	}
	w := credentials(t, ca, Identity{Node: "node2", Cluster: "cluster1", Role: Worker}).Leaf
	if got := strings.Join(w.DNSNames, " "); got != "swarm-worker node2" {
		t.Errorf("worker's names %s", got)
	}

	key, err := NewNodeKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := NewCSR(rand.Reader, key)
	if err != nil {
		t.Fatal(err)
	}
	id := Identity{"n", "c", Worker}
	short, err := ca.Issue(rand.Reader, t0, csr, id, time.Minute)
	if err != nil || short.NotAfter.Sub(t0) != time.Hour {
		t.Errorf("a short certificate ends at %v: %v", short.NotAfter, err)
	}
	long, err := ca.Issue(rand.Reader, t0, csr, id, 2*RootLifetime)
	if err != nil || !long.NotAfter.Equal(ca.Certificate().NotAfter) {
		t.Errorf("a long certificate ends at %v: %v", long.NotAfter, err)
	}
	bad := bytes.Clone(csr)
	bad[len(bad)/2] ^= 1
	for name, c := range map[string]struct {
		csr []byte
		id  Identity
	}{
		"no role": {csr, Identity{"n", "c", "swarm-king"}}, "no node": {csr, Identity{"", "c", Worker}},
		"no cluster": {csr, Identity{"n", "", Worker}}, "changed request": {bad, id}, "no request": {nil, id},
		"certificate": {ca.CertPEM(), id},
	} {
		if _, err := ca.Issue(rand.Reader, t0, c.csr, c.id, 0); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
}

func TestVerifyNode(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	id := Identity{"n1", "c1", Worker}
	leaf := []*x509.Certificate{credentials(t, ca, id).Leaf}
	roots := []*x509.Certificate{other.Certificate(), ca.Certificate()}
	if got, err := VerifyNode(leaf, roots, t0); err != nil || got != id {
		t.Errorf("%+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		chain, roots []*x509.Certificate
		now          time.Time
	}{
		"none":       {nil, roots, t0},
		"other root": {leaf, roots[:1], t0},
		"too early":  {leaf, roots, t0.Add(-2 * time.Hour)},
		"expired":    {leaf, roots, t0.Add(2161 * time.Hour)},
		"the root":   {roots[1:], roots, t0},
	} {
		if got, err := VerifyNode(c.chain, c.roots, c.now); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestRenewal(t *testing.T) {
	ca := newCA(t)
	points := map[time.Time]bool{}
	for range 20 {
		cert := credentials(t, ca, Identity{"n", "c", Worker}).Leaf
		life := cert.NotAfter.Sub(cert.NotBefore)
		p := RenewAt(cert)
		if p.Before(cert.NotBefore.Add(life/2)) || p.After(cert.NotBefore.Add(life*8/10)) {
			t.Errorf("renews at %v of %v", p.Sub(cert.NotBefore), life)
		}
		if ShouldRenew(cert, p.Add(-1)) || !ShouldRenew(cert, p) {
			t.Error("ShouldRenew does not agree with RenewAt")
		}
		points[p] = true
	}
	if len(points) < 19 {
		t.Errorf("only %d points of renewal for 20 certificates", len(points))
	}
}

func TestJoinToken(t *testing.T) {
	ca := newCA(t)
	secret, err := NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	token := MakeToken(ca.Certificate(), secret)
	if !regexp.MustCompile(`^SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}$`).MatchString(token.String()) {
		t.Errorf("token %s", token)
	}
	sum := sha256.Sum256(ca.CertPEM())
	n, _ := new(big.Int).SetString(token.String()[9:59], 36)
	if n.Cmp(new(big.Int).SetBytes(sum[:])) != 0 {
		t.Error("the digits are not the root's digest")
	}
	if got, err := ParseToken(" " + token.String() + "\n"); err != nil || got != token {
		t.Errorf("%+v, %v", got, err)
	}
	s := token.String()
	for _, bad := range []string{"", "x", s[:len(s)-1], s + "0", strings.ToUpper(s), strings.Replace(s, "-1-", "-2-", 1),
		s[:9] + strings.Repeat("z", 50) + s[59:], strings.ReplaceAll(s, "-", "_"), s[:59] + "0" + s[60:]} {
		if _, err := ParseToken(bad); !errors.Is(err, ErrBadToken) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	roots := []*x509.Certificate{newCA(t).Certificate(), ca.Certificate()}
	if got, err := token.Verify(roots); err != nil || got != roots[1] {
		t.Errorf("verify: %v", err)
	}
	if _, err := token.Verify(roots[:1]); !errors.Is(err, ErrFingerprint) {
		t.Errorf("another root: %v", err)
	}
}

func TestTokenLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := JoinToken{Secret: base36(rapid.SliceOfN(rapid.Byte(), secretBytes, secretBytes).Draw(t, "secret"), secretLen)}
		copy(token.Root[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "root"))
		if got, err := ParseToken(token.String()); err != nil || got != token {
			t.Fatalf("%+v became %+v, %v", token, got, err)
		}
	})
}

func TestSecrets(t *testing.T) {
	w, m := strings.Repeat("w", 25), strings.Repeat("m", 25)
	s := Secrets{Worker: w, Manager: m}
	for secret, want := range map[string]Role{w: Worker, m: Manager, "": "", strings.Repeat("x", 25): "", w[:24]: ""} {
		if got, ok := s.Role(secret); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", secret, got, ok)
		}
	}
	if _, ok := (Secrets{}).Role(""); ok {
		t.Error("an empty secret earned a role")
	}
}

func TestUnlockKey(t *testing.T) {
	k, err := NewUnlockKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text := k.String()
	if raw, err := base64.RawStdEncoding.DecodeString(strings.TrimPrefix(text, "SWMKEY-1-")); err != nil || !bytes.Equal(raw, k[:]) {
		t.Errorf("key %s: %v", text, err)
	}
	if got, err := ParseUnlockKey(text + "\n"); err != nil || got != k {
		t.Errorf("parse: %v", err)
	}
	for _, bad := range []string{"", "SWMKEY-1-", text[:len(text)-1], text + "A", text[9:], "SWMKEY-2-" + text[9:]} {
		if _, err := ParseUnlockKey(bad); !errors.Is(err, ErrBadUnlockKey) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	key, err := NewNodeKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	locked, err := LockKey(rand.Reader, plain, k)
	if err != nil || !IsLocked(locked) || IsLocked(plain) {
		t.Fatalf("lock: %v", err)
	}
	if _, err := DecodeKey(locked); !errors.Is(err, ErrKeyLocked) {
		t.Errorf("decode a locked key: %v", err)
	}
	if got, err := UnlockKeyPEM(locked, k); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unlock: %v", err)
	}
	k[0]++
	if _, err := UnlockKeyPEM(locked, k); !errors.Is(err, ErrBadUnlockKey) {
		t.Errorf("unlock with another key: %v", err)
	}
}

// socketPair is a connection in memory that, unlike net.Pipe, has buffers: both ends
// may write an alert at once.
func socketPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// shake runs one handshake and one echoed byte, which carries the server's verdict
// on the client's certificate back to it.
func shake(t *testing.T, server, client *tls.Config) (srv, cli tls.ConnectionState, err error) {
	t.Helper()
	a, b := socketPair(t)
	defer a.Close()
	done := make(chan error, 1)
	s, c := tls.Server(b, server), tls.Client(a, client)
	go func() {
		defer b.Close()
		var one [1]byte
		_, err := s.Read(one[:])
		if err == nil {
			_, err = s.Write(one[:])
		}
		done <- err
	}()
	if _, err = c.Write([]byte{1}); err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	a.Close()
	serverErr := <-done
	return s.ConnectionState(), c.ConnectionState(), errors.Join(err, serverErr)
}

func TestMutualTLS(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	manager := credentials(t, ca, Identity{"m1", "c1", Manager})
	worker := credentials(t, ca, Identity{"w1", "c1", Worker})
	stranger := credentials(t, other, Identity{"w2", "c1", Worker}, ca.Certificate(), other.Certificate())
	source := func(c *Credentials) Source { return func() *Credentials { return c } }
	server := ServerTLS(source(manager), at(t0), true, "h2", "raft/1")

	srv, cli, err := shake(t, server, ClientTLS(source(worker), at(t0), "m1", "raft/1"))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := PeerIdentity(srv); err != nil || id != worker.Identity {
		t.Errorf("server sees %+v, %v", id, err)
	}
	if id, err := PeerIdentity(cli); err != nil || id != manager.Identity {
		t.Errorf("client sees %+v, %v", id, err)
	}
	if srv.Version != tls.VersionTLS13 || srv.NegotiatedProtocol != "raft/1" {
		t.Errorf("version %x, protocol %q", srv.Version, srv.NegotiatedProtocol)
	}
	old := ClientTLS(source(worker), at(t0), "m1", "h2")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, client := range map[string]*tls.Config{
		"another name":           ClientTLS(source(worker), at(t0), "m2", "h2"),
		"a worker's name":        ClientTLS(source(worker), at(t0), string(Worker), "h2"),
		"another CA's client":    ClientTLS(source(stranger), at(t0), "m1", "h2"),
		"no certificate":         JoinTLS(MakeToken(ca.Certificate(), ""), at(t0), "h2"),
		"expired for the client": ClientTLS(source(worker), at(t0.Add(3000*time.Hour)), "m1", "h2"),
		"TLS 1.2":                old,
		"no common protocol":     ClientTLS(source(worker), at(t0), "m1", "other/1"),
	} {
		if _, _, err := shake(t, server, client); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestJoinTLS(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	manager := credentials(t, ca, Identity{"m1", "c1", Manager})
	worker := credentials(t, ca, Identity{"w1", "c1", Worker})
	source := func(c *Credentials) Source { return func() *Credentials { return c } }
	token := MakeToken(ca.Certificate(), "")
	srv, cli, err := shake(t, ServerTLS(source(manager), at(t0), false, "h2"), JoinTLS(token, at(t0), "h2"))
	if err != nil {
		t.Fatal(err)
	}
	if root, err := JoinRoot(cli, token); err != nil || !root.Equal(ca.Certificate()) {
		t.Errorf("root: %v", err)
	}
	if _, err := PeerIdentity(srv); !errors.Is(err, ErrNotNode) {
		t.Errorf("a joiner has the identity %v", err)
	}
	_, _, err = shake(t, ServerTLS(source(manager), at(t0), false, "h2"), JoinTLS(MakeToken(other.Certificate(), ""), at(t0), "h2"))
	if !errors.Is(err, ErrFingerprint) {
		t.Errorf("another cluster: %v", err)
	}
	// A worker knows the root too, but must not pass for a manager.
	if _, _, err := shake(t, ServerTLS(source(worker), at(t0), false, "h2"), JoinTLS(token, at(t0), "h2")); err == nil {
		t.Error("a worker passed for a manager")
	}
}

// TestRotation changes the root under running configurations: old, both, new.
func TestRotation(t *testing.T) {
	a, b := newCA(t), newCA(t)
	both := []*x509.Certificate{a.Certificate(), b.Certificate()}
	mid, wid := Identity{"m1", "c1", Manager}, Identity{"w1", "c1", Worker}
	m, w := credentials(t, a, mid), credentials(t, a, wid)
	server := ServerTLS(func() *Credentials { return m }, at(t0), true, "h2")
	client := ClientTLS(func() *Credentials { return w }, at(t0), "m1", "h2")
	oldWorker := w
	stale := ClientTLS(func() *Credentials { return oldWorker }, at(t0), "m1", "h2")
	for step, change := range []func(){
		func() {},
		func() { m = credentials(t, a, mid, both...) },
		func() { w = credentials(t, b, wid, both...) },
		func() { m = credentials(t, b, mid, both...) },
		func() { m = credentials(t, b, mid) },
		func() { w = credentials(t, b, wid) },
	} {
		change()
		if _, _, err := shake(t, server, client); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
	}
	if _, _, err := shake(t, server, stale); err == nil {
		t.Error("the old root's client is still accepted")
	}
}

func FuzzDecode(f *testing.F) {
	ca := newCA(f)
	keyPEM, err := ca.KeyPEM()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ca.CertPEM())
	f.Add(keyPEM)
	f.Add([]byte(MakeToken(ca.Certificate(), strings.Repeat("0", 25)).String()))
	f.Fuzz(func(t *testing.T, data []byte) {
		if certs, err := DecodeCerts(data); err == nil {
			again, err := DecodeCerts(EncodeCerts(certs...))
			if err != nil || len(again) != len(certs) {
				t.Fatalf("%d certificates became %d: %v", len(certs), len(again), err)
			}
		}
		if key, err := DecodeKey(data); err == nil {
			if _, err := EncodeKey(key); err != nil {
				t.Fatal(err)
			}
		}
		if token, err := ParseToken(string(data)); err == nil && token.String() != strings.TrimSpace(string(data)) {
			t.Fatalf("%q became %q", data, token)
		}
	})
}
