package containerd

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/profiles/seccomp"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-swarm/skep/internal/runtime"
)

// defaultPath is the PATH of a container whose image has none, as Docker's.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ociSpec translates a task into what runc understands. Everything that Docker decides by default is decided here as
// Docker decides it, so that an image that runs there runs here.
func (r *Runtime) ociSpec(s *runtime.Spec, img *image, u *user.ExecUser, mounts []specs.Mount) (*specs.Spec, error) {
	c := s.Task.ContainerSpec
	args, err := command(c, img)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(c.CapabilityAdd, c.CapabilityDrop)
	if err != nil {
		return nil, err
	}
	cwd := firstOf(c.Dir, img.config.WorkingDir, "/")
	if !path.IsAbs(cwd) {
		return nil, runtime.Invalid("the working directory '%s' is invalid, it needs to be an absolute path", cwd)
	}
	limits, err := rlimits(c)
	if err != nil {
		return nil, err
	}
	hostname := hostname(s)
	oomScore := int(c.OomScoreAdj)
	spec := &specs.Spec{
		Version:  "1.0.2",
		Hostname: hostname,
		Root:     &specs.Root{Path: "rootfs", Readonly: c.ReadOnly},
		Mounts:   mounts,
		Process: &specs.Process{
			Terminal:        c.TTY,
			Args:            args,
			Cwd:             cwd,
			Env:             environment(s, img, hostname),
			User:            execUser(u),
			Capabilities:    grantedTo(u, caps),
			NoNewPrivileges: c.Privileges != nil && c.Privileges.NoNewPrivileges,
			OOMScoreAdj:     &oomScore,
			Rlimits:         limits,
		},
		Linux: &specs.Linux{
			CgroupsPath:   r.cgroupPath(s.ID),
			Namespaces:    isolation(s.NetNS),
			MaskedPaths:   maskedPaths(),
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Sysctl:        sysctls(c, s.NetNS),
			Resources:     resources(s.Task.Resources),
		},
	}
	if spec.Linux.Seccomp, err = r.seccomp(c.Privileges, spec, caps); err != nil {
		return nil, err
	}
	return spec, nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func hostname(s *runtime.Spec) string { return firstOf(s.Hostname, s.ID[:12]) }

// command combines the task's command and arguments with the image's: a command replaces the image's entrypoint and
// its arguments, arguments alone replace the image's arguments.
func command(c *swarm.ContainerSpec, img *image) ([]string, error) {
	entry, args := c.Command, c.Args
	if len(entry) == 0 {
		entry = img.config.Entrypoint
		if len(args) == 0 {
			args = img.config.Cmd
		}
	}
	all := slices.Concat(entry, args)
	if len(all) == 0 || all[0] == "" && len(all) == 1 {
		return nil, runtime.Invalid("no command specified")
	}
	if wantsInit(c) {
		all = append([]string{initPath, "--"}, all...)
	}
	return all, nil
}

// initPath is where Docker puts the little program that reaps for containers that ask for it. Ours is the shim's.
const initPath = "/sbin/docker-init"

func wantsInit(c *swarm.ContainerSpec) bool { return c.Init != nil && *c.Init }

// environment is Docker's: a path, the host name, a terminal type, then the image's variables, overridden by the task's.
func environment(s *runtime.Spec, img *image, hostname string) []string {
	c := s.Task.ContainerSpec
	own := c.Env
	if s.Env != nil {
		own = s.Env
	}
	env := []string{defaultPath, "HOSTNAME=" + hostname}
	if c.TTY {
		env = append(env, "TERM=xterm")
	}
	index := make(map[string]int, len(env)+len(img.config.Env)+len(own))
	for i, e := range env {
		name, _, _ := strings.Cut(e, "=")
		index[name] = i
	}
	for _, e := range slices.Concat(img.config.Env, own) {
		name, _, isSet := strings.Cut(e, "=")
		at, known := index[name]
		switch {
		case !isSet && known:
			env[at] = "" // a bare name takes the variable away
			delete(index, name)
		case !isSet:
		case known:
			env[at] = e
		default:
			index[name] = len(env)
			env = append(env, e)
		}
	}
	return slices.DeleteFunc(env, func(e string) bool { return e == "" })
}

// lookupUser resolves a user as "name", "uid", "name:group" by the image's own files.
func lookupUser(c *swarm.ContainerSpec, img *image, passwd, group []byte) (*user.ExecUser, error) {
	name := firstOf(c.User, img.config.User)
	u, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, reader(passwd), reader(group))
	if err != nil {
		return nil, runtime.Invalid("%v", err)
	}
	if slices.Contains(c.Groups, "") { // of which the library does not think
		return nil, runtime.Invalid("unable to find a group without a name")
	}
	if len(c.Groups) > 0 {
		extra, err := user.GetAdditionalGroups(c.Groups, reader(group))
		if err != nil {
			return nil, runtime.Invalid("%v", err)
		}
		slices.Sort(extra) // they come in any order
		u.Sgids = append(u.Sgids, extra...)
	}
	return u, nil
}

