package netapply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A monitor is a netlink socket that hears what changes in a namespace.
type monitor struct {
	file   *os.File
	closed atomic.Bool
}

const (
	listenAllNSID = 8 // NETLINK_LISTEN_ALL_NSID
	groupNFTables = 7 // NFNLGRP_NFTABLES
)

// rtGroups are the rtnetlink groups in which removals are told: LINK, IPV4 and
// IPV6 IFADDR, ROUTE and RULE, and NEIGH; and NETCONF, which tells of forwarding.
var rtGroups = []int{
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
	unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE,
}

// openMonitor opens a socket in the namespace that fd refers to. With all, it
// also hears every namespace that has a link into that one. Messages whose
// sender is port are dropped by the kernel.
func openMonitor(fd, proto int, groups []int, all bool, prog []unix.SockFilter) (*monitor, error) {
	var m *monitor
	err := inNS(fd, func() error {
		s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 2<<20)
		if err = attach(s, prog); err == nil {
			err = unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		}
		for _, g := range groups {
			err = errors.Join(err, unix.SetsockoptInt(s, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g))
		}
		if all {
			err = errors.Join(err, unix.SetsockoptInt(s, unix.SOL_NETLINK, listenAllNSID, 1))
		}
		if err != nil {
			_ = unix.Close(s)
			return err
		}
		m = &monitor{file: os.NewFile(uintptr(s), "netlink monitor")}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listen for network changes: %w", err)
	}
	return m, nil
}

// ignoreSender drops, in the kernel, nftables messages that port has caused.
func ignoreSender(port uint32) []unix.SockFilter {
	// A load of a classic filter is big-endian, the header is not.
	k := binary.BigEndian.Uint32(native.AppendUint32(nil, port))
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 12}, // nlmsg_pid
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: k},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
}

// onlyRemovals drops, in the kernel, rtnetlink messages that never tell of a
// loss, but for some types: a task that is added causes some twenty.
func onlyRemovals(and ...uint16) []unix.SockFilter {
	types := append([]uint16{
		unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_DELADDR, unix.RTM_DELROUTE, unix.RTM_DELRULE, unix.RTM_DELNEIGH, unix.RTM_NEWNETCONF,
	}, and...)
	prog := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4}} // nlmsg_type
	for i, t := range types {
		k := binary.BigEndian.Uint16(native.AppendUint16(nil, t))
		prog = append(prog, unix.SockFilter{
			Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(types) - i), K: uint32(k),
		})
	}
	return append(prog, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff})
}

func attach(fd int, prog []unix.SockFilter) error {
	if len(prog) == 0 {
		return nil
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
}

// An event is one change: body is the message after its netlink header.
type event struct {
	header
	body []byte
	nsid int  // of the namespace it happened in, or -1 for the socket's own
	lost bool // some were lost: anything may have changed
}

// run calls each with what it hears until the monitor is closed.
func (m *monitor) run(each func(event)) error {
	raw, err := m.file.SyscallConn()
	if m.closed.Load() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen for network changes: %w", err)
	}
	buf, oob := make([]byte, 128<<10), make([]byte, 256)
	for {
		var n, oobn int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, rerr = unix.Recvmsg(int(fd), buf, oob, 0)
			return rerr != unix.EAGAIN
		})
		switch {
		case m.closed.Load():
			return nil
		case err != nil:
			return fmt.Errorf("listen for network changes: %w", err)
		case rerr == unix.ENOBUFS:
			each(event{lost: true, nsid: -1})
			continue
		case rerr == unix.EINTR:
			continue
		case rerr != nil:
			return fmt.Errorf("listen for network changes: %w", rerr)
		}
		nsid := sender(oob[:oobn])
		messages(buf[:n], func(h header, body []byte) bool {
			each(event{header: h, body: body, nsid: nsid})
			return true
		})
	}
}

func sender(oob []byte) int {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	for _, c := range list {
		if c.Header.Level == unix.SOL_NETLINK && c.Header.Type == listenAllNSID && len(c.Data) >= 4 {
			return int(int32(native.Uint32(c.Data)))
		}
	}
	return -1
}

func (m *monitor) close() {
	m.closed.Store(true)
	_ = m.file.Close()
}

// relevantHost tells whether a change of the host's links, addresses or routes
// can have taken something of ours away.
func relevantHost(e event, link string, index int) bool {
	if e.lost {
		return true
	}
	switch e.typ {
	case unix.RTM_DELLINK:
		return parseLink(e.body).name == link
	case unix.RTM_NEWLINK:
		l := parseLink(e.body)
		return l.index == index && (l.name != link || !l.up)
	case unix.RTM_DELADDR:
		return len(e.body) >= 8 && int(native.Uint32(e.body[4:])) == index
	case unix.RTM_DELROUTE:
		return len(e.body) >= 12 && parseRoute(e.body).oif == index
	case unix.RTM_DELNEIGH:
		return len(e.body) >= 12 && int(native.Uint32(e.body[4:])) == index
	case unix.RTM_NEWNETCONF:
		return forwardingOff(e.body)
	}
	return false
}

const (
	netconfaIfindex    = 1 // NETCONFA_IFINDEX
	netconfaForwarding = 2 // NETCONFA_FORWARDING
)

// forwardingOff tells whether someone has told a namespace to forward nothing.
func forwardingOff(body []byte) bool {
	all, off := false, false
	attrs(body[min(4, len(body)):], func(t uint16, v []byte) {
		if len(v) == 4 {
			all = all || t == netconfaIfindex && int32(native.Uint32(v)) == -1 // NETCONFA_IFINDEX_ALL
			off = off || t == netconfaForwarding && native.Uint32(v) == 0
		}
	})
	return all && off
}

// relevantGateway is the same for the sandbox and the tasks' namespaces.
func relevantGateway(e event) bool {
	switch e.typ {
	case unix.RTM_DELLINK, unix.RTM_DELADDR, unix.RTM_DELROUTE, unix.RTM_DELRULE:
		return true
	case unix.RTM_DELNEIGH:
		_, permanent := parseNeighbour(e.body, unix.NUD_PERMANENT)
		_, static := parseNeighbour(e.body, unix.NUD_NOARP)
		return permanent || static
	case unix.RTM_NEWLINK:
		return !parseLink(e.body).up
	case unix.RTM_NEWNETCONF:
		return e.nsid < 0 && forwardingOff(e.body) // tasks forward as they like
	}
	return e.lost
}

// relevantFilter tells whether a change of nftables concerns the instance's
// table or may be one of another program's forward chains.
func relevantFilter(e event, table string) bool {
	if e.lost {
		return true
	}
	if e.typ>>8 != unix.NFNL_SUBSYS_NFTABLES || len(e.body) < 4 {
		return false
	}
	name := ""
	attrs(e.body[4:], func(t uint16, v []byte) {
		if t == 1 { // the table's name, in every kind of message but one
			name = strings.TrimRight(string(v), "\x00")
		}
	})
	switch e.typ & 0xff {
	case unix.NFT_MSG_NEWGEN:
		return false // there is one with every change
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELCHAIN:
		return name == table || !isOurs(name)
	}
	return name == table
}

// watchMounts calls changed whenever a mount is made or removed, until stop
// can be read from. It holds a thread.
func watchMounts(stop int, changed func()) error {
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	defer unix.Close(fd)
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}, {Fd: int32(stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("watch mounts: %w", err)
		}
		if p[1].Revents != 0 {
			return nil
		}
		if p[0].Revents != 0 {
			changed()
		}
	}
}
