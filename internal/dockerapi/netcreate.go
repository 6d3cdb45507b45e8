package dockerapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/network"
	"github.com/skep-swarm/skep/internal/allocate"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// Limits of what a user may ask of one network.
const (
	maxSubnets       = 16
	maxAuxAddresses  = 256
	maxNetOptions    = 128
	maxNetOptionText = 4096 // bytes of a key with its value
	mtuOption        = "com.docker.network.driver.mtu"
	// The bounds of netplan: what RFC 791 and RFC 8200 ask of every link, and the most that a link can have.
	minMTU4, minMTU6, maxMTU = 576, 1280, 65535
)

// networkRequest is the body of a create. Addresses are text, because Docker has a word for each bad one.
type networkRequest struct {
	Name, Driver, Scope                       string
	Internal, Attachable, Ingress, ConfigOnly bool
	ConfigFrom                                *network.ConfigReference
	EnableIPv4, EnableIPv6                    *bool
	IPAM                                      *ipamRequest
	Options, Labels                           map[string]string
}

type ipamRequest struct {
	Driver  string
	Options map[string]string
	Config  []ipamConfigRequest
}

type ipamConfigRequest struct {
	Subnet, IPRange, Gateway string
	AuxiliaryAddresses       map[string]string
}

func (s *Server) createNetwork(r *request) error {
	var req networkRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if req.Driver == model.DriverOverlay || req.Scope == scopeSwarm {
		if err := notManager(s.backend.Local(), model.Forbidden); err != nil {
			return err
		}
	}
	if slices.Contains([]string{"bridge", "host", "none"}, req.Name) {
		return model.Errorf(model.Forbidden, "operation is not permitted on predefined %s network", req.Name)
	}
	// A name that is taken comes first, as in Docker.
	all, err := s.networks(r)
	if err != nil {
		return err
	}
	for _, n := range all {
		if n.Name == req.Name {
			return nameTaken(n.Name)
		}
	}
	n, warning, err := admitNetwork(&req)
	if err != nil {
		return err
	}
	var made model.Network
	_, err = s.write(r.ctx(), "create network "+n.Name, func(snap *state.Snapshot) (model.Txn, error) {
		if snap.NetworkByName(n.Name) != nil {
			return model.Txn{}, nameTaken(n.Name)
		}
		if req.Ingress {
			return model.Txn{}, rpcErrorf(model.Conflict, "ingress network (%s) is already present", snap.Cluster().Namer().NetworkID(ingressNetwork(snap).ID))
		}
		made = *n
		made.IPAM = slices.Clone(n.IPAM)
		overlaps, err := allocate.Network(snap, &made)
		if err != nil {
			return model.Txn{}, err
		}
		if err := roomFor6(&made); err != nil {
			return model.Txn{}, err
		}
		for _, o := range overlaps {
			warning = join(warning, fmt.Sprintf("the subnets of network %s overlap those of network %s: no service can be in both", n.Name, o.Name))
		}
		return model.Txn{
			Guards:  []model.Guard{{Key: model.NetworkKey(made.ID), Group: model.GroupSpec}},
			Changes: []model.Change{{PutNetwork: &made}},
		}, nil
	})
	if err != nil {
		return err
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		return err
	}
	return writeJSON(r, http.StatusCreated, network.CreateResponse{ID: snap.Cluster().Namer().NetworkID(made.ID), Warning: warning})
}

func nameTaken(name string) error {
	return model.Conflictf("network with name %s already exists", name)
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "\n" + b
}

// admitNetwork checks a request as far as that goes without the swarm, and makes a network without addresses of it.
func admitNetwork(req *networkRequest) (*model.Network, string, error) {
	if err := admitConfigOnly(req); err != nil {
		return nil, "", err
	}
	if err := admitDriver(req); err != nil {
		return nil, "", err
	}
	switch {
	case req.Name == "":
		return nil, "", invalid("meta: name must be provided")
	case !dnsName.MatchString(req.Name):
		return nil, "", invalid("name must be valid as a DNS name component")
	case len(req.Name) > maxServiceName:
		return nil, "", invalid("name must be 63 characters or fewer")
	case req.EnableIPv4 != nil && !*req.EnableIPv4:
		return nil, "", model.Invalidf("IPv4 cannot be disabled in a Swarm scoped network")
	}
	if err := admitLabels("Labels", req.Labels); err != nil {
		return nil, "", err
	}
	if err := admitNetOptions(req.Options); err != nil {
		return nil, "", err
	}
	if err := admitMTU(req); err != nil {
		return nil, "", err
	}
	n := &model.Network{Name: req.Name, Driver: model.DriverOverlay, Labels: req.Labels, Options: req.Options, Attachable: req.Attachable,
		Internal: req.Internal, EnableIPv6: req.EnableIPv6 != nil && *req.EnableIPv6}
	warning, err := admitIPAM(n, req.IPAM)
	return n, warning, err
}

