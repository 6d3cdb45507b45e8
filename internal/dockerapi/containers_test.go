package dockerapi

import (
	"net/netip"
	"slices"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/runtime"
)

func TestContainerFilters(t *testing.T) {
	s, _, id := oneTask(t)
	for _, test := range []struct {
		key, value string
		code, want int
		text       string
	}{
		{"id", id[:6], 200, 1, ""},
		{"name", "^/web", 200, 1, ""},
		{"name", "web.2", 200, 0, ""},
		{"name", "[", 400, 0, "invalid filter 'name=[': error parsing regexp: missing closing ]: `[`"},
		{"label", "com.docker.swarm.service.name=web", 200, 1, ""},
		{"status", "running", 200, 1, ""},
		{"status", "exited", 200, 0, ""},
		{"status", "late", 400, 0, ""},
		{"health", "none", 200, 1, ""},
		{"health", "fine", 400, 0, ""},
		{"exited", "0", 200, 0, ""},
		{"exited", "x", 400, 0, "invalid filter 'exited=x': it is not an exit code"},
		{"ancestor", "web:v1", 200, 1, ""},
		{"ancestor", "other", 200, 0, ""},
		{"network", "bridge", 200, 1, ""},
		{"network", "ingress", 200, 0, ""},
		{"network", "host", 200, 0, ""},
		{"volume", "data", 200, 0, ""},
		{"is-task", "true", 200, 1, ""},
		{"is-task", "false", 200, 0, ""},
		{"publish", "80", 200, 0, ""},
		{"publish", "a", 400, 0, ""},
		{"expose", "0.0.0.0:80", 400, 0, "filter for 'expose' should not contain ':': 0.0.0.0:80"},
		{"since", "nothing", 404, 0, "No such container: nothing"},
		{"before", id[:8], 200, 0, ""},
		{"colour", "blue", 400, 0, "invalid filter 'colour'"},
	} {
		w := call(s, "GET", "/containers/json?all=1&"+filtersOf(map[string][]string{test.key: {test.value}}), "")
		if w.Code != test.code || test.text != "" && message(t, w) != test.text {
			t.Errorf("%s=%s: %d %s", test.key, test.value, w.Code, w.Body)
			continue
		}
		if test.code != 200 {
			continue
		}
		var list []container.Summary
		decode(t, w.Body, &list)
		if len(list) != test.want {
			t.Errorf("%s=%s: %d containers, want %d", test.key, test.value, len(list), test.want)
		}
	}
	var list []container.Summary
	decode(t, call(s, "GET", "/containers/json?size=1", "").Body, &list)
	if list[0].SizeRw != 3000 || list[0].SizeRootFs != 4<<20+3000 {
		t.Errorf("sizes: %+v", list[0])
	}
}

// TestBindings: what a port list shows of the image, of ingress ports, and of the host's.
func TestBindings(t *testing.T) {
	c := &Container{
		ImageConfig:  &dockerspec.DockerOCIImageConfig{},
		ServicePorts: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp", PublishMode: "ingress"}, {TargetPort: 53, Protocol: "udp", PublishMode: "host", PublishedPort: 5353}},
		Ports:        []swarm.PortConfig{{TargetPort: 53, Protocol: "udp", PublishMode: "host", PublishedPort: 5353}},
	}
	c.ImageConfig.ExposedPorts = map[string]struct{}{"443/tcp": {}, "nonsense/x/y": {}}
	var got []string
	for _, p := range portSummaries(c) {
		ip := ""
		if p.IP.IsValid() {
			ip = netip.AddrPortFrom(p.IP, p.PublicPort).String() + "->"
		}
		port, _ := network.PortFrom(p.PrivatePort, network.IPProtocol(p.Type))
		got = append(got, ip+port.String())
	}
	if want := []string{"0.0.0.0:5353->53/udp", "[::]:5353->53/udp", "80/tcp", "443/tcp"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for value, want := range map[string]bool{"5353/udp": true, "5000-6000/udp": true, "5353": false, "80": false} {
		f, err := portFilter(filters{"publish": {value}}, "publish")
		if err != nil || (&containerFilter{publish: f}).hasPorts(c) != want {
			t.Errorf("publish=%s: %v, %v", value, !want, err)
		}
	}
	if f, err := portFilter(filters{"expose": {"440-450"}}, "expose"); err != nil || !(&containerFilter{expose: f}).hasPorts(c) {
		t.Errorf("expose: %v", err)
	}
}

// TestInspectMerges: the image's word and the service's over it.
func TestInspectMerges(t *testing.T) {
	img := &dockerspec.DockerOCIImageConfig{}
	img.Entrypoint, img.Cmd, img.User, img.StopSignal = []string{"/run"}, []string{"default"}, "web", "SIGQUIT"
	d := &runtime.Details{Env: []string{"PATH=/bin", "HOSTNAME=h", "A=b"}, Hostname: "h", Dir: "/srv"}
	c := &Container{Name: "x", ImageConfig: img, Task: &swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Args: []string{"own"}, Hosts: []string{"10.0.0.1 a b"}},
		Resources: &swarm.ResourceRequirements{Limits: &swarm.Limit{MemoryBytes: 1 << 26, Pids: 7}}}}
	conf := containerConfig(c, d)
	if !slices.Equal(conf.Entrypoint, []string{"/run"}) || !slices.Equal(conf.Cmd, []string{"own"}) || conf.User != "web" || conf.StopSignal != "SIGQUIT" ||
		!slices.Equal(conf.Env, []string{"PATH=/bin", "A=b"}) || conf.WorkingDir != "/srv" || conf.Hostname != "h" {
		t.Errorf("config = %+v", conf)
	}
	c.Task.ContainerSpec.Command = []string{"sh"}
	if conf = containerConfig(c, d); !slices.Equal(conf.Entrypoint, []string{"sh"}) || !slices.Equal(conf.Cmd, []string{"own"}) {
		t.Errorf("a command of its own: %q %q", conf.Entrypoint, conf.Cmd)
	}
	host := hostConfig(c, d)
	if host.Memory != 1<<26 || host.MemorySwap != 1<<27 || *host.PidsLimit != 7 || !slices.Equal(host.ExtraHosts, []string{"a:10.0.0.1", "b:10.0.0.1"}) {
		t.Errorf("host config = %+v", host)
	}
}
