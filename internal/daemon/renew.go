package daemon

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/pki"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// renewEvery is how often the certificate's age is looked at.
const renewEvery = time.Minute

// clientTLS is how this node reaches a manager.
func (a *active) clientTLS() *tls.Config {
	return pki.ClientTLS(a.id.creds.Load, time.Now, string(pki.Manager), wire.ProtoGRPC)
}

// renew replaces the node's certificate when its time has come. A failure is tried again; the
// certificate has a good part of its life left then.
func (a *active) renew(ctx context.Context) error {
	// Before the state is there, nobody could sign.
	if _, err := a.replica.WaitIndex(ctx, 1); err != nil {
		return nil // ctx ended
	}
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		if pki.ShouldRenew(a.id.creds.Load().Leaf, time.Now()) {
			if err := a.renewNow(ctx); err != nil && ctx.Err() == nil {
				a.h.log.Warn("the node's certificate could not be renewed; trying again", "err", err, "expires", a.id.creds.Load().Leaf.NotAfter)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *active) renewNow(ctx context.Context) error {
	key, err := pki.NewNodeKey(rand.Reader)
	if err != nil {
		return err
	}
	csr, err := pki.NewCSR(rand.Reader, key)
	if err != nil {
		return err
	}
	res, err := a.issue(ctx, csr)
	if err != nil {
		return err
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		return err
	}
	return a.id.save(a.h.cfg, res.CertificatePem, keyPEM, res.CaPem)
}

// issue has a request signed. A manager does it itself: it holds the CA, and when its own certificate has run out (it was
// switched off for long) nobody would talk to it.
func (a *active) issue(ctx context.Context, csr []byte) (*pb.IssueNodeCertificateResponse, error) {
	if a.id.Manager {
		return a.issueOwn(csr)
	}
	conn, err := wire.NewClient(a.localAddr(), a.clientTLS())
	if err != nil {
		return nil, fmt.Errorf("reach a manager: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	res, err := pb.NewCAClient(conn).IssueNodeCertificate(ctx, &pb.IssueNodeCertificateRequest{CsrPem: csr})
	if err != nil {
		return nil, fmt.Errorf("ask for a certificate: %w", wire.FromStatus(err))
	}
	return res, nil
}

func (a *active) issueOwn(csr []byte) (*pb.IssueNodeCertificateResponse, error) {
	snap := a.replica.Snapshot()
	c, n := snap.Cluster(), snap.Node(a.id.Node)
	if c == nil || n == nil || n.Spec.Role != swarm.NodeRoleManager {
		return nil, errors.New("this node is no manager of the swarm, by its state")
	}
	ca, err := pki.LoadCA(c.CACert, c.CAKey)
	if err != nil {
		return nil, fmt.Errorf("cluster CA: %w", err)
	}
	var life time.Duration
	if c.Spec.Typed != nil {
		life = c.Spec.Typed.CAConfig.NodeCertExpiry
	}
	cert, err := ca.Issue(rand.Reader, time.Now(), csr, pki.Identity{Node: a.id.NodeID, Cluster: a.id.Cluster, Role: pki.Manager}, life)
	if err != nil {
		return nil, err
	}
	return &pb.IssueNodeCertificateResponse{CertificatePem: pki.EncodeCerts(cert), CaPem: c.CACert}, nil
}
