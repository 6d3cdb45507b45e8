package netapply

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// adopt binds the namespace that a task's processes live in to path, when there is one. It reports whether it did.
func (n *Network) adopt(path string, t netplan.Task) bool {
	// While a namespace lives, its link into the gateway's does, which knows it by number. What is in a namespace tells nothing:
	// another daemon on this machine may have tasks with the same addresses.
	name := "t" + t.Name()
	ports, err := n.gw.links(name)
	port, ok := ports[name]
	if err != nil || !ok || port.peerNS < 0 {
		return false
	}
	if t.PID != 0 && n.adoptFrom(path, port.peerNS, t.PID) {
		return true
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	tried := map[uint64]bool{}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) != nil || tried[st.Ino] {
			continue
		}
		tried[st.Ino] = true
		if n.adoptFrom(path, port.peerNS, pid) {
			return true
		}
	}
	return false
}

// adoptFrom binds a process's namespace to path if it is the one that the gateway's has this number for: a process number may
// belong to another process by now.
func (n *Network) adoptFrom(path string, number, pid int) bool {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	got, err := n.gw.numberOf(fd)
	return err == nil && got == number && adoptFD(path, fd) == nil
}
