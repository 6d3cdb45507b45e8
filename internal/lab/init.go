package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Names under which this program is started again.
const (
	argInit     = "skep-lab-init"     // becomes pid 1 of a host: makes its mounts …
	argReaper   = "skep-lab-reaper"   // … and executes itself once more to reap
	argEnter    = "skep-lab-enter"    // enters a host …
	argRun      = "skep-lab-run"      // … and becomes a program there
	argSnapshot = "skep-lab-snapshot" // a program that prints a Snapshot of where it runs
)

const readyWord = "ready"

// Dispatch runs the part that this process was started for by a lab, and then does
// not return. In a process that no lab started it returns at once. Call it before
// anything else in TestMain or main of a program that uses a Lab.
func Dispatch() {
	var err error
	switch filepath.Base(os.Args[0]) {
	case argInit:
		err = becomeHost()
	case argReaper:
		reap()
	case argEnter:
		err = enter(os.Args[1:])
	case argRun:
		err = runProgram(os.Args[1:])
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(exitCannotRun)
	}
	os.Exit(0)
}

// becomeHost makes the mounts of a host, says so on standard output and goes on as
// the reaper. It runs as pid 1 of fresh namespaces.
func becomeHost() error {
	runtime.LockOSThread() // the cgroup namespace is this thread's until the exec
	var cfg bootConfig
	if err := json.NewDecoder(os.Stdin).Decode(&cfg); err != nil {
		return fmt.Errorf("reading what to be: %w", err)
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("making a cgroup namespace: %w", err)
	}
	// The namespace's root is the host's group; pid 1 itself moves one down, as v2
	// allows no process in a group that hands controllers on.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cutting mount propagation: %w", err)
	}
	for _, step := range []func(bootConfig) error{dropInherited, mountKernel, mountPrivate, nameHost, joinInit} {
		if err := step(cfg); err != nil {
			return err
		}
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString(readyWord); err != nil {
		return err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := unix.Dup3(int(null.Fd()), 0, 0); err != nil {
		return err
	}
	// The end of standard output tells the lab to go on; it comes with the exec, so
	// that nobody sees pid 1 under its first name.
	unix.CloseOnExec(1)
	return unix.Exec(self, []string{argReaper, cfg.Name}, os.Environ())
}

// dropInherited lets go of what others have mounted in places for passing things:
// a copy here would keep their file systems and network namespaces alive, and would
// come and go in this host's list of mounts.
func dropInherited(bootConfig) error {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(infos) { // the later ones lie on the earlier ones
		for _, place := range []string{"/tmp/", "/run/", "/var/lib/"} {
			if strings.HasPrefix(m.Mountpoint, place) {
				// One that has gone with its parent is no loss.
				if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("letting go of %s: %w", m.Mountpoint, err)
				}
			}
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", source, target, err)
	}
	return nil
}

const nosuid = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountKernel shows the host its own processes, links and cgroups.
func mountKernel(cfg bootConfig) error {
	if err := mount("proc", "/proc", "proc", nosuid, ""); err != nil {
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", nosuid, ""); err != nil {
		return err
	}
	const top = "/sys/fs/cgroup"
	if len(cfg.Groups) == 1 && cfg.Groups[0].Path == top {
		return mount("cgroup2", top, "cgroup2", nosuid, "")
	}
	if err := mount("tmpfs", top, "tmpfs", nosuid, "mode=755"); err != nil {
		return err
	}
	for _, g := range cfg.Groups {
		if err := os.MkdirAll(g.Path, 0o755); err != nil {
			return err
		}
		if err := mount(g.Type, g.Path, g.Type, nosuid, g.Options); err != nil {
			return err
		}
		// cpu and cpuacct are often mounted together, under both names.
		for name := range strings.SplitSeq(g.Options, ",") {
			alias := filepath.Join(top, name)
			if strings.Contains(g.Options, ",") && alias != g.Path {
				if err := os.Symlink(filepath.Base(g.Path), alias); err != nil && !errors.Is(err, fs.ErrExist) {
					return err
				}
			}
		}
	}
	return nil
}

// mountPrivate gives the host its own /run, /dev/shm and /var/lib/skep, and /etc
// files of its own.
func mountPrivate(cfg bootConfig) error {
	resolv, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		resolv = "" // a machine without one
	}
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return err
	}
	if err := ownVarLib(cfg); err != nil {
		return err
	}
	for target, text := range map[string]string{"/etc/hosts": cfg.Hosts, resolv: "# no name server: hosts of a lab know each other by /etc/hosts\n"} {
		if target == "" {
			continue
		}
		own := filepath.Join(cfg.Dir, filepath.Base(target))
		if err := os.WriteFile(own, []byte(text), 0o644); err != nil {
			return err
		}
		if strings.HasPrefix(target, "/run/") { // systemd-resolved's, gone with the old /run
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(target, nil, 0o644); err != nil {
				return err
			}
		}
		if err := mount(own, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// ownVarLib puts a directory of the host's at /var/lib/skep without making one on
// the machine: /var/lib becomes a tmpfs with links to all that was there.
func ownVarLib(cfg bootConfig) error {
	const lib, old = "/var/lib", "/run/.machine-var-lib"
	if err := os.Mkdir(old, 0o755); err != nil {
		return err
	}
	if err := mount(lib, old, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", lib, "tmpfs", unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	entries, err := os.ReadDir(old)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "skep" {
			continue
		}
		if err := os.Symlink(filepath.Join(old, e.Name()), filepath.Join(lib, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(lib, "skep"), 0o755); err != nil {
		return err
	}
	return mount(filepath.Join(cfg.Dir, "data"), filepath.Join(lib, "skep"), "", unix.MS_BIND, "")
}

func nameHost(cfg bootConfig) error {
	if err := unix.Sethostname([]byte(cfg.Name)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	for file, value := range map[string]string{
		"net/ipv4/ip_forward":                  "1",
		"net/ipv6/conf/all/forwarding":         "1",
		"net/ipv6/conf/all/accept_dad":         "0",
		"net/ipv6/conf/default/accept_dad":     "0",
		"net/ipv6/conf/all/disable_ipv6":       "0",
		"net/ipv6/conf/default/disable_ipv6":   "0",
		"net/ipv4/ping_group_range":            "0 2147483647",
		"net/ipv4/ip_unprivileged_port_start":  "1024",
		"net/netfilter/nf_conntrack_acct":      "0",
		"net/ipv4/conf/all/rp_filter":          "0",
		"net/ipv4/conf/default/rp_filter":      "0",
		"net/ipv4/conf/default/route_localnet": "0",
	} {
		err := os.WriteFile(filepath.Join("/proc/sys", file), []byte(value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // no IPv6, no conntrack yet
			return err
		}
	}
	return nil
}

// joinInit moves pid 1 into the group "init" of its own tree.
func joinInit(bootConfig) error { return joinGroup(initGroup, os.Getpid()) }

// reap is the life of pid 1: it collects every orphan and ends only by SIGKILL.
func reap() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	// Whatever else is sent to pid 1 of a real host does not end it either.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	for {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if pid <= 0 {
				break
			}
		}
		<-children
	}
}
