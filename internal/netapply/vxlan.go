package netapply

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

const vxlanPrefix = "vx-"

func isVXLAN(link string) bool { return strings.HasPrefix(link, vxlanPrefix) }

func sameVXLAN(l netplan.Link, k kernelLink) bool {
	return k.kind == l.Kind && k.vni == l.VNI && k.vtep == l.VTEP && k.vxlanPort == l.VXLANPort
}

// makeVXLAN makes a VXLAN device from the host's namespace, where its socket then lies, right into this one. A network
// with the same number that was here a moment ago is taken down in the kernel's own time, and waited for; but once only:
// where it is somebody else's, trying again must cost nothing.
func (s *space) makeVXLAN(l netplan.Link, resolve resolver) error {
	host, err := resolve(netplan.HostName)
	if err != nil {
		return err
	}
	s.noVXLAN.Store(true)
	tries := busyTries
	if s.clash {
		tries = 1
	}
	for try := range tries {
		b := &batch{}
		b.addLink(l, 0, s.fd)
		if err = host.rt.run(b); !errors.Is(err, unix.EEXIST) {
			break
		}
		if try < tries-1 {
			time.Sleep(busyPause)
		}
	}
	s.noVXLAN.Store(err != nil)
	s.clash = errors.Is(err, unix.EEXIST)
	return explainVXLAN(l, err)
}

// explainVXLAN says what to do about a VXLAN device that the kernel refuses.
func explainVXLAN(l netplan.Link, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("another program of this host uses VXLAN network %d on UDP port %d, remove its device or make the network anew: %w", l.VNI, l.VXLANPort, err)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("another program of this host uses UDP port %d, which nodes send each other VXLAN packets on: %w", l.VXLANPort, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("the kernel of this host has no VXLAN (try modprobe vxlan): %w", err)
	}
	return err
}