func execUser(u *user.ExecUser) specs.User {
	out := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}
	for _, g := range slices.Concat([]int{u.Gid}, u.Sgids) {
		if !slices.Contains(out.AdditionalGids, uint32(g)) {
			out.AdditionalGids = append(out.AdditionalGids, uint32(g))
		}
	}
	return out
}

// isolation is every namespace but the user's, and on v1 the cgroup's, as Docker's defaults are.
func isolation(netns string) []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}}
	if netns != runtime.HostNetNS {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns})
	}
	if unified() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns
}

func maskedPaths() []string {
	return []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap"}
}

// sysctls lets every user bind low ports and ping, as Docker does for a container with a network of its own. The host's
// settings are the host's.
func sysctls(c *swarm.ContainerSpec, netns string) map[string]string {
	out := map[string]string{}
	if netns != runtime.HostNetNS {
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for k, v := range c.Sysctls {
		out[k] = v
	}
	return out
}

func rlimits(c *swarm.ContainerSpec) ([]specs.POSIXRlimit, error) {
	var out []specs.POSIXRlimit
	for _, u := range c.Ulimits {
		if u == nil {
			continue
		}
		limit, err := u.GetRlimit()
		if err != nil {
			return nil, runtime.Invalid("ulimit %s: %v", u.Name, err)
		}
		_ = limit // GetRlimit checks the name and the order of the values
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return out, nil
}

// resources translates limits. No limit means none, not what the daemon itself has.
func resources(r *swarm.ResourceRequirements) *specs.LinuxResources {
	out := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	if r == nil {
		return out
	}
	if r.Limits != nil {
		if n := r.Limits.NanoCPUs; n > 0 {
			period := uint64(100_000) // µs, the kernel's own default
			quota := n * int64(period) / 1e9
			out.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
		}
		if n := r.Limits.Pids; n != 0 {
			out.Pids = &specs.LinuxPids{Limit: &n}
		}
		if n := r.Limits.MemoryBytes; n > 0 {
			out.Memory = &specs.LinuxMemory{Limit: &n}
			if hasSwapLimit() {
				total := 2 * n
				if r.SwapBytes != nil {
					total = n + *r.SwapBytes
					if *r.SwapBytes < 0 {
						total = -1
					}
				}
				out.Memory.Swap = &total
			}
		}
	}
	if r.MemorySwappiness != nil && *r.MemorySwappiness >= 0 && !unified() {
		n := uint64(*r.MemorySwappiness)
		if out.Memory == nil {
			out.Memory = &specs.LinuxMemory{}
		}
		out.Memory.Swappiness = &n
	}
	return out
}

// seccompCache keeps the default filter by the capabilities it was made for: making it is the dearest part of a spec.
type seccompCache struct {
	mu    sync.Mutex
	byCap map[string]*specs.LinuxSeccomp
}

func (r *Runtime) seccomp(p *swarm.Privileges, spec *specs.Spec, caps []string) (*specs.LinuxSeccomp, error) {
	if p != nil && p.Seccomp != nil {
		switch p.Seccomp.Mode {
		case swarm.SeccompModeUnconfined:
			return nil, nil
		case swarm.SeccompModeCustom:
			filter, err := seccomp.LoadProfile(string(p.Seccomp.Profile), spec)
			if err != nil {
				return nil, runtime.Invalid("custom seccomp profile: %v", err)
			}
			return filter, nil
		}
	}
	key := strings.Join(caps, " ")
	r.filters.mu.Lock()
	defer r.filters.mu.Unlock()
	if f := r.filters.byCap[key]; f != nil {
		return f, nil
	}
	// The filter depends on what the container may gain, so it is made for the capabilities, not for the user.
	with := *spec
	process := *spec.Process
	process.Capabilities = &specs.LinuxCapabilities{Bounding: caps}
	with.Process = &process
	filter, err := seccomp.GetDefaultProfile(&with)
	if err != nil {
		return nil, fmt.Errorf("make the default seccomp filter: %w", err)
	}
	if r.filters.byCap == nil || len(r.filters.byCap) > 32 {
		r.filters.byCap = make(map[string]*specs.LinuxSeccomp)
	}
	r.filters.byCap[key] = filter
	return filter, nil
}
