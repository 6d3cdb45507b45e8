package daemon

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/skep-swarm/skep/internal/dockerapi"
	"golang.org/x/sys/unix"
)

// machine is what does not change while the daemon runs.
type machine struct {
	dockerapi.SystemInfo
}

// lookAtMachine collects it once.
func lookAtMachine(ctx context.Context, cfg *Config) (*machine, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("host name: %w", err)
	}
	id, err := engineID(cfg)
	if err != nil {
		return nil, err
	}
	m := &machine{dockerapi.SystemInfo{
		ID: id, Name: host, KernelVersion: unix.ByteSliceToString(uts.Release[:]), OSType: "linux",
		Architecture: unix.ByteSliceToString(uts.Machine[:]), NCPU: runtime.NumCPU(), MemTotal: memTotal(),
		DataRoot: cfg.DataRoot, Driver: "overlayfs", CgroupDriver: "cgroupfs",
		ContainerdVersion: moduleVersion("github.com/containerd/containerd/v2"), RuncVersion: runcVersion(ctx),
		SecurityOptions: []string{"name=seccomp,profile=builtin"}, Debug: cfg.LogLevel == "debug",
		InsecureRegistries: cfg.InsecureRegistries, RegistryMirrors: cfg.RegistryMirrors,
		HTTPProxy: os.Getenv("HTTP_PROXY"), HTTPSProxy: os.Getenv("HTTPS_PROXY"), NoProxy: os.Getenv("NO_PROXY"),
		IPv4Forwarding: readLine("/proc/sys/net/ipv4/ip_forward") == "1",
		CgroupVersion:  "1",
	}}
	m.OperatingSystem, m.OSVersion = osRelease()
	if cgroups.Mode() == cgroups.Unified {
		m.CgroupVersion = "2"
	}
	for _, has := range []struct {
		flag             *bool
		controller, file string
	}{
		{&m.MemoryLimit, "memory", ""}, {&m.SwapLimit, "memory", "memory.memsw.limit_in_bytes"},
		{&m.CPUCfs, "cpu", ""}, {&m.CPUSet, "cpuset", ""}, {&m.PidsLimit, "pids", ""},
	} {
		*has.flag = controller(has.controller, has.file)
	}
	for k, v := range cfg.Labels {
		m.Labels = append(m.Labels, k+"="+v)
	}
	return m, nil
}

// controller reports whether the kernel offers a cgroup controller here (with a file of v1).
func controller(name, file string) bool {
	if cgroups.Mode() == cgroups.Unified {
		return strings.Contains(" "+readLine("/sys/fs/cgroup/cgroup.controllers")+" ", " "+name+" ")
	}
	_, err := os.Stat(filepath.Join("/sys/fs/cgroup", name, file))
	return err == nil
}

// engineID is this daemon's own identifier, made once for its data root.
func engineID(cfg *Config) (string, error) {
	path := cfg.data("engine-id")
	if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return "", fmt.Errorf("make the engine's identifier: %w", err)
	}
	id := strings.TrimSpace(string(b))
	return id, writeFile(path, []byte(id+"\n"))
}

func memTotal() int64 {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0
	}
	return int64(si.Totalram) * int64(si.Unit)
}

func osRelease() (name, version string) {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "Linux", ""
	}
	defer f.Close()
	name = "Linux"
	for sc := bufio.NewScanner(f); sc.Scan(); {
		k, v, _ := strings.Cut(sc.Text(), "=")
		switch k {
		case "PRETTY_NAME":
			name = strings.Trim(v, `"`)
		case "VERSION_ID":
			version = strings.Trim(v, `"`)
		}
	}
	return name, version
}

func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return "unknown"
}

// runcVersion asks runc once; without runc tasks cannot run, and say so themselves.
func runcVersion(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "runc", "--version").Output()
	if err != nil {
		return "not installed"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(line, "runc version ")
}
