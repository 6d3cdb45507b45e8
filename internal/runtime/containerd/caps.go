package containerd

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/runtime"
)

// defaultCapabilities is what root in a container may do, as Docker's default.
func defaultCapabilities() []string {
	return []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
}

// allCapabilities is every capability in the kernel's order.
func allCapabilities() []string {
	return []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
		"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
		"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
		"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
		"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
		"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"}
}

// heldCapabilities are those that this process can give away at all: inside of a container or of a restricted service some are
// missing.
func heldCapabilities() []string {
	var out []string
	for i, name := range allCapabilities() {
		if held, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && held == 1 {
			out = append(out, name)
		}
	}
	return out
}

// capabilities applies a task's additions and removals to the default set. "ALL" stands for every one that there is; an addition
// wins over dropping all, a drop wins over adding all.
func capabilities(add, drop []string) ([]string, error) {
	all := allCapabilities()
	normalise := func(names []string) (out []string, everything bool, err error) {
		for _, n := range names {
			n = strings.ToUpper(strings.TrimSpace(n))
			if n == "ALL" {
				everything = true
				continue
			}
			if !strings.HasPrefix(n, "CAP_") {
				n = "CAP_" + n
			}
			if !slices.Contains(all, n) {
				return nil, false, runtime.Invalid("invalid capability: unknown capability: %q", n)
			}
			out = append(out, n)
		}
		return out, everything, nil
	}
	add, addAll, err := normalise(add)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := normalise(drop)
	if err != nil {
		return nil, err
	}
	var have []string
	switch {
	case addAll:
		have = heldCapabilities()
		add = nil
	case !dropAll:
		have = defaultCapabilities()
	}
	out := make([]string, 0, len(have)+len(add))
	for _, n := range slices.Concat(have, add) {
		if (!slices.Contains(drop, n) || slices.Contains(add, n)) && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

// grantedTo is how a user holds capabilities: root has them at once, others may gain them through file capabilities.
func grantedTo(u *user.ExecUser, caps []string) *specs.LinuxCapabilities {
	if u.Uid == 0 {
		return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	}
	return &specs.LinuxCapabilities{Bounding: caps}
}

func reader(data []byte) io.Reader { return bytes.NewReader(data) }
