package dockerapi

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

const (
	scopeSwarm = "swarm"
	scopeLocal = "local"
	// ingressNumber is the number of the ingress network while the state has no object for it.
	ingressNumber model.NetworkID = 1 << 40
)

var notFoundf = model.NotFoundf

// ingressNetwork is the network of published ports: the state's, or what stands for the gateway
// network that every task is on.
func ingressNetwork(snap *state.Snapshot) *model.Network {
	for n := range snap.Networks() {
		if n.Ingress {
			return n
		}
	}
	c := snap.Cluster()
	n := &model.Network{ID: ingressNumber, Name: "ingress", Driver: "overlay", Ingress: true, CreatedAt: c.CreatedAt, Version: 1}
	if c.GatewayPool.IsValid() {
		n.IPAM = append(n.IPAM, model.IPAMConfig{Subnet: c.GatewayPool})
	}
	return n
}

// predefined are the networks of the host itself. Their IDs stay the same on this host.
func predefined(hostID string, at time.Time) []network.Network {
	var out []network.Network
	for _, n := range []struct{ name, driver string }{{"bridge", "bridge"}, {"host", "host"}, {"none", "null"}} {
		sum := sha256.Sum256([]byte("network " + n.name + " " + hostID))
		out = append(out, network.Network{
			Name: n.name, ID: hex.EncodeToString(sum[:]), Created: at, Scope: scopeLocal, Driver: n.driver, EnableIPv4: true,
			IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}}, Options: map[string]string{}, Labels: map[string]string{},
		})
	}
	return out
}

func viewNetwork(namer model.Namer, n *model.Network) network.Network {
	out := network.Network{
		Name: n.Name, ID: namer.NetworkID(n.ID), Created: wallTime(n.CreatedAt), Scope: scopeSwarm, Driver: n.Driver, EnableIPv4: true,
		Ingress: n.Ingress, IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
		Options: map[string]string{}, Labels: mergedLabels(n.Labels, nil),
	}
	for _, p := range n.IPAM {
		c := network.IPAMConfig{Subnet: p.Subnet}
		if p.Subnet.Addr().Is6() {
			out.EnableIPv6 = true
		}
		out.IPAM.Config = append(out.IPAM.Config, c)
	}
	return out
}

// networks are all that this node knows: the host's own, and the swarm's on a manager.
func (s *Server) networks(r *request) ([]network.Network, error) {
	h, err := s.backend.SystemInfo(r.ctx())
	if err != nil {
		return nil, err
	}
	out := predefined(h.ID, time.Time{})
	l := s.backend.Local()
	if l.State != swarm.LocalNodeStateActive || !l.Manager {
		return out, nil
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return nil, err
	}
	namer := snap.Cluster().Namer()
	ingress := ingressNetwork(snap)
	out = append(out, viewNetwork(namer, ingress))
	for n := range snap.Networks() {
		if n.ID != ingress.ID {
			out = append(out, viewNetwork(namer, n))
		}
	}
	return out, nil
}

// networkView is a network as Docker lists it: with what is on it, even if nothing is.
type networkView struct {
	network.Network
	Containers map[string]network.EndpointResource
}

func (s *Server) listNetworks(r *request) error {
	f, err := readFilters(r, "driver", "id", "label", "name", "scope", "type", "dangling")
	if err != nil {
		return err
	}
	dangling, askedDangling, err := f.flag("dangling")
	if err != nil {
		return err
	}
	for _, t := range f["type"] {
		if t != "custom" && t != "builtin" {
			return model.Invalidf("invalid filter: 'type'='%s'", t)
		}
	}
	all, err := s.networks(r)
	if err != nil {
		return err
	}
	out := []networkView{}
	for _, n := range all {
		typ := "custom"
		if isPredefined(n) {
			typ = "builtin"
		}
		unused := typ == "custom" // nothing can be attached to a network of the users' yet
		if f.exact("driver", n.Driver) && f.prefix("id", n.ID) && f.labels("label", n.Labels) && f.contains("name", n.Name) &&
			f.exact("scope", n.Scope) && f.exact("type", typ) && (!askedDangling || dangling == unused) {
			out = append(out, networkView{n, map[string]network.EndpointResource{}})
		}
	}
	return writeJSON(r, http.StatusOK, out)
}

func isPredefined(n network.Network) bool {
	return n.Ingress || n.Scope == scopeLocal && slices.Contains([]string{"bridge", "host", "none"}, n.Name)
}

func (s *Server) findNetwork(r *request) (network.Network, error) {
	all, err := s.networks(r)
	if err != nil {
		return network.Network{}, err
	}
	ref, scope := r.vars["id"], r.query("scope")
	tests := []func(network.Network) bool{
		func(n network.Network) bool { return n.ID == ref },
		func(n network.Network) bool { return n.Name == ref },
		func(n network.Network) bool { return strings.HasPrefix(n.ID, ref) },
	}
	for _, test := range tests {
		var found []network.Network
		for _, n := range all {
			if test(n) && (scope == "" || n.Scope == scope) {
				found = append(found, n)
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return network.Network{}, model.Invalidf("network %s is ambiguous (%d matches found)", ref, len(found))
		}
	}
	return network.Network{}, notFoundf("network %s not found", ref)
}

func (s *Server) getNetwork(r *request) error {
	n, err := s.findNetwork(r)
	if err != nil {
		return err
	}
	return writeJSON(r, http.StatusOK, networkView{n, map[string]network.EndpointResource{}})
}

func (s *Server) removeNetwork(r *request) error {
	n, err := s.findNetwork(r)
	if err != nil {
		return err
	}
	switch {
	case n.Ingress:
		return model.Errorf(unimplemented, "removing the ingress network is not available: published ports need it")
	case isPredefined(n):
		return model.Errorf(model.Forbidden, "%s is a pre-defined network and cannot be removed", n.Name)
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	found, err := snap.FindNetwork(n.ID)
	if err != nil {
		return err
	}
	if _, err := s.propose(r.ctx(), "remove network "+n.Name, model.Txn{Changes: []model.Change{{DeleteNetwork: found.ID}}}); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusNoContent)
}

// createNetwork answers for itself until overlays come, but in Docker's order: a name that is
// taken and a node that may not say so first.
func (s *Server) createNetwork(r *request) error {
	var req struct{ Name, Driver, Scope string }
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if req.Driver == "overlay" || req.Scope == scopeSwarm {
		if err := notManager(s.backend.Local(), model.Forbidden); err != nil {
			return err
		}
	}
	all, err := s.networks(r)
	if err != nil {
		return err
	}
	for _, n := range all {
		switch {
		case n.Name != req.Name:
		case isPredefined(n) && !n.Ingress:
			return model.Errorf(model.Forbidden, "operation is not permitted on predefined %s network", n.Name)
		default:
			return model.Conflictf("network with name %s already exists", n.Name)
		}
	}
	return model.Errorf(unimplemented, "networks of your own are not available yet: every task has egress and published ports without one")
}
