package daemon

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"time"

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
	conn, err := wire.NewClient(a.localAddr(), a.clientTLS())
	if err != nil {
		return fmt.Errorf("reach a manager: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	res, err := pb.NewCAClient(conn).IssueNodeCertificate(ctx, &pb.IssueNodeCertificateRequest{CsrPem: csr})
	if err != nil {
		return fmt.Errorf("ask for a certificate: %w", wire.FromStatus(err))
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		return err
	}
	return a.id.save(a.h.cfg, res.CertificatePem, keyPEM, res.CaPem)
}