func admitDriver(req *networkRequest) error {
	switch req.Driver {
	case model.DriverOverlay:
	case "", "bridge":
		return model.Errorf(unimplemented, "local bridge networks are not there: every task has egress and published ports without one; "+
			"for services that talk to each other use \"docker network create -d overlay %s\"", req.Name)
	case "host", "null", "none":
		return model.Errorf(model.Forbidden, "only one instance of %q network is allowed", req.Driver)
	default:
		return model.NotFoundf("plugin %q not found: networks here are made with \"-d overlay\"", req.Driver)
	}
	switch {
	case req.Scope != "" && req.Scope != scopeSwarm:
		return model.Invalidf("invalid scope %q: overlay networks are of the whole swarm; leave --scope out", req.Scope)
	}
	return nil
}

// admitConfigOnly refuses networks that only hold settings for others. Docker has them for networks of each node (macvlan), which differ
// from node to node; a swarm's overlay networks are the same everywhere.
func admitConfigOnly(req *networkRequest) error {
	if req.ConfigOnly || req.ConfigFrom != nil && req.ConfigFrom.Network != "" {
		return model.Errorf(unimplemented, "config-only networks are for networks that differ from node to node, which are not available: give an overlay network its settings itself")
	}
	return nil
}

func admitNetOptions(options map[string]string) error {
	if len(options) > maxNetOptions {
		return model.Invalidf("%d driver options, at most %d are allowed", len(options), maxNetOptions)
	}
	for k, v := range options {
		if len(k)+len(v) > maxNetOptionText {
			return model.Invalidf("driver option %.40q is longer than %d bytes", k, maxNetOptionText)
		}
	}
	if v, ok := options["encrypted"]; ok && v != "false" && v != "0" {
		return model.Errorf(unimplemented, "encryption of overlay networks is not available yet: leave --opt encrypted out")
	}
	return nil
}

// admitMTU refuses an MTU that the interfaces of tasks cannot have.
func admitMTU(req *networkRequest) error {
	v, ok := req.Options[mtuOption]
	if !ok {
		return nil
	}
	least := minMTU4
	if req.EnableIPv6 != nil && *req.EnableIPv6 {
		least = minMTU6
	}
	if n, err := strconv.Atoi(v); err != nil || n < least || n > maxMTU {
		return model.Invalidf("invalid MTU %q in option %s: it must be a number from %d to %d", v, mtuOption, least, maxMTU)
	}
	return nil
}

// admitIPAM takes the subnets over that the user gave, with Docker's words about bad ones.
func admitIPAM(n *model.Network, req *ipamRequest) (warning string, err error) {
	if req == nil {
		return "", nil
	}
	if req.Driver != "" && req.Driver != "default" {
		return "", model.NotFoundf("could not find IPAM driver %q: only \"default\" is there", req.Driver)
	}
	if len(req.Config) > maxSubnets {
		return "", model.Invalidf("%d subnets, at most %d are allowed", len(req.Config), maxSubnets)
	}
	if err := admitNetOptions(req.Options); err != nil {
		return "", err
	}
	n.IPAMDriver, n.IPAMOptions = req.Driver, req.Options
	var errs []error
	var six []model.IPAMConfig
	for i := range req.Config {
		c, bad := readIPAM(&req.Config[i])
		switch {
		case len(bad) > 0:
			errs = append(errs, bad...)
		case !c.Subnet.IsValid(): // an empty entry asks for nothing
		case c.Subnet.Addr().Is4():
			n.IPAM = append(n.IPAM, c)
		case !n.EnableIPv6:
			warning = join(warning, fmt.Sprintf("subnet %s is left out: the network has no IPv6 (--ipv6)", c.Subnet))
		default:
			six = append(six, c)
		}
	}
	if n.IPAM = append(n.IPAM, six...); len(six) > 1 {
		errs = append(errs, errors.New("an overlay network can have one IPv6 subnet"))
	}
	for i, c := range n.IPAM {
		for _, o := range n.IPAM[:i] {
			if o.Subnet.Overlaps(c.Subnet) {
				errs = append(errs, fmt.Errorf("invalid subnet %s: it overlaps subnet %s of the same network", c.Subnet, o.Subnet))
			}
		}
	}
	if len(errs) > 0 {
		return "", model.Invalidf("invalid network config:\n%v", errors.Join(errs...))
	}
	return warning, nil
}

