package daemon

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/pki"
)

// featureLevel is what this version writes at most; see docs/upgrade.md.
const featureLevel = 1

// founding is a new swarm before its log exists.
type founding struct {
	id      *identity
	cluster *model.Cluster
	node    *model.Node
}

// found makes the identity of a new swarm and of its first node, on disk. The request is complete but for its addresses
// and pools.
func (h *host) found(req swarm.InitRequest) (*founding, error) {
	listen, err := listenAddress(req.ListenAddr)
	if err != nil {
		return nil, err
	}
	advertise, err := advertiseAddress(req.AdvertiseAddr, h.cfg.AdvertiseAddr, listen)
	if err != nil {
		return nil, err
	}
	// What a swarm left behind whose end was cut short belongs to nobody.
	if err := forgetSwarm(h.cfg); err != nil {
		return nil, err
	}
	// Whether the port is free is found out before anything is written.
	probe, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("rpc error: code = Unknown desc = %w", err)
	}
	if err := probe.Close(); err != nil {
		return nil, fmt.Errorf("listen at %s: %w", listen, err)
	}
	f := &founding{cluster: &model.Cluster{Incarnation: 1, FeatureLevel: featureLevel}}
	if err := f.fill(h, req); err != nil {
		return nil, err
	}
	namer := f.cluster.Namer()
	f.id = &identity{Cluster: namer.ClusterID(), Node: 1, NodeID: namer.NodeID(1), Manager: true, ListenAddr: listen, AdvertiseAddr: advertise, Founding: true}
	if _, err := rand.Read(f.id.RaftKey[:]); err != nil {
		return nil, fmt.Errorf("make the log's key: %w", err)
	}
	f.makeNode(h, req)
	return f, f.certify(h)
}

func (f *founding) fill(h *host, req swarm.InitRequest) (err error) {
	c := f.cluster
	if _, err := rand.Read(c.IDKey[:]); err != nil {
		return fmt.Errorf("make the swarm's identifier: %w", err)
	}
	if c.GatewayPool, err = h.gatewayPool(); err != nil {
		return err
	}
	c.GatewayULA = netplan.Pool6(c.Namer().ClusterID())
	c.DefaultAddrPool, c.SubnetSize, c.DataPathPort = req.DefaultAddrPool, req.SubnetSize, req.DataPathPort
	switch {
	case len(c.DefaultAddrPool) > 0:
	case len(h.cfg.AddressPools) > 0:
		// The request's size is that of the pools which it did not name.
		c.DefaultAddrPool, c.SubnetSize = h.cfg.AddressPools, h.cfg.SubnetSize
	default:
		c.DefaultAddrPool = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	}
	if c.WorkerSecret, err = pki.NewSecret(rand.Reader); err != nil {
		return err
	}
	if c.ManagerSecret, err = pki.NewSecret(rand.Reader); err != nil {
		return err
	}
	c.Spec, err = model.MakeSpec(&req.Spec)
	return err
}

func (f *founding) makeNode(h *host, req swarm.InitRequest) {
	f.node = &model.Node{
		ID: 1, Spec: swarm.NodeSpec{Role: swarm.NodeRoleManager, Availability: req.Availability},
		Description: swarm.NodeDescription{Hostname: h.machine.Name},
		State:       swarm.NodeStateUnknown, Addr: f.id.addr(), ManagerAddr: f.id.AdvertiseAddr,
		Gateway6: netplan.Block6(f.cluster.GatewayULA, 1),
	}
}

// certify makes the CA and the first certificate, and writes the identity down.
func (f *founding) certify(h *host) error {
	now := time.Now()
	ca, err := pki.NewCA(rand.Reader, now)
	if err != nil {
		return err
	}
	f.cluster.CACert = ca.CertPEM()
	if f.cluster.CAKey, err = ca.KeyPEM(); err != nil {
		return err
	}
	key, err := pki.NewNodeKey(rand.Reader)
	if err != nil {
		return err
	}
	csr, err := pki.NewCSR(rand.Reader, key)
	if err != nil {
		return err
	}
	cert, err := ca.Issue(rand.Reader, now, csr, pki.Identity{Node: f.id.NodeID, Cluster: f.id.Cluster, Role: pki.Manager}, f.cluster.Spec.Typed.CAConfig.NodeCertExpiry)
	if err != nil {
		return err
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		return err
	}
	return f.id.save(h.cfg, pki.EncodeCerts(cert), keyPEM, ca.CertPEM())
}

// write waits until this node leads and puts the swarm into the log.
func (f *founding) write(ctx context.Context, a *active) error {
	if err := a.awaitLeader(ctx); err != nil {
		return err
	}
	ingress := &model.Network{ID: 1, Name: "ingress", Driver: "overlay", Ingress: true, IPAM: []model.IPAMConfig{{Subnet: f.cluster.GatewayPool}, {Subnet: f.cluster.GatewayULA}}}
	changes := []model.Change{{PutCluster: f.cluster}, {PutNode: f.node}, {PutNetwork: ingress}}
	loaded, err := a.h.imageTable(ctx)
	if err != nil {
		return err
	}
	out, err := a.proposer.Propose(ctx, &model.Batch{Actor: "init", Reason: "a new swarm", Txns: []model.Txn{{Changes: append(changes, loaded...)}}})
	if err != nil {
		return err
	}
	if out.Results[0] != nil {
		return out.Results[0]
	}
	f.id.Founding = false
	return f.id.write(a.h.cfg)
}

// maxFirstImages bounds the table that a new swarm starts with.
const maxFirstImages = 1000

// imageTable says what the names of the images mean that were loaded before there was a swarm.
func (h *host) imageTable(ctx context.Context) ([]model.Change, error) {
	all, err := h.images.All(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the images of this node: %w", err)
	}
	var out []model.Change
	for _, i := range all {
		for _, name := range i.Names {
			if len(out) < maxFirstImages {
				out = append(out, model.Change{PutImage: &model.Image{Name: name, Digest: i.Digest, Platforms: []swarm.Platform{{OS: i.OS, Architecture: i.Architecture}}}})
			}
		}
	}
	return out, nil
}
