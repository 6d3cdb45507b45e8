package dockerapi

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

func TestAdmit(t *testing.T) {
	const rpc = "rpc error: code = InvalidArgument desc = "
	for _, c := range []struct{ name, spec, want string }{
		{"least", `{}`, ""},
		{"global", `{"Mode":{"Global":{}}}`, ""},
		{"two modes", `{"Mode":{"Global":{},"Replicated":{}}}`, "must specify only one service mode"},
		{"too many", `{"Mode":{"Replicated":{"Replicas":100001}}}`, rpc + "Number of replicas must be at most 100000"},
		{"job", `{"Mode":{"ReplicatedJob":{}}}`, ""},
		{"long name", `{"Name":"a23456789012345678901234567890123456789012345678901234567890abcd"}`, rpc + "name must be 63 characters or fewer"},
		{"name's end", `{"Name":"web-"}`, rpc + "name must be valid as a DNS name component"},
		{"image", `{"TaskTemplate":{"ContainerSpec":{"Image":"UPPER"}}}`, rpc + `ContainerSpec: "UPPER" is not a valid repository/tag`},
		{"pinned image", `{"TaskTemplate":{"ContainerSpec":{"Image":"a:b@sha256:cd1e7f87758fefd52837cb930591be514c0d3bed5d6086d851443bb97d232966"}}}`, ""},
		{"runtime", `{"TaskTemplate":{"Runtime":"attachment"}}`, "unsupported runtime"},
		{"plugin", `{"TaskTemplate":{"Runtime":"plugin","ContainerSpec":null,"PluginSpec":{"name":"p"}}}`, "plugins are not available"},
		{"both specs", `{"TaskTemplate":{"PluginSpec":{}}}`, "mismatched Runtime and *Spec fields"},
		{"limit memory", `{"TaskTemplate":{"Resources":{"Limits":{"MemoryBytes":4194303}}}}`, rpc + "invalid memory value 4194303: Must be at least 4MiB"},
		{"least memory", `{"TaskTemplate":{"Resources":{"Limits":{"MemoryBytes":4194304,"NanoCPUs":1000000}}}}`, ""},
		{"negative cpu", `{"TaskTemplate":{"Resources":{"Reservations":{"NanoCPUs":-1}}}}`, rpc + "invalid cpu value -1e-09: Must be at least 0.001"},
		{"reservation above limit", `{"TaskTemplate":{"Resources":{"Limits":{"MemoryBytes":5000000},"Reservations":{"MemoryBytes":6000000}}}}`, rpc + "memory reservation of 6000000 bytes is above the limit of 5000000 bytes"},
		{"restart", `{"TaskTemplate":{"RestartPolicy":{"Condition":"maybe"}}}`, `invalid RestartCondition: "maybe"`},
		{"restart delay", `{"TaskTemplate":{"RestartPolicy":{"Delay":-1}}}`, rpc + "TaskSpec: restart-delay cannot be negative"},
		{"constraint", `{"TaskTemplate":{"Placement":{"Constraints":["node.labels.a != b","engine.labels.x==y z"]}}}`, ""},
		{"constraint value", `{"TaskTemplate":{"Placement":{"Constraints":["node.role=={}"]}}}`, rpc + "value '{}' is invalid"},
		{"constraint address", `{"TaskTemplate":{"Placement":{"Constraints":["node.ip==10.0.0.0/8","node.ip!=fd00::1"]}}}`, ""},
		{"constraint no address", `{"TaskTemplate":{"Placement":{"Constraints":["node.ip!=10.0.0"]}}}`, rpc + "constraint 'node.ip!=10.0.0': value '10.0.0' is neither an address nor a subnet"},
		{"constraint key", `{"TaskTemplate":{"Placement":{"Constraints":["=={}"]}}}`, rpc + "key '' is invalid"},
		{"update order", `{"UpdateConfig":{"Order":"sideways"}}`, "unrecognized update order sideways"},
		{"rollback action", `{"RollbackConfig":{"FailureAction":"rollback"}}`, "unrecognized rollback failure action rollback"},
		{"ratio", `{"UpdateConfig":{"MaxFailureRatio":1.5}}`, rpc + "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"},
		{"port range", `{"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":70000}]}}`, rpc + "EndpointSpec: invalid published port 70000: must be between 1 and 65535"},
		{"target port", `{"EndpointSpec":{"Ports":[{"PublishedPort":80}]}}`, rpc + "EndpointSpec: invalid target port 0: must be between 1 and 65535"},
		{"same port, two protocols", `{"EndpointSpec":{"Ports":[{"TargetPort":53,"PublishedPort":53},{"TargetPort":53,"PublishedPort":53,"Protocol":"udp"}]}}`, ""},
		{"protocol", `{"EndpointSpec":{"Ports":[{"TargetPort":53,"Protocol":"icmp"}]}}`, `invalid protocol value "icmp"`},
		{"dnsrr host", `{"EndpointSpec":{"Mode":"dnsrr","Ports":[{"TargetPort":80,"PublishedPort":80,"PublishMode":"host"}]}}`, ""},
		{"mount type", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"x","Target":"/a"}]}}}`, `invalid MountType: "x"`},
		{"volume of each task", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"volume","Source":"v-{{.Task.Slot}}","Target":"/a"}]}}}`, ""},
		{"options of a volume", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"volume","Source":"vol","Target":"/a","VolumeOptions":{"DriverConfig":{"Options":{"type":"tmpfs","device":"tmpfs"}}}}]}}}`, ""},
		{"half a volume", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"volume","Source":"vol","Target":"/a","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"type":"nfs"}}}}]}}}`, rpc + `ContainerSpec: invalid mount config for type "volume": missing required option: "device"`},
		{"subpath out of a volume", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"volume","Source":"vol","Target":"/a","VolumeOptions":{"Subpath":"../x"}}]}}}`, rpc + `ContainerSpec: invalid mount config for type "volume": subpath must be a relative path within the volume`},
		{"relative bind", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"bind","Source":"a","Target":"/a"}]}}}`, rpc + `ContainerSpec: invalid mount config for type "bind": invalid mount path: 'a' mount path must be absolute`},
		{"image mount", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"image","Source":"a","Target":"/a"}]}}}`, "mounts of type cluster, image and npipe are not available yet: use bind, volume or tmpfs"},
		{"health", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","HealthCheck":{"Test":["CMD","x"],"Interval":1000}}}}`, rpc + "ContainerSpec: Interval in HealthConfig cannot be less than 1ms"},
		{"group", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Groups":["1",""]}}}`, rpc + "ContainerSpec: a group must have a name or a number"},
		{"env", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Env":["=x"]}}}`, rpc + "ContainerSpec: invalid environment variable: =x"},
		{"placeholders", `{"Labels":{"a.b":"c"},"TaskTemplate":{"ContainerSpec":{"Image":"a","Hostname":"{{.Node.Hostname}}-{{.Task.Slot}}","Env":["A={{index .Service.Labels \"a.b\"}}","B={{.Node.Platform.OS}}"]}}}`, ""},
		{"placeholder's syntax", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Hostname":"{{"}}}`, rpc + "expanding hostname failed: template: expansion:1: unclosed action"},
		{"unknown placeholder", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Env":["A=b","C={{.Foo}}"]}}}`, rpc + `expanding env failed: C: template: expansion:1:4: executing "expansion" at <.Foo>: can't evaluate field Foo in type *agent.scope`},
		{"placeholder in a mount", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"volume","Source":"v{{.Task}","Target":"/a"}]}}}`, rpc + `expanding mounts failed: source "v{{.Task}": template: expansion:1: bad character U+007D '}'`},
		{"secret without id", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Secrets":[{"SecretName":"x","File":{"Name":"x"}}]}}}`, rpc + "malformed secret reference"},
		{"secret without target", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Secrets":[{"SecretID":"1","SecretName":"x"}]}}}`, rpc + "malformed secret reference, no target provided"},
		{"secret without file", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Secrets":[{"SecretID":"1","SecretName":"x","File":{"UID":"0"}}]}}}`, rpc + "malformed file secret reference, invalid target file name provided"},
		{"secrets at one target", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Secrets":[{"SecretID":"1","SecretName":"x","File":{"Name":"f"}},{"SecretID":"2","SecretName":"y","File":{"Name":"f"}}]}}}`, rpc + "secret references 'x' and 'y' have a conflicting target: 'f'"},
		{"config at a secret's target", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Secrets":[{"SecretID":"1","SecretName":"x","File":{"Name":"f"}}],"Configs":[{"ConfigID":"2","ConfigName":"y","File":{"Name":"/run/secrets/f"}}]}}}`, rpc + "secret reference 'x' and config reference 'y' have a conflicting target: '/run/secrets/f'"},
		{"config at a mount", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"tmpfs","Target":"/c"}],"Configs":[{"ConfigID":"2","ConfigName":"c","File":{"Name":"c"}}]}}}`, rpc + "ContainerSpec: duplicate mount point: /c: it is the target of config 'c', too"},
		{"config as root", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Configs":[{"ConfigID":"2","ConfigName":"c","File":{"Name":".."}}]}}}`, rpc + `ContainerSpec: config 'c': ".." is not the name of a file`},
		{"config's owner", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Configs":[{"ConfigID":"2","ConfigName":"c","File":{"Name":"c","UID":"root"}}]}}}`, rpc + `ContainerSpec: config 'c': invalid user "root": it must be a number`},
		{"config for the runtime", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Configs":[{"ConfigID":"2","ConfigName":"c","Runtime":{}}]}}}`, "config 'c': configs for the runtime hold credential specs, which are for Windows and not available"},
		{"secret and config", `{"TaskTemplate":{"ContainerSpec":{"Image":"a","Secrets":[{"SecretID":"1","SecretName":"x","File":{"Name":"f","UID":"1","GID":"2","Mode":256}}],"Configs":[{"ConfigID":"2","ConfigName":"f","File":{"Name":"f"}}]}}}`, ""},
		{"network", `{"TaskTemplate":{"Networks":[{"Target":"x","Aliases":["a","b_c.d-e"]}]}}`, ""},
		{"network alias", `{"TaskTemplate":{"Networks":[{"Target":"x","Aliases":["a b"]}]}}`, "rpc error: code = InvalidArgument desc = network x: alias \"a b\" is not a valid DNS name"},
		{"network target", `{"TaskTemplate":{"Networks":[{"Aliases":["a"]}]}}`, "rpc error: code = InvalidArgument desc = a network attachment needs a target"},
	} {
		base := map[string]any{}
		if err := json.Unmarshal([]byte(c.spec), &base); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if base["Name"] == nil {
			base["Name"] = "web"
		}
		task, _ := base["TaskTemplate"].(map[string]any)
		if task == nil {
			task = map[string]any{}
			base["TaskTemplate"] = task
		}
		if _, set := task["ContainerSpec"]; !set {
			task["ContainerSpec"] = map[string]any{"Image": "web:v1"}
		}
		raw, err := json.Marshal(base)
		if err != nil {
			t.Fatal(err)
		}
		spec, err := parseService(raw)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := ""
		if err := admit(spec.Typed); err != nil {
			got = err.Error()
			if st := statusOf(err); st != http.StatusBadRequest && st != http.StatusNotImplemented {
				t.Errorf("%s: status %d", c.name, st)
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// FuzzParseService: whatever comes, a spec that was stored parses again to the same bytes, and
// defaults never lose a field of it.
func FuzzParseService(f *testing.F) {
	f.Add([]byte(`{"Name":"web","X":{"y":[1,2,{}]},"TaskTemplate":{"ContainerSpec":{"Image":"a"}},"Networks":[{"Target":"n"}]}`))
	f.Add([]byte(`{"Mode":{"Replicated":{"Replicas":3}},"EndpointSpec":{"Ports":[{"TargetPort":80,"Protocol":"TCP"}]}}`))
	f.Add([]byte(`{"name":"x","NAME":"y","Labels":{"A":"1","a":"2"}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		spec, err := parseService(raw)
		if err != nil {
			if model.KindOf(err) != model.Invalid {
				t.Errorf("error of kind %v: %v", model.KindOf(err), err)
			}
			return
		}
		again, err := parseService(spec.Raw)
		if err != nil || string(again.Raw) != string(spec.Raw) {
			t.Errorf("read back: %v\n%s\n%s", err, spec.Raw, again.Raw)
		}
		if _, err := withDefaults(spec); err != nil {
			t.Errorf("defaults: %v", err)
		}
		_ = admit(spec.Typed) // it must not panic
		var typed swarm.ServiceSpec
		if err := json.Unmarshal(spec.Raw, &typed); err != nil {
			t.Errorf("stored spec: %v", err)
		}
	})
}

func TestReservedLabels(t *testing.T) {
	for label, ok := range map[string]bool{
		"skep.drain=start-first": true, "skep.drain=later": false, "skep.drain-time=2s": true, "skep.drain-time=0s": true,
		"skep.drain-time=-1s": false, "skep.drain-time=soon": false, "skep.drain-time=2h": false,
		"skep.depends_on=db=service_healthy,q": true, "skep.depends_on=db=ready": false,
	} {
		k, v, _ := strings.Cut(label, "=")
		err := admitReserved(&swarm.ServiceSpec{Annotations: swarm.Annotations{Labels: map[string]string{k: v}}})
		if (err == nil) != ok {
			t.Errorf("%s: %v", label, err)
		}
	}
}
