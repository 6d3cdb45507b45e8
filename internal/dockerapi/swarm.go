package dockerapi

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/pki"
	"github.com/skep-swarm/skep/internal/state"
)

// Limits of a swarm's settings.
const (
	minDataPathPort = 1024
	maxDataPathPort = 49151
	minCertExpiry   = time.Hour
)

func clusterInfo(c *model.Cluster) (swarm.ClusterInfo, error) {
	out := swarm.ClusterInfo{
		ID:              c.Namer().ClusterID(),
		Meta:            meta(c.SpecVersion, c.CreatedAt, c.UpdatedAt),
		DefaultAddrPool: c.DefaultAddrPool,
		SubnetSize:      c.SubnetSize,
		DataPathPort:    c.DataPathPort,
	}
	if c.Spec.Typed != nil {
		out.Spec = DefaultSwarmSpec(*c.Spec.Typed)
	}
	out.Spec.CAConfig.SigningCAKey = "" // never shown
	if len(c.CACert) > 0 {
		roots, err := pki.DecodeCerts(c.CACert)
		if err != nil {
			return out, fmt.Errorf("read the swarm's root certificate: %w", err)
		}
		out.TLSInfo = swarm.TLSInfo(pki.TLSInfoOf(roots))
	}
	return out, nil
}

func (s *Server) getSwarm(r *request) error {
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	c := snap.Cluster()
	info, err := clusterInfo(c)
	if err != nil {
		return err
	}
	out := swarm.Swarm{ClusterInfo: info}
	if roots, err := pki.DecodeCerts(c.CACert); err == nil && len(roots) > 0 {
		out.JoinTokens = swarm.JoinTokens{
			Worker:  pki.MakeToken(roots[0], c.WorkerSecret).String(),
			Manager: pki.MakeToken(roots[0], c.ManagerSecret).String(),
		}
	}
	return writeJSON(r, http.StatusOK, out)
}

func (s *Server) getUnlockKey(r *request) error {
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	var out swarm.UnlockKeyResponse
	if c := snap.Cluster(); len(c.UnlockKey) > 0 && c.Spec.Typed.EncryptionConfig.AutoLockManagers {
		out.UnlockKey = "SWMKEY-1-" + base64.RawStdEncoding.EncodeToString(c.UnlockKey)
	}
	return writeJSON(r, http.StatusOK, out)
}

func (s *Server) initSwarm(r *request) error {
	var req swarm.InitRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if s.backend.Local().State != swarm.LocalNodeStateInactive && !req.ForceNewCluster {
		return model.Errorf(unavailable, alreadyInSwarm)
	}
	if err := fillInit(&req); err != nil {
		return err
	}
	id, err := s.backend.InitSwarm(r.ctx(), req)
	if err != nil {
		return err
	}
	return writeJSON(r, http.StatusOK, id)
}

// fillInit checks a request for a new swarm and fills in what it leaves out.
func fillInit(req *swarm.InitRequest) error {
	var err error
	if req.ListenAddr == "" {
		req.ListenAddr = defaultListenAddr
	}
	if req.ListenAddr, err = withPort(req.ListenAddr); err != nil {
		return model.Invalidf("invalid ListenAddr %q: %v", req.ListenAddr, err)
	}
	if req.DataPathPort == 0 {
		req.DataPathPort = defaultDataPathPort
	}
	if req.DataPathPort < minDataPathPort || req.DataPathPort > maxDataPathPort {
		return model.Invalidf("Datapath port number must be in the range of %d to %d", minDataPathPort, maxDataPathPort)
	}
	if req.SubnetSize == 0 {
		req.SubnetSize = defaultSubnetSize
	}
	if err := admitPools(req.DefaultAddrPool, req.SubnetSize); err != nil {
		return err
	}
	switch req.Availability {
	case "":
		req.Availability = swarm.NodeAvailabilityActive
	case swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
	default:
		return model.Invalidf("invalid Availability: %q", req.Availability)
	}
	if req.Spec.Name != "" && req.Spec.Name != defaultSwarmName {
		return model.Invalidf(`swarm spec must be named "default"`)
	}
	req.Spec.EncryptionConfig.AutoLockManagers = req.Spec.EncryptionConfig.AutoLockManagers || req.AutoLockManagers
	fresh := DefaultSwarmSpec(swarm.Spec{})
	req.Spec = mergeSwarmSpec(fresh, req.Spec)
	if err := admitSwarm(&fresh, &req.Spec); err != nil {
		return err
	}
	return unsupportedSwarm(&fresh, &req.Spec)
}

