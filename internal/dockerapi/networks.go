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
	n := &model.Network{ID: model.NetworkIngress, Name: "ingress", Driver: model.DriverOverlay, Ingress: true, CreatedAt: c.CreatedAt, Version: 1}
	if c.GatewayPool.IsValid() {
		n.IPAM = append(n.IPAM, model.IPAMConfig{Subnet: c.GatewayPool})
	}
	return n
}

// predefined are the networks of the host itself. Their IDs stay the same on this host.
func predefined(hostID string, at time.Time) []network.Network {
	var out []network.Network
	for _, name := range []string{"bridge", "host", "none"} {
		sum := sha256.Sum256([]byte("network " + name + " " + hostID))
		out = append(out, ofHost(name, hex.EncodeToString(sum[:]), scopeLocal, at))
	}
	return out
}

func ofHost(name, id, scope string, at time.Time) network.Network {
	driver := name
	if name == "none" {
		driver = "null"
	}
	return network.Network{
		Name: name, ID: id, Created: at, Scope: scope, Driver: driver, EnableIPv4: true,
		IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}}, Options: map[string]string{}, Labels: map[string]string{},
	}
}

// predefinedInSwarm are the hosts' networks as services name them. Docker lists them to nobody, and finds them in the
// scope of the swarm.
func predefinedInSwarm(c *model.Cluster) []network.Network {
	var out []network.Network
	for _, name := range []string{"bridge", "host", "none"} {
		out = append(out, ofHost(name, c.Namer().NetworkID(hostNetworks[name]), scopeSwarm, wallTime(c.CreatedAt)))
	}
	return out
}

// knownNetworks are the host's own networks, and the swarm's on a manager, for which there is a state.
func (s *Server) knownNetworks(r *request) ([]network.Network, *state.Snapshot, error) {
	h, err := s.backend.SystemInfo(r.ctx())
	if err != nil {
		return nil, nil, err
	}
	out := predefined(h.ID, time.Time{})
	l := s.backend.Local()
	if l.State != swarm.LocalNodeStateActive || !l.Manager {
		return out, nil, nil
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return nil, nil, err
	}
	namer := snap.Cluster().Namer()
	ingress := ingressNetwork(snap)
	out = append(out, viewNetwork(namer, ingress))
	for n := range snap.Networks() {
		if n.ID != ingress.ID {
			out = append(out, viewNetwork(namer, n))
		}
	}
	return out, snap, nil
}

func (s *Server) networks(r *request) ([]network.Network, error) {
	out, _, err := s.knownNetworks(r)
	return out, err
}

// unusedNetwork reports whether no service and no task is in a network.
func unusedNetwork(snap *state.Snapshot, n network.Network) bool {
	if snap == nil || isPredefined(n) {
		return false
	}
	k, ok := snap.Cluster().Namer().Parse(n.ID)
	if !ok {
		return false
	}
	for range snap.NetworkServices(model.NetworkID(k.A)) {
		return false
	}
	for range snap.NetworkTasks(model.NetworkID(k.A)) {
		return false
	}
	return true
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
	names, err := f.patterns("name")
	if err != nil {
		return err
	}
	all, snap, err := s.knownNetworks(r)
	if err != nil {
		return err
	}
	out := []networkView{}
	for _, n := range all {
		typ := "custom"
		if isPredefined(n) {
			typ = "builtin"
		}
		if f.exact("driver", n.Driver) && f.prefix("id", n.ID) && f.labels("label", n.Labels) && names.match(n.Name) &&
			f.exact("scope", n.Scope) && f.exact("type", typ) && (!askedDangling || dangling == unusedNetwork(snap, n)) {
			out = append(out, networkView{Network: n, Containers: map[string]network.EndpointResource{}})
		}
	}
	return writeJSON(r, http.StatusOK, out)
}

func isPredefined(n network.Network) bool {
	return n.Ingress || n.Scope == scopeLocal && slices.Contains([]string{"bridge", "host", "none"}, n.Name)
}

