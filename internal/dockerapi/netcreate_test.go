package dockerapi

import (
	"strings"
	"testing"
)

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
