package dispatch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/pki"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

const (
	maxCSR      = 16 << 10
	maxJoins    = 4096
	joinMemory  = 10 * time.Minute
	joinTries   = 8
	joinKeyLen  = 16
	maxJoinAddr = 256
)

// joins remembers which node a join made, so that a joiner that lost the answer does not become two nodes.
type joins struct {
	mu   sync.Mutex
	made map[[32]byte]join
}

type join struct {
	node model.NodeID
	at   time.Time
}

func newJoins() *joins { return &joins{made: map[[32]byte]join{}} }

func (j *joins) find(key [32]byte) (model.NodeID, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	m, ok := j.made[key]
	return m.node, ok && time.Since(m.at) < joinMemory
}

func (j *joins) add(key [32]byte, id model.NodeID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.made) >= maxJoins {
		for k, m := range j.made {
			if time.Since(m.at) >= joinMemory {
				delete(j.made, k)
			}
		}
		if len(j.made) >= maxJoins {
			clear(j.made)
		}
	}
	j.made[key] = join{id, time.Now()}
}

// GetRootCA implements the RPC.
func (s *Server) GetRootCA(context.Context, *pb.GetRootCARequest) (*pb.GetRootCAResponse, error) {
	c := s.cfg.State.Snapshot().Cluster()
	if c == nil {
		return nil, model.Errorf(model.Unavailable, "this manager has no cluster yet")
	}
	return &pb.GetRootCAResponse{CaPem: c.CACert}, nil
}

// IssueNodeCertificate implements the RPC.
func (s *Server) IssueNodeCertificate(ctx context.Context, req *pb.IssueNodeCertificateRequest) (*pb.IssueNodeCertificateResponse, error) {
	snap := s.cfg.State.Snapshot()
	c := snap.Cluster()
	if c == nil {
		return nil, model.Errorf(model.Unavailable, "this manager has no cluster yet")
	}
	if len(req.CsrPem) == 0 || len(req.CsrPem) > maxCSR || len(req.AdvertiseAddr) > maxJoinAddr {
		return nil, model.Invalidf("the certificate request is empty or too long")
	}
	ca, err := pki.LoadCA(c.CACert, c.CAKey)
	if err != nil {
		return nil, fmt.Errorf("cluster CA: %w", err)
	}
	var node *model.Node
	if req.JoinToken == "" {
		node, err = caller(ctx, snap)
	} else {
		node, err = s.join(ctx, c, ca, req)
	}
	if err != nil {
		return nil, err
	}
	role := pki.Worker
	if node.Spec.Role == swarm.NodeRoleManager {
		role = pki.Manager
	}
	id := pki.Identity{Node: c.Namer().NodeID(node.ID), Cluster: c.Namer().ClusterID(), Role: role}
	cert, err := ca.Issue(s.cfg.Random, time.Now(), req.CsrPem, id, lifetime(c))
	if err != nil {
		return nil, model.Invalidf("certificate request: %v", err)
	}
	return &pb.IssueNodeCertificateResponse{NodeId: id.Node, CertificatePem: pki.EncodeCerts(cert), CaPem: c.CACert,
		Role: string(node.Spec.Role), ClusterId: id.Cluster}, nil
}

func lifetime(c *model.Cluster) time.Duration {
	if c.Spec.Typed == nil {
		return 0
	}
	return c.Spec.Typed.CAConfig.NodeCertExpiry
}

// join makes the node that a valid token's holder becomes.
func (s *Server) join(ctx context.Context, c *model.Cluster, ca *pki.CA, req *pb.IssueNodeCertificateRequest) (*model.Node, error) {
	token, err := pki.ParseToken(req.JoinToken)
	if err != nil {
		return nil, model.Invalidf("%v", err)
	}
	role, ok := pki.Secrets{Worker: c.WorkerSecret, Manager: c.ManagerSecret}.Role(token.Secret)
	if !ok || token.Root != pki.FingerprintOf(ca.Certificate()) {
		return nil, model.Errorf(model.Forbidden, "A valid join token is necessary to join this cluster")
	}
	if len(req.JoinKey) != joinKeyLen {
		return nil, model.Invalidf("a join key has %d bytes", joinKeyLen)
	}
	// With the request in it, a key that someone saw makes no certificate for another's private key.
	key := sha256.Sum256(bytes.Join([][]byte{req.JoinKey, req.CsrPem, []byte(req.JoinToken)}, []byte{0}))
	if id, ok := s.joins.find(key); ok {
		if n := s.cfg.State.Snapshot().Node(id); n != nil {
			return n, nil
		}
	}
	spec := swarm.NodeSpec{Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailabilityActive}
	if role == pki.Manager {
		spec.Role = swarm.NodeRoleManager
	}
	switch a := swarm.NodeAvailability(req.Availability); a {
	case swarm.NodeAvailabilityDrain, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityActive:
		spec.Availability = a
	case "":
	default:
		return nil, model.Invalidf("invalid availability %q: want active, pause or drain", req.Availability)
	}
	n, err := s.makeNode(ctx, model.Node{Spec: spec, State: swarm.NodeStateUnknown, Addr: joinAddr(ctx, req.AdvertiseAddr)})
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	s.joins.add(key, n.ID)
	return n, nil
}

func joinAddr(ctx context.Context, advertised string) string {
	host := advertised
	if h, _, err := net.SplitHostPort(advertised); err == nil {
		host = h
	}
	if net.ParseIP(host) == nil {
		return wire.PeerAddr(ctx)
	}
	return host
}

// makeNode proposes a node under the next free number; another join may take that first.
func (s *Server) makeNode(ctx context.Context, n model.Node) (*model.Node, error) {
	for range joinTries {
		snap := s.cfg.State.Snapshot()
		n.ID = snap.LastNode() + 1
		b := &model.Batch{Actor: "join", Reason: "a node joined", Time: model.Time(time.Now().UnixNano()),
			Txns: []model.Txn{{Changes: []model.Change{{PutNode: &n}}}}}
		if _, err := io.ReadFull(s.cfg.Random, b.ID[:]); err != nil {
			return nil, fmt.Errorf("batch identifier: %w", err)
		}
		out, err := s.cfg.Proposer.Propose(ctx, b)
		if err != nil {
			return nil, err
		}
		var after *state.Snapshot
		if after, err = s.cfg.State.WaitIndex(ctx, out.Index); err != nil {
			return nil, err
		}
		if len(out.Results) > 0 && out.Results[0] == nil {
			if made := after.Node(n.ID); made != nil {
				return made, nil
			}
			return nil, model.Errorf(model.Unavailable, "the node was removed while it joined")
		}
		if kind := model.KindOf(out.Results[0]); kind != model.Conflict && kind != model.Stale {
			return nil, out.Results[0]
		}
	}
	return nil, model.Errorf(model.Unavailable, "too many nodes join at once, try again")
}
