package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Config is everything that a daemon can be told at its start.
type Config struct {
	Version, Commit string

	DataRoot, ExecRoot string
	Hosts              []string
	PidFile            string
	// Containerd is the address of a system containerd; empty means in process.
	Containerd             string
	AdvertiseAddr          string
	Labels                 map[string]string
	GenericResources       []swarm.GenericResource
	AddressPools           []netip.Prefix // for overlay networks of a swarm that is made without pools
	SubnetSize             uint32         // of each network, when there are AddressPools
	InsecureRegistries     []string
	RegistryMirrors        []string
	LogLevel, LogFormat    string
	Debug                  bool
	MetricsAddr            string
	TLS, TLSVerify         bool
	TLSCA, TLSCert, TLSKey string
}

// maxExecRoot keeps socket paths within the 107 bytes that the kernel allows.
const maxExecRoot = 48

// flagText holds flags whose values need parsing.
type flagText struct {
	labels, resources, pools []string
	configFile               string
}

// dockerd's flags that scripts pass and skep has no use for: those with a value, and switches.
const (
	ignoredValues   = "storage-driver exec-opt cgroup-parent bridge bip userland-proxy-path"
	ignoredSwitches = "iptables ip6tables userland-proxy init experimental live-restore"
)

// Command is `skep daemon`; run gets the finished Config.
func Command(version, commit string, run func(cmd *cobra.Command, cfg *Config) error) *cobra.Command {
	cfg := &Config{Version: version, Commit: commit}
	var text flagText
	cmd := &cobra.Command{
		Use: "daemon", Short: "Run a node of a swarm", Args: cobra.NoArgs,
		Long: `Runs a node: its API, its part of a swarm, its tasks. Tasks live on when the daemon stops;
started again on the same data root it takes them up where they are.`,
		Example: `  skep daemon
  skep daemon --data-root /srv/skep --exec-root /run/skep2 -H unix:///run/skep2/skep.sock`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := applyConfigFile(cmd.Flags(), text.configFile); err != nil {
				return err
			}
			if err := cfg.parse(&text); err != nil {
				return err
			}
			return run(cmd, cfg)
		},
	}
	cfg.flags(cmd.Flags(), &text)
	return cmd
}

func (c *Config) flags(f *pflag.FlagSet, text *flagText) {
	f.StringVar(&c.DataRoot, "data-root", "/var/lib/skep", "where state is kept")
	f.StringVar(&c.ExecRoot, "exec-root", "/run/skep", "where sockets and namespaces are kept")
	f.StringArrayVarP(&c.Hosts, "host", "H", nil, "where to serve the API: unix://PATH, tcp://ADDR:PORT with --tlsverify, fd:// (default unix://EXEC-ROOT/skep.sock)")
	f.StringVarP(&c.PidFile, "pidfile", "p", "", "file for the process ID")
	f.StringVar(&c.Containerd, "containerd", "", "socket of a containerd to use (default: containerd in process)")
	f.StringVar(&c.AdvertiseAddr, "swarm-default-advertise-addr", "", "address or interface to advertise to other nodes")
	f.StringArrayVar(&text.labels, "label", nil, "engine label KEY=VALUE")
	f.StringArrayVar(&text.resources, "node-generic-resource", nil, "generic resource KIND=VALUE of this node")
	f.StringArrayVar(&text.pools, "default-address-pool", nil, "pool for overlay networks, base=CIDR,size=N: their subnets are cut out of it, each with a prefix of N bits [24]")
	f.StringArrayVar(&c.InsecureRegistries, "insecure-registry", nil, "registry to speak to without TLS")
	f.StringArrayVar(&c.RegistryMirrors, "registry-mirror", nil, "mirror of Docker Hub")
	f.StringVarP(&c.LogLevel, "log-level", "l", "info", "debug, info, warn or error")
	f.StringVar(&c.LogFormat, "log-format", "text", "text or json")
	f.BoolVarP(&c.Debug, "debug", "D", false, "the same as --log-level debug")
	f.StringVar(&c.MetricsAddr, "metrics-addr", "", "HOST:PORT for Prometheus metrics")
	f.BoolVar(&c.TLS, "tls", false, "use TLS; implied by --tlsverify")
	f.BoolVar(&c.TLSVerify, "tlsverify", false, "use TLS and let in only clients with a certificate of --tlscacert")
	f.StringVar(&c.TLSCA, "tlscacert", "", "certificates that clients must be signed by")
	f.StringVar(&c.TLSCert, "tlscert", "", "certificate of the API")
	f.StringVar(&c.TLSKey, "tlskey", "", "its key")
	f.StringVar(&text.configFile, "config-file", "/etc/skep/daemon.json", "the same settings as JSON")
	const why = "accepted for dockerd's sake, without effect"
	for name := range strings.FieldsSeq(ignoredValues) {
		f.String(name, "", why)
		f.Lookup(name).Hidden = true
	}
	for name := range strings.FieldsSeq(ignoredSwitches) {
		f.Bool(name, false, why)
		f.Lookup(name).Hidden = true
	}
}

// applyConfigFile sets the flags that the file names and the command line does not.
func applyConfigFile(f *pflag.FlagSet, path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !f.Changed("config-file") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("config file: %w", err)
	}
	var settings map[string]any
	if err := json.Unmarshal(data, &settings); err != nil {
		return fmt.Errorf("config file %s: %w", path, err)
	}
	plural := map[string]string{
		"hosts": "host", "labels": "label", "node-generic-resources": "node-generic-resource", "default-address-pools": "default-address-pool",
		"insecure-registries": "insecure-registry", "registry-mirrors": "registry-mirror",
	}
	for key, value := range settings {
		name := key
		if s, ok := plural[key]; ok {
			name = s
		}
		flag := f.Lookup(name)
		if flag == nil {
			return fmt.Errorf("config file %s: unknown setting %q", path, key)
		}
		if flag.Changed {
			return fmt.Errorf("config file %s: %q is set there and as a flag: keep one of the two", path, key)
		}
		if err := setFlag(flag, value); err != nil {
			return fmt.Errorf("config file %s: %q: %w", path, key, err)
		}
	}
	return nil
}

