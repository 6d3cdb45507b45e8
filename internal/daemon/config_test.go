package daemon

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/spf13/cobra"
)

// parseArgs runs `skep daemon ARGS` up to the point where the daemon would start.
func parseArgs(t *testing.T, args ...string) (*Config, error) {
	t.Helper()
	var got *Config
	cmd := Command("1", "c", func(_ *cobra.Command, c *Config) error { got = c; return nil })
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.Execute()
	return got, err
}

func TestFlags(t *testing.T) {
	c, err := parseArgs(t, "--exec-root", "/run/x", "--label", "zone=a", "--node-generic-resource", "gpu=2", "--node-generic-resource", "fpga=one",
		"--default-address-pool", "base=10.9.0.0/16,size=26", "--iptables=false", "--storage-driver", "overlay2", "--experimental", "-D")
	if err != nil {
		t.Fatal(err)
	}
	if c.Hosts[0] != "unix:///run/x/skep.sock" || c.Labels["zone"] != "a" || c.LogLevel != "debug" || c.AddressPools[0].String() != "10.9.0.0/16" || c.SubnetSize != 26 {
		t.Errorf("config = %+v", c)
	}
	want := []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 2}}, {NamedResourceSpec: &swarm.NamedGenericResource{Kind: "fpga", Value: "one"}}}
	if len(c.GenericResources) != 2 || *c.GenericResources[0].DiscreteResourceSpec != *want[0].DiscreteResourceSpec || *c.GenericResources[1].NamedResourceSpec != *want[1].NamedResourceSpec {
		t.Errorf("generic resources = %+v", c.GenericResources)
	}
}

func TestBadFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--label zone", "not of the form KEY=VALUE"},
		{"--node-generic-resource gpu", "not of the form KIND=VALUE"},
		{"--node-generic-resource gpu=-1", "not negative"},
		{"--default-address-pool base=x", "--default-address-pool"},
		{"--default-address-pool size=24", "want an IPv4 network"},
		{"--default-address-pool fd00::/64", "want an IPv4 network"},
		{"--default-address-pool base=10.0.0.0/8,size=many", "no number of bits"},
		{"--default-address-pool base=10.0.0.0/8,size=30", "want 8 to 29"},
		{"--default-address-pool 10.0.0.0/25", "want 25 to 29"},
		{"--default-address-pool base=10.0.0.0/8,mask=24", "not of the form"},
		{"--default-address-pool 10.0.0.0/8 --default-address-pool 10.1.0.0/16", "overlaps with the pool 10.0.0.0/8"},
		{"--default-address-pool 10.0.0.0/16 --default-address-pool base=10.1.0.0/16,size=25", "all pools of a swarm have one"},
		{"--exec-root /" + strings.Repeat("x", 60), "too long for the sockets"},
		{"--config-file /does/not/exist", "config file"},
		{"stray", "unknown command"},
	} {
		if _, err := parseArgs(t, strings.Fields(c.args)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want …%s…", c.args, err, c.want)
		}
	}
}

func TestConfigFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.json")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"data-root":"/srv/skep","hosts":["unix:///a.sock","unix:///b.sock"],"labels":["zone=a"],"debug":true,"default-address-pools":[{"base":"10.8.0.0/16","size":24}]}`)
	c, err := parseArgs(t, "--config-file", file, "--log-format", "json")
	if err != nil {
		t.Fatal(err)
	}
	if c.DataRoot != "/srv/skep" || len(c.Hosts) != 2 || c.Labels["zone"] != "a" || c.LogLevel != "debug" || c.AddressPools[0].String() != "10.8.0.0/16" || c.SubnetSize != 24 {
		t.Errorf("config = %+v", c)
	}
	for text, want := range map[string]string{
		`{"data-root":"/x"}`:  "is set there and as a flag",
		`{"datarot":"/x"}`:    `unknown setting "datarot"`,
		`{"debug":"perhaps"}`: "must be true or false",
		`{`:                   "unexpected end of JSON input",
	} {
		write(text)
		if _, err := parseArgs(t, "--config-file", file, "--data-root", "/y"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want …%s…", text, err, want)
		}
	}
}

