package dockerapi

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/runtime"
)

// shmSize is the size of /dev/shm in every container, in bytes.
const shmSize = 64 << 20

// containerView is a container as API versions before 1.52 show it: with the fields of the one network that containers once had.
type containerView struct {
	container.InspectResponse
	NetworkSettings networkSettingsView
}

type networkSettingsView struct {
	container.NetworkSettings
	Bridge, LinkLocalIPv6Address, EndpointID, Gateway, GlobalIPv6Address, IPAddress, IPv6Gateway, MacAddress string
	HairpinMode                                                                                              bool
	LinkLocalIPv6PrefixLen, GlobalIPv6PrefixLen, IPPrefixLen                                                 int
	SecondaryIPAddresses, SecondaryIPv6Addresses                                                             []string
}

func (s *Server) getContainer(r *request, c *Container) error {
	d, err := s.backend.InspectContainer(r.ctx(), c.ID)
	if err != nil {
		return err
	}
	v := containerView{InspectResponse: container.InspectResponse{
		ID: c.ID, Name: "/" + c.Name, Created: c.Created.UTC().Format(time.RFC3339Nano), Image: c.ImageID, LogPath: c.LogPath, Driver: "overlayfs",
		Platform: "linux", Mounts: c.Mounts, HostConfig: hostConfig(c, &d), Config: containerConfig(c, &d), State: containerState(c),
		ExecIDs: s.execs.of(c.ID), ResolvConfPath: d.ResolvConf, HostsPath: d.Hosts, HostnamePath: d.HostnameFile,
		GraphDriver: &storage.DriverData{Name: "overlayfs", Data: d.Layers},
	}}
	v.NetworkSettings.NetworkSettings = container.NetworkSettings{Ports: portMap(c), Networks: endpoints(c), SandboxKey: d.NetNS}
	if d.NetNS != "" {
		v.NetworkSettings.SandboxID = endpointID("sandbox", c.ID)
	}
	v.NetworkSettings.setBridge(v.NetworkSettings.Networks["bridge"])
	if v.HostConfig.LogConfig.Type != "json-file" {
		v.LogPath = ""
	}
	if args := d.Args; len(args) > 0 {
		v.Path, v.Args = args[0], args[1:]
	}
	if v.Args == nil {
		v.Args = []string{}
	}
	if v.Mounts == nil {
		v.Mounts = []container.MountPoint{}
	}
	if r.bool("size") {
		written, whole, err := s.backend.ContainerSize(r.ctx(), c.ID)
		if err != nil {
			return err
		}
		v.SizeRw, v.SizeRootFs = &written, &whole
	}
	return writeJSON(r, http.StatusOK, v)
}

// setBridge repeats the place in the host's bridge in the fields that once were all there was; nil when there is none.
func (v *networkSettingsView) setBridge(ep *network.EndpointSettings) {
	if ep == nil {
		return
	}
	v.EndpointID, v.MacAddress, v.IPPrefixLen, v.GlobalIPv6PrefixLen = ep.EndpointID, ep.MacAddress.String(), ep.IPPrefixLen, ep.GlobalIPv6PrefixLen
	if ep.IPAddress.IsValid() {
		v.IPAddress = ep.IPAddress.String()
	}
	if ep.GlobalIPv6Address.IsValid() {
		v.GlobalIPv6Address = ep.GlobalIPv6Address.String()
	}
}

func containerState(c *Container) *container.State {
	return &container.State{
		Status: c.State, Running: c.State == container.StateRunning, OOMKilled: c.OOMKilled, Dead: c.State == container.StateDead, Pid: c.PID,
		ExitCode: c.ExitCode, Error: c.Error, StartedAt: c.Started.UTC().Format(time.RFC3339Nano), FinishedAt: c.Finished.UTC().Format(time.RFC3339Nano), Health: c.Health,
	}
}

// portMap is where a container's ports are on its host; those that are nowhere have no place.
func portMap(c *Container) network.PortMap {
	out := network.PortMap{}
	for _, b := range bindings(c) {
		if b.host == 0 {
			out[b.port] = nil
			continue
		}
		for _, ip := range anyAddress() {
			out[b.port] = append(out[b.port], network.PortBinding{HostIP: ip, HostPort: strconv.Itoa(int(b.host))})
		}
	}
	return out
}

