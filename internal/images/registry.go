package images

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
)

// Hub is the host part of names without one, as Docker normalises them.
const Hub = "docker.io"

// hubHost is where Docker Hub is served.
const hubHost = "registry-1.docker.io"

// Registries says how registries are reached. The zero value asks all of them by TLS with the system's certificates,
// and those on a loopback address without TLS when they have none. ParseRegistries makes others.
type Registries struct {
	insecure []string       // host or host:port
	networks []netip.Prefix // of insecure ones
	mirrors  []*url.URL     // of Docker Hub, asked first and in this order

	// CertDirs are directories with one for each registry, named HOST or HOST:PORT, that holds its certificates in Docker's
	// layout (ca.crt, client.cert, client.key) or a hosts.toml as containerd reads it. The first that exists is used.
	CertDirs []string
	// UserAgent is what registries are told; empty means containerd's.
	UserAgent string
	// Stall is how long a registry may send nothing in the middle of an answer [1 minute].
	Stall time.Duration
}

// ParseRegistries reads the daemon's settings: insecure registries are HOST, HOST:PORT or a network in CIDR form; mirrors
// are URLs.
func ParseRegistries(insecure, mirrors []string) (Registries, error) {
	var r Registries
	for _, s := range insecure {
		if p, err := netip.ParsePrefix(s); err == nil {
			r.networks = append(r.networks, p.Masked())
			continue
		}
		if s == "" || strings.Contains(s, "/") {
			return r, fmt.Errorf("insecure registry %q is not of the form HOST, HOST:PORT or NETWORK/BITS", s)
		}
		r.insecure = append(r.insecure, strings.ToLower(s))
	}
	for _, s := range mirrors {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return r, fmt.Errorf("registry mirror %q is not a URL like https://HOST:PORT", s)
		}
		r.mirrors = append(r.mirrors, u)
	}
	return r, nil
}

// lookupTimeout bounds the search for the addresses of a registry that may lie in an insecure network.
const lookupTimeout = 2 * time.Second

// isInsecure reports whether a registry may be spoken to without TLS, or with a certificate that nobody vouches for.
func (r *Registries) isInsecure(ctx context.Context, host string) bool {
	host = strings.ToLower(host)
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.Trim(host, "[]")
	}
	for _, s := range r.insecure {
		if s == host || s == name {
			return true
		}
	}
	if len(r.networks) == 0 {
		return false
	}
	addrs := []netip.Addr{}
	if a, err := netip.ParseAddr(name); err == nil {
		addrs = append(addrs, a)
	} else {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		// A name that cannot be resolved fails later, with a better text.
		addrs, _ = net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	}
	for _, a := range addrs {
		for _, p := range r.networks {
			if p.Contains(a.Unmap()) {
				return true
			}
		}
	}
	return false
}

// resolver speaks to registries with one client's credentials.
func (r *Registries) resolver(ctx context.Context, auth registry.AuthConfig, tracker docker.StatusTracker) remotes.ResolverWithOptions {
	header := http.Header{}
	if r.UserAgent != "" {
		header.Set("User-Agent", r.UserAgent)
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: r.hosts(ctx, auth), Headers: header, Tracker: tracker}).(remotes.ResolverWithOptions)
}

// hosts finds the places where a registry is served: its mirrors, then itself.
func (r *Registries) hosts(ctx context.Context, auth registry.AuthConfig) docker.RegistryHosts {
	return func(name string) ([]docker.RegistryHost, error) {
		var out []docker.RegistryHost
		if name == Hub {
			for _, m := range r.mirrors {
				// Credentials are the Hub's: a mirror does not get them.
				list, err := r.configure(ctx, m.Host, registry.AuthConfig{})
				if err != nil {
					return nil, err
				}
				for _, h := range list {
					h.Scheme, h.Path = m.Scheme, path.Join("/", m.Path, "v2")
					h.Capabilities = docker.HostCapabilityPull | docker.HostCapabilityResolve
					out = append(out, h)
				}
			}
		}
		own, err := r.configure(ctx, name, auth)
		return append(out, own...), err
	}
}

func (r *Registries) configure(ctx context.Context, name string, auth registry.AuthConfig) ([]docker.RegistryHost, error) {
	opts := config.HostOptions{HostDir: r.certDir, UpdateClient: r.watchStalls}
	served := name
	if name == Hub {
		served = hubHost
	}
	opts.Credentials = func(host string) (string, string, error) {
		if host != served || !isFor(auth, name) {
			return "", "", nil
		}
		if auth.IdentityToken != "" {
			return "", auth.IdentityToken, nil
		}
		return auth.Username, auth.Password, nil
	}
	if r.isInsecure(ctx, name) {
		opts.DefaultTLS = &tls.Config{InsecureSkipVerify: true} // the user named this registry insecure
		opts.DefaultScheme = "http"
	}
	hosts, err := config.ConfigureHosts(ctx, opts)(name)
	if err != nil {
		return nil, fmt.Errorf("settings of registry %s: %w", name, err)
	}
	if auth.RegistryToken != "" && isFor(auth, name) {
		for i := range hosts {
			if hosts[i].Host == served {
				hosts[i].Header = hosts[i].Header.Clone()
				if hosts[i].Header == nil {
					hosts[i].Header = http.Header{}
				}
				hosts[i].Header.Set("Authorization", "Bearer "+auth.RegistryToken)
			}
		}
	}
	return hosts, nil
}

// isFor reports whether credentials may be shown to a registry: those that name another one may not, though a
// service's image can move from one registry to another while its credentials stay.
func isFor(auth registry.AuthConfig, name string) bool {
	return auth.ServerAddress == "" || RegistryHost(auth.ServerAddress) == name
}

// RegistryHost is the host part of image names for a registry's address as clients write it: a URL, a host, or
// one of Docker Hub's old names.
func RegistryHost(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		address = rest
	}
	host, _, _ := strings.Cut(address, "/")
	switch host {
	case "", "index.docker.io", "registry-1.docker.io", "registry.docker.io":
		return Hub
	}
	return host
}

func (r *Registries) certDir(host string) (string, error) {
	for _, root := range r.CertDirs {
		dir, err := config.HostDirFromRoot(root)(host)
		if err == nil || !errdefs.IsNotFound(err) {
			return dir, err
		}
	}
	return "", nil
}
