package netapply

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/netplan"
)

// adopt binds the namespace that a task's processes live in to path, when
// there is one. It reports whether it did.
func (n *Network) adopt(path string, t netplan.Task) bool {
	if t.PID != 0 && n.adoptFrom(path, t, t.PID) {
		return true
	}
	// While a namespace lives, its link into the sandbox does.
	ports, err := n.gw.links("t" + t.Name())
	if err != nil || len(ports) == 0 {
		return false
	}
	tried := map[uint64]bool{}
	for _, fd := range []int{n.host.fd, n.gw.fd} {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			tried[st.Ino] = true
		}
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
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
		if n.adoptFrom(path, t, pid) {
			return true
		}
	}
	return false
}

// adoptFrom binds a process's namespace to path if it has the task's own
// interface: a process number may belong to another one by now.
func (n *Network) adoptFrom(path string, t netplan.Task, pid int) bool {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	s, err := openSpace(t.Name(), fd)
	if err != nil {
		return false
	}
	defer s.close()
	links, err := s.links(netplan.TaskLink)
	if err != nil {
		return false
	}
	l := netplan.TaskGateway(n.node, t)
	return links[l.Name].mac == l.MAC && links[l.Name].kind == l.Kind && adoptFD(path, s.fd) == nil
}
