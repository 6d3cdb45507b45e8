package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bindTries is how many ports are tried for one that is free for both UDP and TCP.
const bindTries = 16

// listenAddr is the resolver of every task, as Docker's.
func listenAddr() [4]byte { return [4]byte{127, 0, 0, 11} }

// inNS runs f on a thread that is in the namespace at path; "" is the process's own. A thread that does not find its way back is
// thrown away.
func inNS(path string, f func() error) error {
	if path == "" {
		return f()
	}
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	defer unix.Close(ns)
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("own network namespace: %w", err)
			return
		}
		if err = unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter network namespace %s: %w", path, err)
		} else {
			err = f()
		}
		back := unix.Setns(home, unix.CLONE_NEWNET)
		unix.Close(home)
		if back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// bindTask opens a task's sockets in its namespace: on the ports wanted when they are free (0 is any), else on others, with one
// number for both when possible.
func bindTask(path string, wantUDP, wantTCP uint16) (udp, tcp int, err error) {
	err = inNS(path, func() error {
		if wantUDP != 0 && wantTCP != 0 {
			if udp, tcp, err = bindPair(wantUDP, wantTCP); err == nil {
				return nil
			}
		}
		for range bindTries {
			if udp, err = bind(unix.SOCK_DGRAM, 0); err != nil {
				return err
			}
			if tcp, err = bind(unix.SOCK_STREAM, portOf(udp)); err == nil {
				return nil
			}
			unix.Close(udp)
			if !errors.Is(err, unix.EADDRINUSE) {
				return err
			}
		}
		udp, tcp, err = bindPair(0, 0)
		return err
	})
	return udp, tcp, err
}

func bindPair(udpPort, tcpPort uint16) (udp, tcp int, err error) {
	if udp, err = bind(unix.SOCK_DGRAM, udpPort); err != nil {
		return 0, 0, err
	}
	if tcp, err = bind(unix.SOCK_STREAM, tcpPort); err != nil {
		unix.Close(udp)
		return 0, 0, err
	}
	return udp, tcp, nil
}

func bind(kind int, port uint16) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	if kind == unix.SOCK_STREAM {
		// What a dead keeper's connections left behind must not keep the next one from its port.
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: listenAddr()}))
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = os.NewSyscallError("listen", unix.Listen(fd, 64))
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// portOf is the port that a bound socket has.
func portOf(fd int) uint16 {
	sa, err := unix.Getsockname(fd)
	if in4, ok := sa.(*unix.SockaddrInet4); err == nil && ok {
		return uint16(in4.Port)
	}
	return 0
}

// receive reads one datagram without waiting. The standard wrapper would allocate an address for each.
func receive(fd int, buf []byte) (n int, from unix.RawSockaddrInet4, err error) {
	size := uint32(unix.SizeofSockaddrInet4)
	for {
		r, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)),
			unix.MSG_DONTWAIT|unix.MSG_TRUNC, uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)))
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, from, errno
		}
		return int(r), from, nil
	}
}

// send writes one datagram without waiting; one that does not fit is lost, and its client asks again.
func send(fd int, b []byte, to *unix.RawSockaddrInet4) {
	if len(b) > 0 {
		unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4)
	}
}

// connect makes a socket in the namespace at path that is connected, or on the way to be, to a server. Its file can be given
// deadlines.
func connect(path string, kind int, to netip.AddrPort) (*os.File, error) {
	family, sa, err := sockaddr(to)
	if err != nil {
		return nil, err
	}
	var fd int
	err = inNS(path, func() (err error) {
		if fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err = unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
			unix.Close(fd)
			return os.NewSyscallError("connect", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "dns"), nil
}

func sockaddr(to netip.AddrPort) (family int, sa unix.Sockaddr, err error) {
	addr := to.Addr().Unmap()
	if addr.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: addr.As4()}, nil
	}
	in6 := &unix.SockaddrInet6{Port: int(to.Port()), Addr: addr.As16()}
	if zone := addr.Zone(); zone != "" {
		req, err := unix.NewIfreq(zone)
		if err != nil {
			return 0, nil, fmt.Errorf("interface %q: %w", zone, err)
		}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, nil, os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
			return 0, nil, fmt.Errorf("interface %q: %w", zone, err)
		}
		in6.ZoneId = req.Uint32()
	}
	return unix.AF_INET6, in6, nil
}
