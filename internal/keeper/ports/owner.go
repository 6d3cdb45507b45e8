package ports

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// owner finds the program whose socket keeps p from being bound. It returns
// zeroes when there is none to be found: the kernel's tables do not list
// sockets that are bound but neither listen nor are connected.
func owner(p Port, addr netip.Addr) (pid int, command string) {
	inodes := make(map[string]bool)
	for _, table := range []string{p.Proto, p.Proto + "6"} {
		collect(filepath.Join("/proc/thread-self/net", table), p, addr, inodes)
	}
	if len(inodes) == 0 {
		return 0, ""
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return 0, ""
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err == nil && hasSocket(pid, inodes) {
			return pid, commandOf(pid)
		}
	}
	return 0, ""
}

// collect adds the inodes of the sockets in a table that are in p's way.
func collect(table string, p Port, addr netip.Addr, inodes map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Scan() // headings
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[9] == "0" {
			continue
		}
		local, port, ok := parseLocal(fields[1])
		if !ok || port != p.Port {
			continue
		}
		const listen = "0A"
		if p.Proto == "tcp" && fields[3] != listen {
			continue // a connection: it matters only when nobody listens
		}
		if addr.IsValid() && !local.IsUnspecified() && local.Unmap() != addr {
			continue
		}
		inodes[fields[9]] = true
	}
}

// parseLocal parses the kernel's "0100007F:1F90".
func parseLocal(s string) (netip.Addr, uint16, bool) {
	host, port, ok := strings.Cut(s, ":")
	n, err1 := strconv.ParseUint(port, 16, 16)
	raw, err2 := hex.DecodeString(host)
	if !ok || err1 != nil || err2 != nil || len(raw)%4 != 0 {
		return netip.Addr{}, 0, false
	}
	for i := 0; i < len(raw); i += 4 {
		// Each word is printed in the host's byte order; only
		// little-endian machines run this program.
		raw[i], raw[i+1], raw[i+2], raw[i+3] = raw[i+3], raw[i+2], raw[i+1], raw[i]
	}
	addr, ok := netip.AddrFromSlice(raw)
	return addr, uint16(n), ok
}

func hasSocket(pid int, inodes map[string]bool) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		link, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue
		}
		if inode, ok := strings.CutPrefix(link, "socket:["); ok && inodes[strings.TrimSuffix(inode, "]")] {
			return true
		}
	}
	return false
}

func commandOf(pid int) string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
	if err != nil {
		return "a program that has ended"
	}
	return string(bytes.TrimSpace(b))
}