func readIPAM(req *ipamConfigRequest) (c model.IPAMConfig, errs []error) {
	if req.Subnet == "" {
		if req.IPRange != "" || req.Gateway != "" || len(req.AuxiliaryAddresses) > 0 {
			errs = append(errs, errors.New("every ip-range, gateway or auxiliary address must have a corresponding subnet"))
		}
		return c, errs
	}
	p, err := netip.ParsePrefix(req.Subnet)
	if err != nil {
		return c, []error{fmt.Errorf("invalid subnet %s: invalid CIDR block notation", req.Subnet)}
	}
	switch {
	case p != p.Masked():
		errs = append(errs, fmt.Errorf("invalid subnet %s: it should be %s", p, p.Masked()))
	case p.Addr().Is4() && (p.Bits() < 8 || p.Bits() > 29):
		errs = append(errs, fmt.Errorf("invalid subnet %s: an IPv4 subnet is between /8 and /29", p))
	case p.Addr().Is6() && (p.Bits() < 16 || p.Bits() > 125):
		errs = append(errs, fmt.Errorf("invalid subnet %s: an IPv6 subnet is between /16 and /125", p))
	case p.Addr().IsLoopback(), p.Addr().IsMulticast(), p.Addr().IsLinkLocalUnicast(), p.Contains(netip.IPv4Unspecified()), p.Contains(netip.AddrFrom4([4]byte{127, 0, 0, 1})):
		errs = append(errs, fmt.Errorf("invalid subnet %s: it has addresses that no host may use", p))
	}
	c.Subnet = p
	if req.IPRange != "" {
		var err error
		if c.Range, err = readRange(req.IPRange, p); err != nil {
			errs = append(errs, fmt.Errorf("invalid ip-range %s: %w", req.IPRange, err))
		}
	}
	if req.Gateway != "" {
		gateway, err := readInside(req.Gateway, p)
		if err == nil && c.Reserved(gateway) {
			// Docker, too, has given away the first address and IPv4's last one before it comes to the gateway.
			err = fmt.Errorf("it is the network's own or its broadcast address: choose another one of subnet %s", p)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("invalid gateway %s: %w", req.Gateway, err))
		}
		c.Gateway = gateway
	}
	if len(req.AuxiliaryAddresses) > maxAuxAddresses {
		return c, append(errs, fmt.Errorf("%d auxiliary addresses, at most %d are allowed", len(req.AuxiliaryAddresses), maxAuxAddresses))
	}
	for name, text := range req.AuxiliaryAddresses {
		a, err := readInside(text, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("invalid auxiliary address %s: %w", name, err))
			continue
		}
		if c.Aux == nil {
			c.Aux = map[string]netip.Addr{}
		}
		c.Aux[name] = a
	}
	return c, errs
}

func readRange(text string, subnet netip.Prefix) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, errors.New("invalid CIDR block notation")
	case p.Addr().Is4() != subnet.Addr().Is4():
		return p, fmt.Errorf("parent subnet is an IPv%d block", family(subnet.Addr()))
	case p.Bits() < subnet.Bits():
		return p, fmt.Errorf("CIDR block is bigger than its parent subnet %s", subnet)
	case p != p.Masked():
		return p, fmt.Errorf("it should be %s", p.Masked())
	case !subnet.Overlaps(p):
		return p, fmt.Errorf("parent subnet %s doesn't contain ip-range", subnet)
	}
	return p, nil
}

func readInside(text string, subnet netip.Prefix) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return a, errors.New("invalid address")
	case a.Is4() != subnet.Addr().Is4():
		return a, fmt.Errorf("parent subnet is an IPv%d block", family(subnet.Addr()))
	case !subnet.Contains(a):
		return a, fmt.Errorf("parent subnet %s doesn't contain this address", subnet)
	}
	return a, nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

// roomFor6 makes sure that every IPv4 address has a partner in the IPv6 subnet.
func roomFor6(n *model.Network) error {
	six := n.Subnet6()
	if six == nil || 128-six.Subnet.Bits() > 33 {
		return nil
	}
	room := uint64(1) << (128 - six.Subnet.Bits())
	for _, c := range n.IPAM {
		if c.Subnet.Addr().Is4() {
			size := uint64(1) << (32 - c.Subnet.Bits())
			if size > room {
				return model.Invalidf("invalid network config:\ninvalid subnet %s: it has fewer addresses than the IPv4 subnets of the network; give a larger one, like a /64", six.Subnet)
			}
			room -= size
		}
	}
	return nil
}

// networkOptions is a copy for clients, never null.
func networkOptions(o map[string]string, vni uint32) map[string]string {
	out := mergedLabels(o, nil)
	if _, ok := out[allocate.VXLANOption]; !ok && vni != 0 {
		out[allocate.VXLANOption] = strconv.FormatUint(uint64(vni), 10)
	}
	return out
}
