package model

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"
)

func TestParseConstraints(t *testing.T) {
	for _, tt := range []struct{ expr, want, err string }{
		{expr: "node.role==manager", want: "node.role==manager"},
		{expr: " node.labels.a-b != x y ", want: "node.labels.a-b!=x y"},
		{expr: "node.ip==10.0.0.0/8", want: "node.ip==10.0.0.0/8"},
		{expr: "node.role", err: "constraint expected one operator from ==, !="},
		{expr: "node.role=manager", err: "constraint expected one operator from ==, !="},
		{expr: "1a==b", err: "key '1a' is invalid"},
		{expr: "==b", err: "key '' is invalid"},
		{expr: "node.id==", err: "value '' is invalid"},
		{expr: "node.id==a>b", err: "value 'a>b' is invalid"},
		{expr: "a!=b==c", err: "key 'a!=b' is invalid"},
	} {
		got, err := ParseConstraints([]string{tt.expr})
		if tt.err != "" {
			if err == nil || err.Error() != tt.err || KindOf(err) != Invalid {
				t.Errorf("%q: %v, want %q", tt.expr, err, tt.err)
			}
			continue
		}
		if err != nil || got[0].String() != tt.want {
			t.Errorf("%q: %v %v, want %q", tt.expr, got, err, tt.want)
		}
	}
}

func TestConstraintMatch(t *testing.T) {
	n := &Node{Addr: "10.1.2.3"}
	n.Spec.Role, n.Spec.Labels = swarm.NodeRoleWorker, map[string]string{"Zone": "East"}
	n.Description.Hostname = "Host1"
	n.Description.Platform = swarm.Platform{OS: "linux", Architecture: "x86_64"}
	n.Description.Engine.Labels = map[string]string{"disk": "ssd"}
	for expr, want := range map[string]bool{
		"node.id==abc":              true,
		"node.id!=ABC":              false,
		"NODE.hostname==host1":      true,
		"node.role!=manager":        true,
		"node.platform.os==Linux":   true,
		"node.platform.arch!=amd64": true,
		"node.labels.Zone==east":    true,
		"node.labels.zone==east":    false,
		"node.labels.none!=x":       true,
		"Engine.Labels.disk==ssd":   true,
		"node.ip==10.1.2.3":         true,
		"node.ip==10.1.0.0/16":      true,
		"node.ip!=10.1.0.0/16":      false,
		"node.ip==2001:db8::/32":    false,
		"node.ip!=nonsense":         false,
		"something.else==x":         false,
		"something.else!=x":         false,
	} {
		cs, err := ParseConstraints([]string{expr})
		if err != nil {
			t.Fatal(err)
		}
		if got := NodeMatches(cs, n, "abc"); got != want {
			t.Errorf("%s: %v", expr, got)
		}
	}
}
