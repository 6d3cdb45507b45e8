package lab

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// markPrefix begins the alias that a lab puts on a host's loopback device; the
// inode of the network namespace follows, so that a copied alias proves nothing.
const markPrefix = "skep-lab-host "

// Inside returns nil only when the calling thread is in the network namespace of a
// lab's host. When that cannot be told it is an error too: whoever generates traffic
// must then not.
func Inside() error {
	ns, err := netns.Get()
	if err != nil {
		return refuse(err)
	}
	defer ns.Close()
	want, err := markOf(ns)
	if err != nil {
		return refuse(err)
	}
	nl, err := netlink.NewHandle()
	if err != nil {
		return refuse(err)
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return refuse(err)
	}
	if lo.Attrs().Alias != want {
		return refuse(errors.New("this network namespace was not made by a lab"))
	}
	return nil
}

func refuse(why error) error { return fmt.Errorf("lab: refusing to make traffic here: %w", why) }

func markOf(ns netns.NsHandle) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(ns), &st); err != nil {
		return "", fmt.Errorf("reading a network namespace's inode: %w", err)
	}
	return markPrefix + strconv.FormatUint(st.Ino, 10), nil
}

// networkInode returns the inode of a process's network namespace.
func networkInode(pid int) (uint64, error) {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(link, "net:["), "]"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the namespaces of process %d: %w", pid, err)
	}
	return n, nil
}

// endGrace is how long a process outside of a host, such as the outer end of a
// Command, may take to end after the host has died.
const endGrace = 5 * time.Second

// awaitEmpty waits until no process sits in a network namespace, and else reports
// those that still do. The caller holds the namespace open: the kernel gives the
// inode of one that has gone to the next.
func awaitEmpty(space uint64) error {
	for deadline := time.Now().Add(endGrace); ; time.Sleep(2 * time.Millisecond) {
		// No event tells when a process of others has left a namespace.
		if err := stillInside(space); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// stillInside reports processes that sit in a network namespace.
func stillInside(space uint64) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		have, err := networkInode(pid)
		if err == nil && have == space { // else it ended, or is a zombie without namespaces
			errs = append(errs, fmt.Errorf("process %d is still in a host's namespace", pid))
		}
	}
	return errors.Join(errs...)
}