// containerConfig is what a container was asked to be: the image's word, and the service's over it.
func containerConfig(c *Container, d *runtime.Details) *container.Config {
	out := &container.Config{Hostname: cmp.Or(d.Hostname, c.Hostname), Image: c.Image, Labels: c.Labels, Healthcheck: c.Healthcheck,
		ExposedPorts: exposed(c), WorkingDir: d.Dir, AttachStdout: true, AttachStderr: true, Env: []string{}}
	if img := c.ImageConfig; img != nil {
		out.User, out.Entrypoint, out.Cmd, out.StopSignal, out.Volumes = img.User, img.Entrypoint, img.Cmd, img.StopSignal, img.Volumes
		out.OnBuild, out.Shell = img.OnBuild, img.Shell
	}
	var spec swarm.ContainerSpec
	if c.Task != nil && c.Task.ContainerSpec != nil {
		spec = *c.Task.ContainerSpec
	}
	for _, e := range d.Env {
		// Not what every container has by itself.
		if e != "HOSTNAME="+d.Hostname || slices.Contains(spec.Env, e) {
			out.Env = append(out.Env, e)
		}
	}
	out.Tty, out.OpenStdin = spec.TTY, spec.OpenStdin
	out.User, out.StopSignal = cmp.Or(spec.User, out.User), cmp.Or(spec.StopSignal, out.StopSignal)
	switch {
	case len(spec.Command) > 0:
		out.Entrypoint, out.Cmd = spec.Command, spec.Args
	case len(spec.Args) > 0:
		out.Cmd = spec.Args
	case c.Task == nil && c.ImageConfig == nil:
		out.Cmd = d.Args
	}
	if spec.StopGracePeriod != nil {
		seconds := int((*spec.StopGracePeriod + time.Second - 1) / time.Second)
		out.StopTimeout = &seconds
	}
	return out
}

// hostConfig is what a container got of its host.
func hostConfig(c *Container, d *runtime.Details) *container.HostConfig {
	out := &container.HostConfig{
		NetworkMode: container.NetworkMode(networkMode(c)), LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{}},
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled}, PortBindings: network.PortMap{},
		CgroupnsMode: container.CgroupnsModePrivate, IpcMode: container.IPCModePrivate, ShmSize: shmSize, Runtime: "runc", Isolation: "default",
		MaskedPaths: d.MaskedPaths, ReadonlyPaths: d.ReadonlyPaths, Sysctls: d.Sysctls,
	}
	for port, at := range portMap(c) {
		if len(at) > 0 {
			out.PortBindings[port] = at
		}
	}
	if l := c.LogDriver; l != nil {
		out.LogConfig = container.LogConfig{Type: cmp.Or(l.Name, "json-file"), Config: mergedLabels(l.Options, nil)}
	}
	if c.Task == nil {
		return out
	}
	limits(out, c.Task.Resources)
	spec := c.Task.ContainerSpec
	if spec == nil {
		return out
	}
	out.Init, out.ReadonlyRootfs, out.CapAdd, out.CapDrop = spec.Init, spec.ReadOnly, spec.CapabilityAdd, spec.CapabilityDrop
	out.Mounts, out.Ulimits, out.OomScoreAdj, out.GroupAdd = spec.Mounts, spec.Ulimits, int(spec.OomScoreAdj), spec.Groups
	for _, line := range spec.Hosts { // "IP name…" there, "name:IP" here
		if f := strings.Fields(line); len(f) > 1 {
			for _, name := range f[1:] {
				out.ExtraHosts = append(out.ExtraHosts, name+":"+f[0])
			}
		}
	}
	if dns := spec.DNSConfig; dns != nil {
		out.DNS, out.DNSSearch, out.DNSOptions = dns.Nameservers, dns.Search, dns.Options
	}
	out.SecurityOpt = securityOptions(spec.Privileges)
	return out
}

func securityOptions(p *swarm.Privileges) []string {
	var out []string
	if p == nil {
		return nil
	}
	if p.NoNewPrivileges {
		out = append(out, "no-new-privileges=true")
	}
	if p.Seccomp != nil && p.Seccomp.Mode == swarm.SeccompModeUnconfined {
		out = append(out, "seccomp=unconfined")
	}
	if p.AppArmor != nil && p.AppArmor.Mode == swarm.AppArmorModeDisabled {
		out = append(out, "apparmor=unconfined")
	}
	return out
}

func limits(out *container.HostConfig, r *swarm.ResourceRequirements) {
	if r == nil {
		return
	}
	if r.Reservations != nil {
		out.MemoryReservation = r.Reservations.MemoryBytes
	}
	out.MemorySwappiness = r.MemorySwappiness
	if r.Limits == nil {
		return
	}
	out.NanoCPUs, out.Memory = r.Limits.NanoCPUs, r.Limits.MemoryBytes
	if r.Limits.Pids != 0 {
		pids := r.Limits.Pids
		out.PidsLimit = &pids
	}
	switch {
	case out.Memory == 0:
	case r.SwapBytes == nil:
		out.MemorySwap = 2 * out.Memory
	case *r.SwapBytes < 0:
		out.MemorySwap = -1
	default:
		out.MemorySwap = out.Memory + *r.SwapBytes
	}
}
