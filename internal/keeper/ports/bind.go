package ports

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Kinds of sockets that hold a port.
const (
	kindTCP4 = "tcp4" // bound, not listening: a SYN is answered by RST
	kindTCP6 = "tcp6" // listening, for [::1]
	kindUDP4 = "udp4" // bound, drops everything
	kindUDP6 = "udp6" // reads, for [::1]
)

// A socket is one bound socket and what it is for.
type socket struct {
	kind string
	file *os.File
}

// bindAll binds every socket that p needs. A family that the host does not
// have is left out.
func bindAll(p Port, addr netip.Addr) ([]socket, error) {
	var socks []socket
	for _, kind := range []string{p.Proto + "4", p.Proto + "6"} {
		six := kind == kindTCP6 || kind == kindUDP6
		if addr.IsValid() && addr.Is4() == six {
			continue
		}
		f, err := bind(kind, addr, p.Port)
		if six && !addr.IsValid() && noFamily(err) {
			continue
		}
		if err != nil {
			closeAll(socks)
			return nil, err
		}
		socks = append(socks, socket{kind, f})
	}
	return socks, nil
}

func closeAll(socks []socket) {
	for _, s := range socks {
		s.file.Close()
	}
}

// noFamily tells that the host has no IPv6.
func noFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EPROTONOSUPPORT)
}

func bind(kind string, addr netip.Addr, port uint16) (*os.File, error) {
	family, typ := unix.AF_INET, unix.SOCK_STREAM
	if kind == kindTCP6 || kind == kindUDP6 {
		family = unix.AF_INET6
	}
	if kind == kindUDP4 || kind == kindUDP6 {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := prepare(fd, kind, addr, port); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), kind), nil
}

func prepare(fd int, kind string, addr netip.Addr, port uint16) error {
	var sa unix.Sockaddr
	if kind == kindTCP4 || kind == kindUDP4 {
		in4 := &unix.SockaddrInet4{Port: int(port)}
		if addr.IsValid() {
			in4.Addr = addr.As4()
		}
		sa = in4
	} else {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		in6 := &unix.SockaddrInet6{Port: int(port)}
		if addr.IsValid() {
			in6.Addr = addr.As16()
		}
		sa = in6
	}
	if kind == kindTCP6 {
		// Carried connections leave TIME_WAIT behind, which must not keep
		// the port from being held again. Listening keeps others out, this
		// option or not.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if kind == kindUDP4 {
		if err := dropAll(fd); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if kind == kindTCP6 {
		return os.NewSyscallError("listen", unix.Listen(fd, 128))
	}
	return nil
}

// dropAll lets the kernel throw away whatever arrives, before it costs
// memory.
func dropAll(fd int) error {
	reject := [1]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: 1, Filter: &reject[0]})
	return os.NewSyscallError("setsockopt", err)
}

// grab binds p's sockets, trying again for a moment when the port is in use
// by nobody that can be found: a program that is just ending.
func grab(ctx context.Context, p Port, patience time.Duration) ([]socket, error) {
	addr, err := p.check()
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(patience)
	for wait := 5 * time.Millisecond; ; wait *= 2 {
		socks, err := bindAll(p, addr)
		if err == nil {
			return socks, nil
		}
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil, fmt.Errorf("port %s: this host has no address %s", p, addr)
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("holding port %s: %w", p, err)
		}
		inUse := &InUseError{Port: p}
		inUse.PID, inUse.Command = owner(p, addr)
		if inUse.PID != 0 || time.Now().Add(wait).After(deadline) {
			return nil, inUse
		}
		select {
		case <-ctx.Done():
			return nil, inUse
		case <-time.After(wait):
		}
	}
}
