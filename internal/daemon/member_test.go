package daemon

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/pki"
)

// madeIdentity writes the identity of a new swarm, as `swarm init` does before there is a log.
func madeIdentity(t *testing.T) (*host, *identity) {
	t.Helper()
	h := &host{cfg: &Config{DataRoot: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	spec := dockerapi.DefaultSwarmSpec(swarm.Spec{})
	made, err := model.MakeSpec(&spec)
	if err != nil {
		t.Fatal(err)
	}
	f := &founding{cluster: &model.Cluster{Spec: made}}
	f.id = &identity{Cluster: "c", NodeID: "n", Node: 1, Manager: true, ListenAddr: "127.0.0.1:0", AdvertiseAddr: "127.0.0.1:0", Founding: true}
	if err := f.certify(h); err != nil {
		t.Fatal(err)
	}
	return h, f.id
}

// TestInitCutShort: a daemon that was killed while it made a swarm is in none when it starts again, rather than
// in one that will never have a leader.
func TestInitCutShort(t *testing.T) {
	h, _ := madeIdentity(t)
	m, err := newMember(h)
	if err != nil {
		t.Fatal(err)
	}
	if m.active() != nil || len(m.starts) != 0 {
		t.Error("the node is in a swarm that was never made")
	}
	for _, left := range []string{"swarm", "raft", "agent"} {
		if _, err := os.Stat(h.cfg.data(left)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", left, err)
		}
	}
}

// TestForgetTwice: a node that forgets its swarm may be interrupted anywhere and do it again.
func TestForgetTwice(t *testing.T) {
	h, id := madeIdentity(t)
	id.Founding = false
	if err := id.write(h.cfg); err != nil {
		t.Fatal(err)
	}
	if got, err := loadIdentity(h.cfg); err != nil || got == nil || got.Founding {
		t.Fatalf("identity = %+v, %v", got, err)
	}
	for range 2 {
		if err := forgetSwarm(h.cfg); err != nil {
			t.Fatal(err)
		}
		if got, err := loadIdentity(h.cfg); err != nil || got != nil {
			t.Fatalf("identity after leaving = %+v, %v", got, err)
		}
	}
}

// TestRenewal: a certificate that ran out is read, so that it can be renewed, and a renewal that was cut short
// anywhere leaves a certificate with its key.
func TestRenewal(t *testing.T) {
	h, id := madeIdentity(t)
	snapOfKey := func() []byte {
		b, err := os.ReadFile(h.cfg.certPath(keyFile))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	oldKey := snapOfKey()
	ca, err := pki.NewCA(rand.Reader, time.Now().Add(-48*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewNodeKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(rand.Reader, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(rand.Reader, time.Now().Add(-47*time.Hour), csr, pki.Identity{Node: "n", Cluster: "c", Role: pki.Manager}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{rootFile: ca.CertPEM(), certFile: pki.EncodeCerts(cert), nextKeyFile: keyPEM, keyFile: oldKey} {
		if err := writeFile(h.cfg.certPath(name), data); err != nil {
			t.Fatal(err)
		}
	}
	got, err := loadIdentity(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !pki.ShouldRenew(got.creds.Load().Leaf, time.Now()) {
		t.Error("a certificate that ran out is not to be renewed")
	}
	if got.NodeID != id.NodeID {
		t.Errorf("identity = %+v", got)
	}
	// The next renewal is cut short, too, before it has a certificate.
	if err := writeFile(h.cfg.certPath(nextKeyFile), oldKey); err != nil {
		t.Fatal(err)
	}
	if _, err := loadIdentity(h.cfg); err != nil {
		t.Errorf("after two renewals that were cut short: %v", err)
	}
}