func TestDataRootIsLocked(t *testing.T) {
	cfg := &Config{DataRoot: t.TempDir()}
	lock, err := lockRoot(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRoot(cfg); err == nil || !strings.Contains(err.Error(), "is in use by another skep daemon (pid ") {
		t.Errorf("second lock: %v", err)
	}
	lock.Close()
	again, err := lockRoot(cfg)
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	again.Close()
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s", "skep.sock")
	l, err := listen(&Config{}, "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v %v", info, err)
	}
	if _, err := listen(&Config{}, "unix://"+path); err == nil || !strings.Contains(err.Error(), "another program answers there") {
		t.Errorf("a socket that answers: %v", err)
	}
	// What a killed daemon leaves is a socket file that nobody answers at.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	again, err := listen(&Config{}, "unix://"+path)
	if err != nil {
		t.Fatalf("over a dead socket: %v", err)
	}
	again.Close()
	for host, want := range map[string]string{
		"tcp://0.0.0.0:2375": "needs --tlsverify", "unix://rel/path": "must be absolute", "ftp://x": "unknown protocol", "nothing": "want unix://", "fd://": "systemd gave no socket",
	} {
		if _, err := listen(&Config{}, host); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want …%s…", host, err, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{"": "0.0.0.0:2377", "127.0.0.1": "127.0.0.1:2377", "127.0.0.1:99": "127.0.0.1:99", "[::]:2377": "[::]:2377", "127.0.0.1:": "127.0.0.1:2377"} {
		if got, err := listenAddress(in); err != nil || got != want {
			t.Errorf("listenAddress(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"nosuchif": "invalid ListenAddr", "127.0.0.1:65536": "want a number from 1 to 65535", "127.0.0.1:0": "want a number from 1 to 65535",
		"lo": "no usable IP address", // loopback addresses are not for others
	} {
		if _, err := listenAddress(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("listenAddress(%q): %v, want …%s…", in, err, want)
		}
	}
	for in, want := range map[string]string{"192.0.2.1": "192.0.2.1:99", "192.0.2.1:1234": "192.0.2.1:1234", "2001:db8::1": "[2001:db8::1]:99"} {
		if got, err := advertiseAddress(in, "", "0.0.0.0:99"); err != nil || got != want {
			t.Errorf("advertiseAddress(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	if _, err := advertiseAddress("192.0.2.1:http", "", "0.0.0.0:99"); err == nil || !strings.Contains(err.Error(), "want a number from 1 to 65535") {
		t.Errorf("a port that is none: %v", err)
	}
	for _, in := range []string{"0.0.0.0", "::", "nosuchif"} {
		if _, err := advertiseAddress(in, "", "0.0.0.0:99"); err == nil || !strings.Contains(err.Error(), "non-zero IP address") {
			t.Errorf("advertiseAddress(%q): %v", in, err)
		}
	}
}

func TestIdentityOnDisk(t *testing.T) {
	cfg := &Config{DataRoot: t.TempDir()}
	if id, err := loadIdentity(cfg); id != nil || err != nil {
		t.Fatalf("nothing there: %v, %v", id, err)
	}
	f := founded(t, cfg)
	id, err := loadIdentity(cfg)
	if err != nil || id.NodeID != f.id.NodeID || id.RaftKey != f.id.RaftKey || id.creds.Load().Identity.Node != f.id.NodeID {
		t.Fatalf("loaded %+v, %v", id, err)
	}
	if info, err := os.Stat(cfg.certPath(keyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(cfg.certPath(certFile), []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadIdentity(cfg); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("damaged certificate: %v", err)
	}
	if err := forgetSwarm(cfg); err != nil {
		t.Fatal(err)
	}
	if id, err := loadIdentity(cfg); id != nil || err != nil {
		t.Errorf("after forgetting: %v, %v", id, err)
	}
}

// founded is the identity of a new swarm in cfg's data root.
func founded(t *testing.T, cfg *Config) *founding {
	t.Helper()
	h := &host{cfg: cfg, machine: &machine{}}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	f, err := h.found(swarm.InitRequest{ListenAddr: free.Addr().String(), AdvertiseAddr: "127.0.0.1", SubnetSize: 24})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestPoolsOfANewSwarm: who makes a swarm without pools gets the daemon's, with their size.
func TestPoolsOfANewSwarm(t *testing.T) {
	pool := netip.MustParsePrefix("10.9.0.0/16")
	for _, tt := range []struct {
		cfg  Config
		pool string
		size uint32
	}{
		{Config{}, "10.0.0.0/8", 24},
		{Config{AddressPools: []netip.Prefix{pool}, SubnetSize: 26}, "10.9.0.0/16", 26},
	} {
		tt.cfg.DataRoot = t.TempDir()
		c := founded(t, &tt.cfg).cluster
		if len(c.DefaultAddrPool) != 1 || c.DefaultAddrPool[0].String() != tt.pool || c.SubnetSize != tt.size {
			t.Errorf("pools %v of subnets of %d bits, want %s of %d", c.DefaultAddrPool, c.SubnetSize, tt.pool, tt.size)
		}
	}
}
