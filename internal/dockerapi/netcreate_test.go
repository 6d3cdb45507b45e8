package dockerapi

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/volume"
	"github.com/skep-swarm/skep/internal/model"
)

// What Docker's clients are shown of a task's networks is what others reach it by: the ingress network only when its service has
// ports there, the host's bridge only when there is nothing else.
func TestNetworksOfTasks(t *testing.T) {
	s, f := newSwarm(t)
	f.change(model.Change{PutNetwork: &model.Network{ID: 7, Name: "ingress", Driver: model.DriverOverlay, Ingress: true, VNI: 4097,
		IPAM: []model.IPAMConfig{{Subnet: netip.MustParsePrefix("172.20.0.0/16")}}}})
	if w := call(s, "POST", "/v1.50/networks/create", `{"Name":"back","Driver":"overlay"}`); w.Code != 201 {
		t.Fatalf("create a network: %d %s", w.Code, w.Body)
	}
	for i, c := range []struct{ networks, ports, container, task string }{
		{``, ``, "bridge", ""},
		{`{"Target":"back"}`, ``, "back", "back"},
		{`{"Target":"back"}`, `{"TargetPort":80,"PublishedPort":8081,"PublishMode":"host"}`, "back", "back"},
		{`{"Target":"back"}`, `{"TargetPort":80,"PublishedPort":8082}`, "back ingress", "back ingress"},
		{``, `{"TargetPort":80,"PublishedPort":8083}`, "ingress", "ingress"},
	} {
		name := fmt.Sprintf("s%d", i)
		create(t, s, `{"Name":"`+name+`","TaskTemplate":{"ContainerSpec":{"Image":"web:v1"},"Networks":[`+c.networks+`]},"EndpointSpec":{"Ports":[`+c.ports+`]}}`)
		var inspected struct {
			NetworkSettings struct {
				IPAddress string
				Networks  map[string]network.EndpointSettings
			}
		}
		decode(t, call(s, "GET", "/v1.50/containers/"+name+".1/json", "").Body, &inspected)
		got := inspected.NetworkSettings
		if names := strings.Join(slices.Sorted(maps.Keys(got.Networks)), " "); names != c.container {
			t.Errorf("%s: its container is in %q, want %q", name, names, c.container)
		}
		for n, ep := range got.Networks {
			if w := call(s, "GET", "/v1.50/networks/"+ep.NetworkID, ""); w.Code != 200 || !strings.Contains(w.Body.String(), `"Name":"`+n+`"`) || !ep.IPAddress.IsValid() || len(ep.MacAddress) != 6 {
				t.Errorf("%s in %s: %+v, its network: %d %s", name, n, ep, w.Code, w.Body)
			}
		}
		if (got.IPAddress != "") != (c.container == "bridge") {
			t.Errorf("%s: the address in the bridge is %q", name, got.IPAddress)
		}
		var tasks []swarm.Task
		decode(t, call(s, "GET", "/v1.50/tasks?"+filtersOf(map[string][]string{"service": {name}}), "").Body, &tasks)
		var names []string
		for _, a := range tasks[0].NetworksAttachments {
			names = append(names, a.Network.Spec.Name)
		}
		slices.Sort(names)
		if strings.Join(names, " ") != c.task {
			t.Errorf("%s: its task is in %q, want %q", name, names, c.task)
		}
	}
}

