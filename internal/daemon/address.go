package daemon

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/vishvananda/netlink"
)

const defaultSwarmPort = "2377"

// listenAddress completes --listen-addr: ADDR, ADDR:PORT, INTERFACE or INTERFACE:PORT.
func listenAddress(s string) (string, error) {
	if s == "" {
		s = "0.0.0.0"
	}
	host, port, err := splitPort(s, defaultSwarmPort)
	if err != nil {
		return "", model.Invalidf("invalid ListenAddr %s: %s", s, err)
	}
	ip, err := interfaceOrAddr(host)
	if err != nil {
		return "", model.Invalidf("invalid ListenAddr: %s", err)
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// advertiseAddress completes --advertise-addr, or finds the address that other nodes would use. Its port is that of listen, a
// complete address, unless it has one of its own.
func advertiseAddress(s, fallback, listen string) (string, error) {
	if s == "" {
		s = fallback
	}
	here, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("listen address: %w", err)
	}
	if s != "" {
		host, port, err := splitPort(s, port)
		if err != nil {
			return "", model.Invalidf("invalid AdvertiseAddr %s: %s", s, err)
		}
		ip, err := interfaceOrAddr(host)
		if err != nil || ip.IsUnspecified() {
			return "", model.Invalidf("advertise address must be a non-zero IP address or network interface (with optional port number)")
		}
		return net.JoinHostPort(ip.String(), port), nil
	}
	if ip, err := netip.ParseAddr(here); err == nil && !ip.IsUnspecified() {
		return net.JoinHostPort(ip.String(), port), nil
	}
	ip, err := systemAddress()
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// splitPort splits an address that may come without a port.
func splitPort(s, without string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(s)
	switch {
	case err != nil:
		return strings.Trim(s, "[]"), without, nil
	case port == "":
		return host, without, nil
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("port %q: want a number from 1 to 65535", port)
	}
	return host, port, nil
}

func interfaceOrAddr(s string) (netip.Addr, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return ip.Unmap(), nil
	}
	ifc, err := net.InterfaceByName(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is neither an IP address nor a network interface of this host", s)
	}
	list, err := addressesOf(ifc)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(list) == 0 {
		return netip.Addr{}, fmt.Errorf("interface %s has no usable IP address", s)
	}
	return list[0], nil
}

// addressesOf lists an interface's addresses that others can reach, IPv4 first.
func addressesOf(ifc *net.Interface) ([]netip.Addr, error) {
	addrs, err := ifc.Addrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", ifc.Name, err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr())
		}
	}
	slices.SortStableFunc(out, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return out, nil
}

// systemAddress is the host's one address, or that of the interface with the default route.
func systemAddress() (netip.Addr, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, 0)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the system's routes: %w", err)
	}
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() || r.LinkIndex == 0 {
			continue
		}
		if ifc, err := net.InterfaceByIndex(r.LinkIndex); err == nil {
			if list, err := addressesOf(ifc); err == nil && len(list) > 0 {
				return list[0], nil
			}
		}
	}
	return onlyAddress()
}

func onlyAddress() (netip.Addr, error) {
	ifcs, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the system's addresses: %w", err)
	}
	var found []netip.Addr
	var names []string
	for i := range ifcs {
		if ifcs[i].Flags&net.FlagLoopback != 0 || ifcs[i].Flags&net.FlagUp == 0 || strings.HasPrefix(ifcs[i].Name, "skep") {
			continue
		}
		if list, err := addressesOf(&ifcs[i]); err == nil && len(list) > 0 {
			found = append(found, list[0])
			names = append(names, fmt.Sprintf("%s on interface %s", list[0], ifcs[i].Name))
		}
	}
	switch len(found) {
	case 0:
		return netip.Addr{}, model.Invalidf("could not find the system's IP address")
	case 1:
		return found[0], nil
	}
	return netip.Addr{}, model.Invalidf("could not choose an IP address to advertise since this system has multiple addresses on different interfaces (%s)", strings.Join(names, " and "))
}
