package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/runtime"
)

// writeFiles makes /etc/hosts, /etc/hostname and /etc/resolv.conf of a container.
func (a *Agent) writeFiles(spec *runtime.Spec, gw netplan.Task) error {
	dir := a.containerDir(spec.ID)
	if err := os.MkdirAll(dir, 0o710); err != nil {
		return err
	}
	host := spec.Hostname
	if host == "" {
		host = spec.ID[:12]
	}
	resolv, err := os.ReadFile(a.cfg.ResolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if gw.Addr4.IsValid() {
		resolv = resolvConf(resolv, spec.Task.ContainerSpec.DNSConfig)
	} else {
		resolv = hostResolv(resolv, spec.Task.ContainerSpec.DNSConfig)
	}
	hosts, err := a.hosts(spec, host, gw)
	if err != nil {
		return err
	}
	spec.HostsFile, spec.HostnameFile, spec.ResolvConf = filepath.Join(dir, "hosts"), filepath.Join(dir, "hostname"), filepath.Join(dir, "resolv.conf")
	return errors.Join(
		writeOnce(spec.HostsFile, hosts),
		writeOnce(spec.HostnameFile, []byte(host+"\n")),
		writeOnce(spec.ResolvConf, resolv))
}

// hosts is a container's /etc/hosts. In the host's network it is the host's own, unless the service has names to add to Docker's.
func (a *Agent) hosts(spec *runtime.Spec, name string, gw netplan.Task) ([]byte, error) {
	extra := spec.Task.ContainerSpec.Hosts
	if spec.NetNS == runtime.HostNetNS && len(extra) == 0 {
		if own, err := os.ReadFile(a.cfg.Hosts); !errors.Is(err, fs.ErrNotExist) {
			return own, err
		}
	}
	return hostsFile(name, addresses(gw), extra), nil
}

// writeOnce writes in place, because the file may be bound into a container that runs already; equal content is left alone.
func writeOnce(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return os.WriteFile(path, data, 0o644)
}

// hostsFile is a container's /etc/hosts; extra lines are "IP name alias…", as services have them.
func hostsFile(host string, own []netip.Addr, extra []string) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, line := range extra {
		if f := strings.Fields(line); len(f) >= 2 {
			fmt.Fprintf(&b, "%s\t%s\n", f[0], strings.Join(f[1:], " "))
		}
	}
	names := host
	if short, _, ok := strings.Cut(host, "."); ok {
		names += " " + short
	}
	for _, addr := range own {
		if addr.IsValid() {
			fmt.Fprintf(&b, "%s\t%s\n", addr, names)
		}
	}
	return b.Bytes()
}

// addresses are those that a task's own hostname means: in its networks, in their order, where others know it by; a task without
// any has its gateway address only.
func addresses(gw netplan.Task) []netip.Addr {
	if len(gw.Nets) == 0 {
		return []netip.Addr{gw.Addr4, gw.Addr6}
	}
	var out []netip.Addr
	for _, n := range gw.Nets {
		out = append(out, n.Addr4, n.Addr6)
	}
	return out
}

// hostResolv is the resolv.conf of a container without a resolver of ours, as in the host's network: the host's, with what the
// service says instead.
func hostResolv(host []byte, spec *swarm.DNSConfig) []byte {
	servers, search, options := parseResolv(host)
	search, options = preferred(search, options, spec)
	if spec != nil && len(spec.Nameservers) > 0 {
		servers = servers[:0:0]
		for _, s := range spec.Nameservers {
			servers = append(servers, s.String())
		}
	}
	return formatResolv(servers, search, options)
}

// preferred puts the service's search domains and options in the place of the host's.
func preferred(search, options []string, spec *swarm.DNSConfig) ([]string, []string) {
	if spec != nil && len(spec.Search) > 0 {
		search = spec.Search
	}
	if spec != nil && len(spec.Options) > 0 {
		options = spec.Options
	}
	return search, options
}

func formatResolv(servers, search, options []string) []byte {
	var b bytes.Buffer
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 && (len(search) != 1 || search[0] != ".") {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.Bytes()
}

// parseResolv reads a resolv.conf.
func parseResolv(data []byte) (servers, search, options []string) {
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			servers = append(servers, f[1])
		case "search", "domain":
			search = f[1:]
		case "options":
			options = append(options, f[1:]...)
		}
	}
	return servers, search, options
}
