// Package lab makes hosts out of namespaces, so that whole daemons can be tested
// as if on machines of their own: crashed, cut off from the network, brought back.
//
// A Lab is a bridge in a network namespace of its own with hosts hung on it. A
// host has its own network, mount, PID, UTS, IPC and cgroup namespace, its own
// /run, /dev/shm and /var/lib/skep, its own name, /etc/hosts and /etc/resolv.conf,
// and a tiny pid 1 that reaps. Nothing of it touches the machine's own network.
//
// The package re-executes the running program to become pid 1 and to enter a
// host, so Dispatch must be the first thing in TestMain (or main). It is for tests
// only and knows nothing of skep beyond the path of its data root.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const (
	// Subnet4 is the network that every lab's hosts share; labs do not see each
	// other, so all use the same (198.18.0.0/15 is set aside for benchmarks).
	Subnet4 = "198.18.0.0/24"
	// Subnet6 is the same for IPv6.
	Subnet6 = "2001:db8:18::/64"

	maxHosts   = 200
	bridgeName = "lab0"
)

// A Lab is a bridge and the hosts on it. Its methods may be called from several
// goroutines at once.
type Lab struct {
	dir    string // files of the hosts, and their data roots
	id     string // of the cgroup that holds the hosts' groups
	bridge netns.NsHandle

	mu     sync.Mutex
	hosts  []*Host
	next   int // host number, also the last byte of its address
	closed bool
}

// Available says why this machine cannot run a lab (not root, no cgroups, …), or
// nil. Tests skip with its text.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make namespaces")
	}
	if runtime.GOOS != "linux" {
		return errors.New("needs Linux")
	}
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	if len(mounts) == 0 {
		return errors.New("needs a mounted cgroup tree")
	}
	return nil
}

// New makes a lab without hosts. Close it.
func New() (*Lab, error) {
	if err := Available(); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := sweepGroups(); err != nil {
		return nil, fmt.Errorf("lab: removing what a killed lab left: %w", err)
	}
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	l := &Lab{dir: dir, next: 2}
	if l.id, err = makeLabGroup(filepath.Base(dir)); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("lab: making its cgroups: %w", err)
	}
	if l.bridge, err = newNetNS(); err == nil {
		err = l.setUpBridge()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lab: making its bridge: %w", err), l.Close())
	}
	return l, nil
}

// newNetNS makes a network namespace that lives as long as its descriptor.
func newNetNS() (netns.NsHandle, error) {
	var made netns.NsHandle
	err := onThread(func() error {
		var err error
		made, err = netns.New() // moves this thread into it
		return err
	})
	return made, err
}

// onThread runs f on an operating-system thread whose network namespace f may change. Afterwards it goes back:
// a goroutine that ends while it is locked ends its thread too, but not the process's first thread, which Go
// parks for ever; it would keep the namespace, and this process, seen from outside, would still sit in there.
// A thread that does not find its way back is given up.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("lab: opening the own network namespace: %w", err)
			return
		}
		defer home.Close()
		err = f()
		if back := netns.Set(home); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func (l *Lab) setUpBridge() error {
	nl, err := netlink.NewHandleAt(l.bridge)
	if err != nil {
		return err
	}
	defer nl.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := nl.LinkAdd(br); err != nil {
		return err
	}
	for _, subnet := range []string{Subnet4, Subnet6} {
		addr, err := netlink.ParseAddr(hostAddr(subnet, 1).String())
		if err != nil {
			return err
		}
		addr.Flags = ifaNoDAD
		if err := nl.AddrAdd(br, addr); err != nil {
			return err
		}
	}
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	return errors.Join(nl.LinkSetUp(lo), nl.LinkSetUp(br))
}

// ifaNoDAD (IFA_F_NODAD) spares an address the second of duplicate detection.
const ifaNoDAD = 0x02

// hostAddr is the address with number n in a subnet, with the subnet's length.
func hostAddr(subnet string, n int) netip.Prefix {
	p := netip.MustParsePrefix(subnet)
	raw := p.Addr().AsSlice()
	raw[len(raw)-1] = byte(n)
	a, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(a, p.Bits())
}

// AddHost makes and boots a host on the bridge. Its name becomes its host name and
// must be unique in the lab. ctx bounds the boot only.
func (l *Lab) AddHost(ctx context.Context, name string) (*Host, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, errors.New("lab: closed")
	}
	for _, h := range l.hosts {
		if h.name == name {
			l.mu.Unlock()
			return nil, fmt.Errorf("lab: there is a host %q already", name)
		}
	}
	if l.next >= maxHosts+2 {
		l.mu.Unlock()
		return nil, fmt.Errorf("lab: more than %d hosts", maxHosts)
	}
	h := &Host{lab: l, name: name, number: l.next, dir: filepath.Join(l.dir, name)}
	l.next++
	l.hosts = append(l.hosts, h)
	l.mu.Unlock()

	if err := h.Boot(ctx); err != nil {
		return nil, fmt.Errorf("lab: booting host %s: %w", name, err)
	}
	return h, nil
}

// Hosts returns the hosts made so far, those that are down too.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Host(nil), l.hosts...)
}

// Close kills every host and removes all that the lab made. It says what it could
// not remove: a process that still sits in a host's namespaces, a cgroup, a file.
// Closing twice does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	hosts := l.hosts
	was := l.closed
	l.closed = true
	l.mu.Unlock()
	if was {
		return nil
	}
	var errs []error
	for _, h := range hosts {
		errs = append(errs, h.Crash())
	}
	if l.bridge.IsOpen() {
		errs = append(errs, l.bridge.Close())
	}
	if l.id != "" {
		errs = append(errs, removeGroups(l.id))
	}
	errs = append(errs, os.RemoveAll(l.dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab: closing: %w", err)
	}
	return nil
}