func (s *Server) findNetwork(r *request) (network.Network, *state.Snapshot, error) {
	all, snap, err := s.knownNetworks(r)
	if err != nil {
		return network.Network{}, nil, err
	}
	ref, scope := r.vars["id"], r.query("scope")
	if snap != nil && (scope == scopeSwarm || len(ref) == model.IDLen) {
		all = append(all, predefinedInSwarm(snap.Cluster())...)
	}
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
			return found[0], snap, nil
		case len(found) > 1:
			return network.Network{}, nil, model.Invalidf("network %s is ambiguous (%d matches found)", ref, len(found))
		}
	}
	return network.Network{}, nil, notFoundf("network %s not found", ref)
}

func (s *Server) getNetwork(r *request) error {
	n, snap, err := s.findNetwork(r)
	if err != nil {
		return err
	}
	v := networkView{Network: n, Containers: map[string]network.EndpointResource{}}
	if snap != nil {
		if k, ok := snap.Cluster().Namer().Parse(n.ID); ok {
			if found := snap.Network(model.NetworkID(k.A)); found != nil {
				s.inspected(snap, found, &v, r.bool("verbose"))
			}
		}
	}
	return writeJSON(r, http.StatusOK, v)
}

func (s *Server) removeNetwork(r *request) error {
	n, _, err := s.findNetwork(r)
	if err != nil {
		return err
	}
	switch {
	case n.Ingress:
		return model.Errorf(unimplemented, "removing the ingress network is not available: published ports need it")
	case isPredefined(n), n.Driver != model.DriverOverlay:
		return model.Errorf(model.Forbidden, "%s is a pre-defined network and cannot be removed", n.Name)
	}
	if err := s.deleteNetwork(r, n.ID); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusNoContent)
}

func (s *Server) deleteNetwork(r *request, id string) error {
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	found, err := snap.FindNetwork(id)
	if err != nil {
		return err
	}
	_, err = s.propose(r.ctx(), "remove network "+found.Name, model.Txn{Changes: []model.Change{{DeleteNetwork: found.ID}}})
	return err
}

// pruneNetworks removes the networks that no service and no task is in.
func (s *Server) pruneNetworks(r *request) error {
	f, err := readFilters(r, "until", "label", "label!")
	if err != nil {
		return err
	}
	until, err := s.pruneUntil(f)
	if err != nil {
		return err
	}
	all, snap, err := s.knownNetworks(r)
	if err != nil {
		return err
	}
	out := network.PruneReport{NetworksDeleted: []string{}}
	for _, n := range all {
		if !unusedNetwork(snap, n) || !until.IsZero() && !n.Created.Before(until) || !f.labels("label", n.Labels) ||
			f.has("label!") && f.labels("label!", n.Labels) {
			continue
		}
		switch err := s.deleteNetwork(r, n.ID); model.KindOf(err) {
		case model.NotFound, model.FailedPrecondition:
			continue // someone was faster, or began to use it
		case model.Unknown:
			if err != nil {
				return err
			}
		default:
			return err
		}
		out.NetworksDeleted = append(out.NetworksDeleted, n.Name)
	}
	return writeJSON(r, http.StatusOK, out)
}

// connectNetwork refuses to take a task's container into a network or out of one: its service says where it is.
func (s *Server) connectNetwork(r *request) error {
	var req struct{ Container string }
	if err := readJSON(r, &req); err != nil {
		return err
	}
	n, _, err := s.findNetwork(r)
	if err != nil {
		return err
	}
	list, err := s.backend.ListContainers(r.ctx())
	if err != nil {
		return err
	}
	c, err := findContainer(list, req.Container)
	if err != nil {
		return err
	}
	service := c.Labels["com.docker.swarm.service.name"]
	return model.Errorf(model.Forbidden, "container %s belongs to a task: use \"docker service update --network-add %s %s\" or --network-rm", c.Name, n.Name, service)
}