// withPort gives an address the swarm's port when it has none. The host part may also be the name
// of an interface.
func withPort(addr string) (string, error) {
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		return ap.String(), nil
	}
	if a, err := netip.ParseAddr(addr); err == nil {
		return netip.AddrPortFrom(a, defaultSwarmPort).String(), nil
	}
	host, port, found := cutLast(addr, ':')
	if !found {
		return addr + ":" + strconv.Itoa(defaultSwarmPort), nil
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil || host == "" {
		return addr, fmt.Errorf("invalid proto, expected tcp: %s", addr)
	}
	return addr, nil
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == sep {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func admitPools(pools []netip.Prefix, size uint32) error {
	if size > 29 {
		return model.Invalidf("subnet size is out of range: %d", size)
	}
	for i, p := range pools {
		switch {
		case !p.IsValid() || !p.Addr().Is4():
			return model.Invalidf("invalid default address pool %s: it must be an IPv4 network in CIDR form", p)
		case int(size) < p.Bits():
			return model.Invalidf("invalid CIDR: %q. Subnet size (%d) must be at least the pool's prefix length", p, size)
		}
		for _, o := range pools[:i] {
			if p.Overlaps(o) {
				return model.Invalidf("invalid default address pools: %s and %s overlap", o, p)
			}
		}
	}
	return nil
}

// admitSwarm checks a swarm's whole spec against the one before it.
func admitSwarm(old, spec *swarm.Spec) error {
	switch {
	case spec.Name != old.Name:
		return invalid("modification of cluster name is not allowed")
	case spec.CAConfig.NodeCertExpiry < minCertExpiry:
		return invalid("minimum certificate expiry time is: 1h0m0s")
	case spec.Dispatcher.HeartbeatPeriod < 0:
		return invalid("heartbeat time period cannot be a negative duration")
	case spec.Dispatcher.HeartbeatPeriod < time.Second:
		return invalid("heartbeat time period must be at least 1s")
	case spec.Raft.ElectionTick <= spec.Raft.HeartbeatTick:
		return invalid("raft: ElectionTick must be greater than HeartbeatTick")
	}
	return admitLabels("Labels", spec.Labels)
}

func (s *Server) updateSwarm(r *request) error {
	version, err := readVersion(r, "swarm")
	if err != nil {
		return err
	}
	var spec swarm.Spec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	if r.bool("rotateManagerUnlockKey") {
		return model.Errorf(unimplemented, "autolock is not available yet: there is no unlock key to rotate")
	}
	_, err = s.write(r.ctx(), "update the swarm", func(snap *state.Snapshot) (model.Txn, error) {
		c := *snap.Cluster()
		if c.SpecVersion != version {
			return model.Txn{}, errOutOfSequence
		}
		old := DefaultSwarmSpec(*c.Spec.Typed)
		merged := mergeSwarmSpec(old, spec)
		if err := admitSwarm(&old, &merged); err != nil {
			return model.Txn{}, err
		}
		if err := unsupportedSwarm(&old, &merged); err != nil {
			return model.Txn{}, err
		}
		if c.Spec, err = model.MakeSpec(&merged); err != nil {
			return model.Txn{}, err
		}
		for key, secret := range map[string]*string{"rotateWorkerToken": &c.WorkerSecret, "rotateManagerToken": &c.ManagerSecret} {
			if !r.bool(key) {
				continue
			}
			if *secret, err = pki.NewSecret(s.rand); err != nil {
				return model.Txn{}, err
			}
		}
		return model.Txn{
			Guards:  []model.Guard{{Key: model.ClusterKey(), Group: model.GroupSpec, Version: version}},
			Changes: []model.Change{{PutCluster: &c}},
		}, nil
	})
	if err != nil {
		return err
	}
	return writeEmpty(r, http.StatusOK)
}

func (s *Server) joinSwarm(r *request) error {
	var req swarm.JoinRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if s.backend.Local().State != swarm.LocalNodeStateInactive {
		return model.Errorf(unavailable, alreadyInSwarm)
	}
	if len(req.RemoteAddrs) == 0 {
		return model.Invalidf("at least 1 RemoteAddr is required to join")
	}
	if req.ListenAddr == "" {
		req.ListenAddr = defaultListenAddr
	}
	var err error
	if req.ListenAddr, err = withPort(req.ListenAddr); err != nil {
		return model.Invalidf("invalid ListenAddr %q: %v", req.ListenAddr, err)
	}
	for i, a := range req.RemoteAddrs {
		if req.RemoteAddrs[i], err = withPort(a); err != nil {
			return model.Invalidf("invalid remoteAddr %q: %v", a, err)
		}
	}
	if _, err := pki.ParseToken(req.JoinToken); err != nil {
		return fmt.Errorf("invalid join token") // Docker's 500
	}
	if err := s.backend.JoinSwarm(r.ctx(), req); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusOK)
}

func (s *Server) unlockSwarm(r *request) error {
	var req swarm.UnlockRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	switch s.backend.Local().State {
	case swarm.LocalNodeStateLocked:
	case swarm.LocalNodeStateInactive:
		return notManager(Local{State: swarm.LocalNodeStateInactive}, unavailable)
	default:
		return model.Conflictf("swarm is not locked")
	}
	if err := s.backend.UnlockSwarm(r.ctx(), req.UnlockKey); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusOK)
}

func (s *Server) leaveSwarm(r *request) error {
	local, force := s.backend.Local(), r.bool("force")
	if local.State == swarm.LocalNodeStateInactive {
		return model.Errorf(unavailable, notInSwarm)
	}
	if local.Manager && !force {
		return s.mayNotLeave(r)
	}
	if err := s.backend.LeaveSwarm(r.ctx(), force); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusOK)
}

// mayNotLeave is what a manager is told that would leave without force, in Docker's words.
func (s *Server) mayNotLeave(r *request) error {
	text := "You are attempting to leave the swarm on a node that is participating as a manager. "
	snap, err := s.state(r.ctx())
	if err != nil {
		text += "Doing so may lose the consensus of your cluster. "
	} else {
		managers, reachable := 0, 0
		for n := range snap.Nodes() {
			if n.Spec.Role == swarm.NodeRoleManager {
				managers++
				if n.State != swarm.NodeStateDown {
					reachable++
				}
			}
		}
		switch {
		case managers <= 1:
			return model.Errorf(unavailable, "%s", text+"Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ")
		case reachable-1 < managers/2+1:
			text += fmt.Sprintf("Removing this node leaves %d managers out of %d. Without a Raft quorum your swarm will be inaccessible. ", reachable-1, managers)
		}
	}
	return model.Errorf(unavailable, "%s", text+"The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.")
}
