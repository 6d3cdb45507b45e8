package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Place is a network namespace of a lab that connections can be made from: a host's,
// or that of a container on it. Its methods may be called from several goroutines at
// once. Close it.
type Place struct {
	ns netns.NsHandle
}

// Place is the host's own network. It fails when it cannot be told to be a lab's.
func (h *Host) Place() (*Place, error) {
	p := &Place{ns: -1}
	err := h.InNetNS(func() (err error) {
		p.ns, err = netns.Get()
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// PlaceOf is the network of a process of the host, by the pid that the host knows it
// by. It fails when that is this process's own network, or cannot be told not to be.
func (h *Host) PlaceOf(pid int) (*Place, error) {
	// By way of the host's own /proc there are only its processes.
	own := h.Path("/proc")
	if err := h.isOf(filepath.Join(own, "1/ns/net")); err != nil {
		return nil, refuse(err)
	}
	fd, err := unix.Open(filepath.Join(own, strconv.Itoa(pid), "ns/net"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lab: network of process %d on %s: %w", pid, h.name, err)
	}
	p := &Place{ns: netns.NsHandle(fd)}
	if err := p.notOurs(); err != nil {
		return nil, errors.Join(refuse(err), p.Close())
	}
	return p, nil
}

// isOf fails unless a namespace is the host's.
func (h *Host) isOf(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.init == nil || st.Ino != h.space {
		return fmt.Errorf("%s is not that of host %s", path, h.name)
	}
	return nil
}

// notOurs fails when the namespace is this process's.
func (p *Place) notOurs() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(p.ns), &st); err != nil {
		return err
	}
	space, err := networkInode(os.Getpid())
	if err != nil {
		return err
	}
	if space == st.Ino {
		return errors.New("this is the machine's own network")
	}
	return nil
}

// Close lets go of the namespace. Connections made from it stay.
func (p *Place) Close() error { return p.ns.Close() }

// Dial connects from the place, from the address given unless it is the zero Addr. The
// target must be numeric.
func (p *Place) Dial(ctx context.Context, network string, from netip.Addr, address string) (net.Conn, error) {
	// A name would be looked up on another thread, outside of the place.
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("lab: want a numeric address: %w", err)
	}
	var d net.Dialer
	if from.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: from.AsSlice()}
		}
	}
	var conn net.Conn
	err := onThread(func() error {
		if err := netns.Set(p.ns); err != nil {
			return fmt.Errorf("lab: entering a network: %w", err)
		}
		var err error
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
