package netapply

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// HostRoutes reports what a host's namespace routes and which prefixes its
// addresses lie in, for netplan.ChoosePool. hostNS is an open namespace, or 0
// for the process's own. Default routes are left out.
func HostRoutes(hostNS int) ([]netplan.HostRoute, error) {
	s, err := openHost(hostNS)
	if err != nil {
		return nil, err
	}
	defer s.close()
	links, err := s.links("")
	if err != nil {
		return nil, fmt.Errorf("read the host's links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.index] = l.name
	}
	var out []netplan.HostRoute
	addrs, err := s.addrs(0)
	if err != nil {
		return nil, fmt.Errorf("read the host's addresses: %w", err)
	}
	for _, a := range addrs {
		out = append(out, netplan.HostRoute{Dst: a.prefix.Masked(), Link: names[a.index]})
	}
	for _, v6 := range []bool{false, true} {
		routes, err := s.routes(0, v6)
		if err != nil {
			return nil, fmt.Errorf("read the host's routes: %w", err)
		}
		for _, r := range routes {
			if r.prefix.Bits() > 0 {
				out = append(out, netplan.HostRoute{Dst: r.prefix, Link: names[r.oif]})
			}
		}
	}
	return out, nil
}

func openHost(hostNS int) (*space, error) {
	fd, err := dupNS(hostNS)
	if err != nil {
		return nil, err
	}
	return openSpace(netplan.HostName, fd)
}

// dupNS copies a namespace handle; 0 means the process's own namespace.
func dupNS(ns int) (int, error) {
	if ns == 0 {
		fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("open the host's namespace: %w", err)
		}
		return fd, nil
	}
	fd, err := unix.FcntlInt(uintptr(ns), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("copy the host's namespace handle: %w", err)
	}
	return fd, nil
}
