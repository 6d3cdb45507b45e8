package cli

import (
	"encoding/json"
	"runtime"
	"testing"
)

// What is shown of client, daemon and node can be picked by a template, as with the docker CLI.
func TestVersionAndInfoFormats(t *testing.T) {
	host := fakeDaemon(t, map[string]any{
		"GET /version": `{"Version":"2.0","ApiVersion":"1.51","MinAPIVersion":"1.24"}`,
		"GET /info":    `{"Name":"one","NCPU":4,"Swarm":{"NodeID":"n1","LocalNodeState":"active","ControlAvailable":true,"Nodes":2,"Managers":1}}`,
	})
	for _, c := range []struct {
		args, format string
		code         int
		want         string
	}{
		{"version", "{{.Client.Version}} {{.Client.GoVersion}} {{.Server.Version}} {{.Server.APIVersion}}", 0, "1.2.3 " + runtime.Version() + " 2.0 1.51\n"},
		{"info", "{{.Name}} {{.Swarm.NodeID}} {{upper .Swarm.LocalNodeState.String}}", 2, ""},
		{"info", "{{.Name}} {{.Swarm.NodeID}} {{.Swarm.LocalNodeState}}", 0, "one n1 active\n"},
		{"info", "{{json .Swarm.Nodes}}", 0, "2\n"},
		{"info", "{{", 2, ""},
		{"version", "{{.Client.Version", 2, ""},
	} {
		if code, out, errs := run(t, host, c.args, "--format", c.format); code != c.code || c.code == 0 && out != c.want {
			t.Errorf("%s --format %q: %d %q %s", c.args, c.format, code, out, errs)
		}
	}
	for _, how := range []string{"--json", "--format=json"} {
		var v struct{ Client, Server struct{ Version string } }
		if _, out, errs := run(t, host, "version", how); json.Unmarshal([]byte(out), &v) != nil || v.Client.Version != "1.2.3" || v.Server.Version != "2.0" {
			t.Errorf("version %s: %s%s", how, out, errs)
		}
		var i struct{ Swarm struct{ NodeID string } }
		if _, out, errs := run(t, host, "info", how); json.Unmarshal([]byte(out), &i) != nil || i.Swarm.NodeID != "n1" {
			t.Errorf("info %s: %s%s", how, out, errs)
		}
	}
	if code, _, _ := run(t, host, "info", "--json", "--format", "{{.Name}}"); code == 0 {
		t.Error("two forms at once are accepted")
	}
	// Without a daemon the client's own version is still told, and the failure too.
	if code, out, errs := run(t, "unix:///nowhere/s", "version", "--format", "{{.Client.Version}}"); code != 1 || out != "1.2.3\n" || errs == "" {
		t.Errorf("without a daemon: %d %q %q", code, out, errs)
	}
}
