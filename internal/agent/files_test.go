package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

func TestResolvConf(t *testing.T) {
	own := &swarm.DNSConfig{Nameservers: []netip.Addr{netip.MustParseAddr("1.1.1.1")}, Search: []string{"."}, Options: []string{"rotate"}}
	for _, c := range []struct {
		name, host  string
		dns         *swarm.DNSConfig
		ours, hosts string
	}{
		{"the host's", "# x\nnameserver 10.0.0.2\nnameserver 127.0.0.53\nsearch a.b c.d\noptions ndots:2\n", nil,
			"nameserver 127.0.0.11\nsearch a.b c.d\noptions ndots:2\n", "nameserver 10.0.0.2\nnameserver 127.0.0.53\nsearch a.b c.d\noptions ndots:2\n"},
		{"the service's", "nameserver 10.0.0.2\nsearch a.b\n", own, "nameserver 127.0.0.11\noptions rotate ndots:0\n", "nameserver 1.1.1.1\noptions rotate\n"},
		{"none", "", nil, "nameserver 127.0.0.11\noptions ndots:0\n", ""},
	} {
		if got := string(resolvConf([]byte(c.host), c.dns)); got != c.ours {
			t.Errorf("%s: %q, want %q", c.name, got, c.ours)
		}
		if got := string(hostResolv([]byte(c.host), c.dns)); got != c.hosts {
			t.Errorf("%s, in the host's network: %q, want %q", c.name, got, c.hosts)
		}
	}
	if len(own.Options) != 1 {
		t.Error("the shared spec was changed")
	}
}

func TestHostsFile(t *testing.T) {
	gw := netplan.Task{Addr4: netip.MustParseAddr("10.1.2.3"), Addr6: netip.MustParseAddr("fd00::3")}
	head := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n10.9.9.9\tdb db.local\n"
	for _, c := range []struct {
		nets []netplan.Attachment
		want string
	}{
		{nil, "10.1.2.3\tweb.example web\nfd00::3\tweb.example web\n"},
		{[]netplan.Attachment{{Network: 1, Addr4: netip.MustParseAddr("10.0.1.5")}, {Network: 2, Addr4: netip.MustParseAddr("10.0.2.5"), Addr6: netip.MustParseAddr("fd01::5")}},
			"10.0.1.5\tweb.example web\n10.0.2.5\tweb.example web\nfd01::5\tweb.example web\n"},
	} {
		gw.Nets = c.nets
		got := string(hostsFile("web.example", addresses(gw), []string{"10.9.9.9 db  db.local", "broken"}))
		if got != head+c.want {
			t.Errorf("%q, want %q", got, head+c.want)
		}
	}
}

// A task finds its generic resources in Docker's variables, after its own and without a look at placeholders.
func TestGenericResourcesInEnvironment(t *testing.T) {
	a := &Agent{node: &pb.NodeInfo{NodeId: "node1"}}
	spec := simpleSpec()
	spec.ContainerSpec.Env = []string{"A=b"}
	got, err := a.buildSpec(&pb.Task{Id: "t1", Generic: []*pb.GenericResource{
		{Kind: "gpu", Count: 2}, {Kind: "fpga", Name: "{{f1", Count: 1}, {Kind: "fpga", Name: "f2", Count: 1},
	}}, &template{spec: spec, msg: &pb.Template{ServiceName: "web"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"A=b", "DOCKER_RESOURCE_FPGA={{f1,f2", "DOCKER_RESOURCE_GPU=2"}
	if !slices.Equal(got.Env, want) || !slices.Equal(got.Task.ContainerSpec.Env, want) {
		t.Errorf("environment %q and %q, want %q", got.Env, got.Task.ContainerSpec.Env, want)
	}
	if len(spec.ContainerSpec.Env) != 1 {
		t.Error("the shared template was changed")
	}
}

func TestPlaceholders(t *testing.T) {
	a := &Agent{node: &pb.NodeInfo{NodeId: "node1"}, hostname: "host1", platform: swarm.Platform{OS: "linux", Architecture: "x86_64"}}
	spec := simpleSpec()
	spec.ContainerSpec.Hostname = "{{.Service.Name}}-{{.Task.Slot}}"
	spec.ContainerSpec.Env = []string{"PLAIN=$x", "N={{.Node.Hostname}}/{{.Node.ID}}", "T={{.Task.Name}}", "L={{index .Service.Labels \"tier\"}}", `J={{join "-" "a" .Node.Platform.Architecture}}`}
	spec.ContainerSpec.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "v{{.Task.Slot}}", Target: "/data"}}
	tpl := &template{spec: spec, msg: &pb.Template{ServiceName: "web", ServiceLabels: map[string]string{"tier": "front"}}}
	got, err := a.buildSpec(&pb.Task{Id: "t1", Slot: 3}, tpl)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"PLAIN=$x", "N=host1/node1", "T=web.3.t1", "L=front", "J=a-x86_64"}
	if !slices.Equal(got.Env, want) {
		t.Errorf("env %q, want %q", got.Env, want)
	}
	if got.Hostname != "web-3" || got.Task.ContainerSpec.Mounts[0].Source != "v3" || got.Name != "web.3.t1" {
		t.Errorf("hostname %q, mounts %v, name %q", got.Hostname, got.Task.ContainerSpec.Mounts, got.Name)
	}
	if spec.ContainerSpec.Mounts[0].Source != "v{{.Task.Slot}}" {
		t.Error("the shared template was changed")
	}
	if got, err = a.buildSpec(&pb.Task{Id: "t1"}, tpl); err != nil || got.Name != "web.node1.t1" {
		t.Errorf("global task: %q, %v", got.Name, err)
	}
	for _, bad := range []string{"{{", "{{.Nope}}", "{{range 9223372036854775807}}{{end}}", "{{if true}}{{else}}{{with 1}}{{range 99}}{{end}}{{end}}{{end}}",
		`{{define "a"}}{{template "a"}}{{template "a"}}{{end}}{{template "a"}}`, `{{range $i, $_ := .Service.Labels}}{{printf "%99999s" $i}}{{end}}`} {
		spec.ContainerSpec.Hostname = bad
		if _, err := a.buildSpec(&pb.Task{Id: "t1"}, tpl); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestBadPlaceholdersAreNamed: whose spec cannot be filled in learns which part of it.
func TestBadPlaceholdersAreNamed(t *testing.T) {
	a := &Agent{node: &pb.NodeInfo{NodeId: "node1"}}
	for want, change := range map[string]func(*swarm.ContainerSpec){
		"expanding env failed: COLOUR: ":                   func(c *swarm.ContainerSpec) { c.Env = []string{"A=b", "COLOUR={{.Nope}}"} },
		`expanding mounts failed: source "v{{.Nope}}": `:   func(c *swarm.ContainerSpec) { c.Mounts = []mount.Mount{{Source: "v{{.Nope}}", Target: "/x"}} },
		`expanding mounts failed: target "/x{{.Nope}}": `:  func(c *swarm.ContainerSpec) { c.Mounts = []mount.Mount{{Source: "v", Target: "/x{{.Nope}}"}} },
		"expanding hostname failed: template: expansion:1": func(c *swarm.ContainerSpec) { c.Hostname = "{{.Nope}}" },
	} {
		spec := simpleSpec()
		change(spec.ContainerSpec)
		_, err := a.buildSpec(&pb.Task{Id: "t1"}, &template{spec: spec, msg: &pb.Template{ServiceName: "web"}})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s…", err, want)
		}
	}
}