// Names of networks and volumes are looked for as Docker does, by regular expression.
func TestNamePatterns(t *testing.T) {
	s, _ := newSwarm(t)
	for _, n := range []string{"web", "web_two"} {
		if w := call(s, "POST", "/v1.50/networks/create", `{"Name":"`+n+`","Driver":"overlay"}`); w.Code != 201 {
			t.Fatalf("create network %s: %d %s", n, w.Code, w.Body)
		}
		if w := call(s, "POST", "/v1.50/volumes/create", `{"Name":"`+n+`"}`); w.Code != 201 {
			t.Fatalf("create volume %s: %d %s", n, w.Code, w.Body)
		}
	}
	for pattern, want := range map[string]string{"web": "web web_two", "^web$": "web", "two$": "web_two", "b": "bridge web web_two", "^x|eb": "web web_two", "zz": ""} {
		query := filtersOf(map[string][]string{"name": {pattern}})
		var nets []network.Summary
		decode(t, call(s, "GET", "/v1.50/networks?"+query, "").Body, &nets)
		var names []string
		for _, n := range nets {
			names = append(names, n.Name)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != want {
			t.Errorf("networks named %s: %q, want %q", pattern, got, want)
		}
		var vols volume.ListResponse
		decode(t, call(s, "GET", "/v1.50/volumes?"+query, "").Body, &vols)
		names = nil
		for _, v := range vols.Volumes {
			names = append(names, v.Name)
		}
		slices.Sort(names)
		if got, want := strings.Join(names, " "), strings.TrimPrefix(want, "bridge "); got != want {
			t.Errorf("volumes named %s: %q, want %q", pattern, got, want)
		}
	}
	for _, path := range []string{"/networks", "/volumes"} {
		if w := call(s, "GET", path+"?"+filtersOf(map[string][]string{"name": {"["}}), ""); w.Code != 400 {
			t.Errorf("%s?name=[: %d %s", path, w.Code, w.Body)
		}
	}
}

// What no node could lay is refused when it is asked for.
func TestNetworkMTU(t *testing.T) {
	s, _ := newSwarm(t)
	for _, c := range []struct {
		name, body, refusal string
	}{
		{"four-least", `"Options":{"com.docker.network.driver.mtu":"576"}`, ""},
		{"four-less", `"Options":{"com.docker.network.driver.mtu":"575"}`, "it must be a number from 576 to 65535"},
		{"six-least", `"EnableIPv6":true,"IPAM":{"Config":[{"Subnet":"fd00:1::/64"}]},"Options":{"com.docker.network.driver.mtu":"1280"}`, ""},
		{"six-less", `"EnableIPv6":true,"IPAM":{"Config":[{"Subnet":"fd00:1::/64"}]},"Options":{"com.docker.network.driver.mtu":"1279"}`, "it must be a number from 1280 to 65535"},
		{"more", `"Options":{"com.docker.network.driver.mtu":"65536"}`, "it must be a number from 576 to 65535"},
		{"text", `"Options":{"com.docker.network.driver.mtu":"big"}`, `invalid MTU "big"`},
	} {
		w := call(s, "POST", "/v1.50/networks/create", `{"Name":"`+c.name+`","Driver":"overlay",`+c.body+`}`)
		switch {
		case c.refusal == "" && w.Code != 201:
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		case c.refusal != "" && (w.Code != 400 || !strings.Contains(message(t, w), c.refusal)):
			t.Errorf("%s: %d %s, want 400 with %q", c.name, w.Code, w.Body, c.refusal)
		}
	}
}

// A gateway is an address that a host can have.
func TestNetworkGateway(t *testing.T) {
	s, _ := newSwarm(t)
	const own = "it is the network's own or its broadcast address: choose another one of subnet "
	for name, c := range map[string]struct{ subnet, gateway, refusal string }{
		"first":        {"10.7.0.0/24", "10.7.0.1", ""},
		"last":         {"10.7.1.0/24", "10.7.1.254", ""},
		"inner-zero":   {"10.8.0.0/23", "10.8.1.0", ""},
		"network":      {"10.7.2.0/24", "10.7.2.0", own + "10.7.2.0/24"},
		"broadcast":    {"10.7.3.0/24", "10.7.3.255", own + "10.7.3.0/24"},
		"broadcast-29": {"10.7.4.8/29", "10.7.4.15", own + "10.7.4.8/29"},
		"outside":      {"10.7.5.0/24", "10.7.6.1", "doesn't contain this address"},
		"six":          {"fd00:7::/64", "fd00:7::1", ""},
		"six-last":     {"fd00:8::/64", "fd00:8::ffff:ffff:ffff:ffff", ""},
		"six-anycast":  {"fd00:9::/64", "fd00:9::", own + "fd00:9::/64"},
	} {
		six := strconv.FormatBool(strings.Contains(c.subnet, ":"))
		w := call(s, "POST", "/v1.50/networks/create", `{"Name":"`+name+`","Driver":"overlay","EnableIPv6":`+six+`,"IPAM":{"Config":[{"Subnet":"`+c.subnet+`","Gateway":"`+c.gateway+`"}]}}`)
		switch {
		case c.refusal == "" && w.Code != 201:
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		case c.refusal != "" && (w.Code != 400 || !strings.HasPrefix(message(t, w), "invalid network config:\ninvalid gateway "+c.gateway+": ") || !strings.HasSuffix(message(t, w), c.refusal)):
			t.Errorf("%s: %d %s, want 400 with %q", name, w.Code, w.Body, c.refusal)
		}
	}
}