func setFlag(flag *pflag.Flag, value any) error {
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	for _, v := range list {
		text := fmt.Sprint(v)
		if m, ok := v.(map[string]any); ok {
			var pairs []string
			for k, x := range m {
				pairs = append(pairs, fmt.Sprintf("%s=%v", k, x))
			}
			slices.Sort(pairs)
			text = strings.Join(pairs, ",")
		}
		if err := flag.Value.Set(text); err != nil {
			return err
		}
	}
	return nil
}

// parse checks the values and fills in defaults.
func (c *Config) parse(text *flagText) (err error) {
	if c.DataRoot, err = filepath.Abs(c.DataRoot); err != nil {
		return fmt.Errorf("--data-root: %w", err)
	}
	if c.ExecRoot, err = filepath.Abs(c.ExecRoot); err != nil {
		return fmt.Errorf("--exec-root: %w", err)
	}
	if len(c.ExecRoot) > maxExecRoot {
		return fmt.Errorf("--exec-root %s: the path is longer than %d characters, too long for the sockets in it", c.ExecRoot, maxExecRoot)
	}
	if len(c.Hosts) == 0 {
		c.Hosts = []string{"unix://" + filepath.Join(c.ExecRoot, "skep.sock")}
	}
	if c.Debug {
		c.LogLevel = "debug"
	}
	c.TLS = c.TLS || c.TLSVerify
	c.Labels = map[string]string{}
	for _, l := range text.labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return fmt.Errorf("--label %q is not of the form KEY=VALUE", l)
		}
		c.Labels[k] = v
	}
	if c.GenericResources, err = parseGeneric(text.resources); err != nil {
		return err
	}
	c.AddressPools, c.SubnetSize, err = parsePools(text.pools)
	return err
}

// Sizes of subnets: Docker's default for a swarm, and the smallest that has room for tasks.
const (
	defaultSubnetSize = 24
	maxSubnetSize     = 29
)

// parsePools reads base=CIDR,size=N, or CIDR alone, for each pool. A swarm makes all its subnets of one size.
func parsePools(list []string) (pools []netip.Prefix, size uint32, err error) {
	for _, text := range list {
		pool, n, err := parsePool(text)
		if err == nil && len(pools) > 0 && n != size {
			err = fmt.Errorf("its size is %d and that of the pool before it %d: all pools of a swarm have one", n, size)
		}
		for _, other := range pools {
			if err == nil && other.Overlaps(pool) {
				err = fmt.Errorf("it overlaps with the pool %s", other)
			}
		}
		if err != nil {
			return nil, 0, fmt.Errorf("--default-address-pool %q: %w", text, err)
		}
		pools, size = append(pools, pool), n
	}
	return pools, size, nil
}

func parsePool(text string) (pool netip.Prefix, size uint32, err error) {
	size = defaultSubnetSize
	if !strings.Contains(text, "=") {
		text = "base=" + text
	}
	for part := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		switch key {
		case "base":
			if pool, err = netip.ParsePrefix(value); err != nil {
				return pool, 0, err
			}
		case "size":
			n, err := strconv.ParseUint(value, 10, 8)
			if err != nil {
				return pool, 0, fmt.Errorf("size %q is no number of bits", value)
			}
			size = uint32(n)
		default:
			return pool, 0, fmt.Errorf("%q is not of the form base=CIDR,size=N", part)
		}
	}
	if !pool.IsValid() || !pool.Addr().Is4() {
		return pool, 0, errors.New("want an IPv4 network as base, such as base=10.20.0.0/16,size=24")
	}
	if size < uint32(pool.Bits()) || size > maxSubnetSize {
		return pool, 0, fmt.Errorf("subnets of size %d: want %d to %d", size, pool.Bits(), maxSubnetSize)
	}
	return pool.Masked(), size, nil
}

// parseGeneric reads KIND=NUMBER (so many alike) and KIND=NAME (one by name).
func parseGeneric(list []string) (out []swarm.GenericResource, err error) {
	for _, item := range list {
		for one := range strings.SplitSeq(item, ",") {
			kind, value, ok := strings.Cut(one, "=")
			if !ok || kind == "" || value == "" {
				return nil, fmt.Errorf("--node-generic-resource %q is not of the form KIND=VALUE", one)
			}
			var n int64
			if _, err := fmt.Sscanf(value, "%d", &n); err == nil && fmt.Sprint(n) == value {
				if n < 0 {
					return nil, fmt.Errorf("--node-generic-resource %q: a number of things is not negative", one)
				}
				out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: kind, Value: n}})
				continue
			}
			out = append(out, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: kind, Value: value}})
		}
	}
	return out, nil
}

// Instance is the short name that everything of this daemon on the host bears, so that several
// daemons with their own roots live side by side.
func (c *Config) Instance() string {
	sum := sha256.Sum256([]byte(c.DataRoot))
	return hex.EncodeToString(sum[:3])
}

// The places under the roots.
func (c *Config) data(parts ...string) string {
	return filepath.Join(append([]string{c.DataRoot}, parts...)...)
}
func (c *Config) exec(parts ...string) string {
	return filepath.Join(append([]string{c.ExecRoot}, parts...)...)
}
