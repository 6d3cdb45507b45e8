// Package ports holds published ports on the host, so that a program started
// later fails to bind them instead of being shadowed by packet rules, and so
// that [::1] reaches what 127.0.0.1 reaches.
//
// IPv4 traffic never arrives at these sockets: packet rules send it to tasks
// before, or reject it. The kernel cannot translate [::1] to another host's
// address, so connections and datagrams from there are carried to
// 127.0.0.1:PORT, where the rules apply.
//
// The package knows nothing about tasks, rules or the keeper's protocol.
package ports

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
)

// A Port names what to hold.
type Port struct {
	// Proto is "tcp" or "udp".
	Proto string `json:"proto"`
	// Port is never 0.
	Port uint16 `json:"port"`
	// HostIP, when set, limits the port to one address of the host; else
	// it is held on all of both families.
	HostIP string `json:"hostIP,omitempty"`
}

// String formats p as Docker does, "8080/tcp", with the address when limited.
func (p Port) String() string {
	s := strconv.Itoa(int(p.Port)) + "/" + p.Proto
	if p.HostIP == "" {
		return s
	}
	if addr, err := netip.ParseAddr(p.HostIP); err == nil {
		return netip.AddrPortFrom(addr, p.Port).String() + "/" + p.Proto
	}
	return p.HostIP + ":" + s
}

// ErrInvalid is in the chain of errors that repeating will not mend.
var ErrInvalid = errors.New("invalid port")

// check refuses what cannot be held and returns the address to bind, invalid
// when it is all of them.
func (p Port) check() (netip.Addr, error) {
	switch {
	case p.Proto == "sctp":
		return netip.Addr{}, fmt.Errorf("%w: %s: sctp ports cannot be published, use tcp or udp", ErrInvalid, p)
	case p.Proto != "tcp" && p.Proto != "udp":
		return netip.Addr{}, fmt.Errorf("%w: protocol %q is not known, use tcp or udp", ErrInvalid, p.Proto)
	case p.Port == 0:
		return netip.Addr{}, fmt.Errorf("%w: port 0/%s", ErrInvalid, p.Proto)
	case p.HostIP == "":
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(p.HostIP)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%w: %s: host address: %w", ErrInvalid, p, err)
	}
	addr = addr.Unmap()
	if addr.IsUnspecified() {
		addr = netip.Addr{}
	}
	return addr, nil
}

// An InUseError tells who has a port.
type InUseError struct {
	Port Port
	// PID and Command are zero when the holder could not be found.
	PID     int
	Command string
}

func (e *InUseError) Error() string {
	if e.PID != 0 {
		return fmt.Sprintf("port %s is already in use on this host by %s (pid %d)", e.Port, e.Command, e.PID)
	}
	return fmt.Sprintf("port %s is already in use on this host by another program", e.Port)
}
