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

// systemdResolvConf lists the real resolvers of a host whose resolv.conf names systemd-resolved on a loopback address.
const systemdResolvConf = "/run/systemd/resolve/resolv.conf"

// fallbackResolvers are Docker's for a host that has only loopback resolvers.
var fallbackResolvers = []string{"8.8.8.8", "8.8.4.4"}

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
	resolv, err := a.resolvConf(spec.Task.ContainerSpec.DNSConfig)
	if err != nil {
		return err
	}
	spec.HostsFile, spec.HostnameFile, spec.ResolvConf = filepath.Join(dir, "hosts"), filepath.Join(dir, "hostname"), filepath.Join(dir, "resolv.conf")
	return errors.Join(
		writeOnce(spec.HostsFile, hostsFile(host, gw, spec.Task.ContainerSpec.Hosts)),
		writeOnce(spec.HostnameFile, []byte(host+"\n")),
		writeOnce(spec.ResolvConf, resolv))
}

// writeOnce writes in place, because the file may be bound into a container that runs already; equal content is left alone.
func writeOnce(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return os.WriteFile(path, data, 0o644)
}

// hostsFile is a container's /etc/hosts; extra lines are "IP name alias…", as services have them.
func hostsFile(host string, gw netplan.Task, extra []string) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, line := range extra {
		if f := strings.Fields(line); len(f) >= 2 {
			fmt.Fprintf(&b, "%s\t%s\n", f[0], strings.Join(f[1:], " "))
		}
	}
	own := host
	if short, _, ok := strings.Cut(host, "."); ok {
		own += " " + short
	}
	addrs := []netip.Addr{gw.Addr4, gw.Addr6}
	if len(gw.Nets) > 0 {
		addrs = nil // others know it by its addresses in its networks
	}
	for _, a := range gw.Nets {
		addrs = append(addrs, a.Addr4, a.Addr6)
	}
	for _, addr := range addrs {
		if addr.IsValid() {
			fmt.Fprintf(&b, "%s\t%s\n", addr, own)
		}
	}
	return b.Bytes()
}

// resolvConf is a container's resolv.conf: the host's, with what the service says instead.
func (a *Agent) resolvConf(dns *swarm.DNSConfig) ([]byte, error) {
	host, err := os.ReadFile(a.cfg.ResolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	servers, search, options := parseResolv(host)
	if len(servers) == 0 {
		if real, err := os.ReadFile(systemdResolvConf); err == nil {
			servers, _, _ = parseResolv(real)
		}
	}
	if len(servers) == 0 {
		servers = fallbackResolvers
	}
	if dns != nil {
		if len(dns.Nameservers) > 0 {
			servers = servers[:0:0]
			for _, s := range dns.Nameservers {
				servers = append(servers, s.String())
			}
		}
		if len(dns.Search) > 0 {
			search = dns.Search
		}
		if len(dns.Options) > 0 {
			options = dns.Options
		}
	}
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
	return b.Bytes(), nil
}

// parseResolv reads a resolv.conf and leaves out resolvers on loopback addresses, which a container cannot reach.
func parseResolv(data []byte) (servers, search, options []string) {
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			addr, err := netip.ParseAddr(f[1])
			if err == nil && !addr.IsLoopback() && !addr.IsUnspecified() {
				servers = append(servers, f[1])
			}
		case "search", "domain":
			search = f[1:]
		case "options":
			options = append(options, f[1:]...)
		}
	}
	return servers, search, options
}