// A node that leaves the swarm keeps nothing of it.
func TestForget(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	id := m.assign(1, 1, model.StateRunning)
	a, stop := h.start(t)
	m.awaitState(id, model.StateRunning)
	stop()
	if err := a.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	steps := h.node.Steps()
	stopped, removed := slices.IndexFunc(steps, func(s string) bool { return strings.HasPrefix(s, "stop ") }), slices.IndexFunc(steps, func(s string) bool { return strings.HasPrefix(s, "remove ") })
	if stopped < 0 || removed < stopped {
		t.Errorf("the container was not stopped before it was removed: %q", steps)
	}
	if len(h.node.Containers()) != 0 || h.net.numTasks() != 0 || h.keeper.numLogs() != 0 || h.keeper.numHeld() != 0 || h.keeper.numNamed() != 0 {
		t.Errorf("left: %d containers, %d networks, %d logs", len(h.node.Containers()), h.net.numTasks(), h.keeper.numLogs())
	}
	if _, err := os.Stat(filepath.Join(h.config().Dir, journalName)); err == nil {
		t.Error("the node's record is left")
	}
}

// A task in the host's network goes by the host's name and knows the names that the host knows, unless its service says otherwise.
func TestFilesInHostNetwork(t *testing.T) {
	const own = "127.0.0.1 localhost\n192.0.2.7 gateway.example\n"
	head, id := string(hostsFile("", nil, nil)), ContainerID("t1")[:12]
	for _, c := range []struct {
		name, mode, hostname, hosts string
		extra                       []string
		wantName, wantHosts         string
	}{
		{"the host's", "host", "", own, nil, "host1", own},
		{"a name of its own", "host", "bee", own, nil, "bee", own},
		{"names added", "host", "", own, []string{"10.9.9.9 db"}, "host1", head + "10.9.9.9\tdb\n"},
		{"a host without names", "host", "", "", nil, "host1", head},
		{"no network", "none", "", own, nil, id, head},
	} {
		dir := t.TempDir()
		a := &Agent{node: &pb.NodeInfo{NodeId: "node1"}, hostname: "host1", cfg: Config{Containers: dir, Hosts: filepath.Join(dir, "hosts"), ResolvConf: filepath.Join(dir, "none")}}
		if c.hosts != "" {
			if err := os.WriteFile(a.cfg.Hosts, []byte(c.hosts), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		task := simpleSpec()
		task.ContainerSpec.Hostname, task.ContainerSpec.Hosts = c.hostname, c.extra
		spec, err := a.buildSpec(&pb.Task{Id: "t1"}, &template{spec: task, msg: &pb.Template{ServiceName: "web", NetMode: c.mode}})
		if err == nil {
			err = a.writeFiles(&spec, netplan.Task{})
		}
		if err != nil {
			t.Fatal(err)
		}
		hosts, herr := os.ReadFile(spec.HostsFile)
		name, nerr := os.ReadFile(spec.HostnameFile)
		if herr != nil || nerr != nil || string(hosts) != c.wantHosts || string(name) != c.wantName+"\n" {
			t.Errorf("%s: hosts %q, hostname %q (%v, %v); want %q, %q", c.name, hosts, name, herr, nerr, c.wantHosts, c.wantName)
		}
		if inHost := spec.NetNS == runtime.HostNetNS; inHost != (c.mode == "host") || spec.Hostname != strings.TrimSuffix(c.wantName, id) {
			t.Errorf("%s: hostname %q, network %q", c.name, spec.Hostname, spec.NetNS)
		}
	}
}
