package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// stackDir makes a directory with files, and goes there.
func stackDir(t *testing.T, files map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
}

// runStack runs a command with an environment and a standard input.
func runStack(t *testing.T, stdin string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Run(t.Context(), Config{
		Stdout: &out, Stderr: &errs, Stdin: strings.NewReader(stdin), Environ: func() []string { return env }, Getenv: func(string) string { return "" },
	}, append([]string{"stack"}, args...))
	return code, out.String(), errs.String()
}

func TestStackConfig(t *testing.T) {
	stackDir(t, map[string]string{
		"a.yml":       "services:\n  web:\n    image: nginx:${TAG:-1}\n    privileged: true\n",
		"b.yml":       "services: {web: {deploy: {replicas: 2}}, extra: {image: x, profiles: [debug]}}",
		"compose.yml": "services: {default: {image: from-default}}",
		"my.env":      "TAG=7\n",
	})
	const base = "services:\n  web:\n    image: nginx:%\n    privileged: true\nversion: \"3.13\"\n"
	want := func(tag string) string { return strings.Replace(base, "%", tag, 1) }
	for _, c := range []struct {
		args, stdin string
		env         []string
		code        int
		out, errs   string
	}{
		{"config -c a.yml", "", nil, 0, want("1"), ""},
		{"config -c a.yml", "", []string{"TAG=5"}, 0, want("5"), ""},
		{"config -c a.yml --env-file my.env", "", nil, 0, want("7"), ""},
		{"config -c a.yml --skip-interpolation", "", nil, 0, want("${TAG:-1}"), ""},
		{"config -c -", "services: {s: {image: in}}", nil, 0, "services:\n  s:\n    image: in\nversion: \"3.13\"\n", ""},
		{"config", "", nil, 0, "services:\n  default:\n    image: from-default\nversion: \"3.13\"\n", ""},
		{"config -q -c a.yml -c b.yml", "", nil, 0, "services:\n  web:\n    deploy:\n      replicas: 2\n    image: nginx:1\n    privileged: true\nversion: \"3.13\"\n", ""},
		{"config -c none.yml", "", nil, 1, "", "skep: none.yml: there is no such file\n"},
		{"config -c a.yml --env-file gone.env", "", nil, 1, "", "skep: env file gone.env: there is no such file\n"},
		{"config --wrong", "", nil, 2, "", "skep: unknown flag: --wrong\nSee 'skep stack config --help'\n"},
		{"config -c -", "services: {s: {imag: in}}", nil, 1, "", "skep: standard input:1:16: unknown key imag in services.s: did you mean image?\n"},
		{"bogus", "", nil, 2, "", "skep: unknown command \"bogus\" for \"skep stack\"\nSee 'skep stack --help'\n"},
	} {
		code, out, errs := runStack(t, c.stdin, c.env, strings.Fields(c.args)...)
		if code != c.code || out != c.out || errs != c.errs {
			t.Errorf("%s: %d\n%s%s\nwant %d\n%s%s", c.args, code, out, errs, c.code, c.out, c.errs)
		}
	}
	for _, args := range [][]string{{"config", "--json", "-c", "b.yml", "--profile", "debug"}, {"config", "--json", "-c", "b.yml", "--profile", "*"}} {
		code, out, _ := runStack(t, "", nil, args...)
		var v struct {
			Services map[string]struct{ Image string }
		}
		if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil || v.Services["extra"].Image != "x" {
			t.Errorf("%v: %d, %v\n%s", args, code, err, out)
		}
	}
	if code, out, _ := runStack(t, "", []string{"COMPOSE_PROFILES=x,debug"}, "config", "-c", "b.yml"); code != 0 || !strings.Contains(out, "extra:") {
		t.Errorf("COMPOSE_PROFILES: %d\n%s", code, out)
	}
}

func TestStackConfigWithoutFile(t *testing.T) {
	stackDir(t, nil)
	code, _, errs := runStack(t, "", nil, "config")
	if code != 2 || !strings.Contains(errs, "name the file with --compose-file") {
		t.Errorf("%d %s", code, errs)
	}
}

func TestStackLint(t *testing.T) {
	stackDir(t, map[string]string{
		"fine.yml": "name: shop\nservices: {web: {image: nginx}}",
		"warn.yml": "services:\n  web:\n    image: nginx:${TAG}\n    devices: [/dev/x]\n",
		"bad.yml":  "services:\n  web:\n    image: nginx\n    networks: [nett]\nnetworks: {net: }\n",
	})
	const (
		unset   = "warn.yml:3:12: warning: variable TAG is not set: an empty text takes its place\n"
		devices = "warn.yml:4:5: warning: service web: key devices is ignored: the tasks get no devices\n"
		nett    = "bad.yml:4:16: error: service web: undefined network \"nett\": did you mean net? Else add it under the top-level `networks:`\n"
	)
	for _, c := range []struct {
		args string
		env  []string
		code int
		out  string
	}{
		{"lint -c fine.yml", nil, 0, "1 service, 1 network, no secrets, no configs: fine\n"},
		{"lint -c warn.yml", []string{"TAG=1"}, 0, devices + "1 service, 1 network, no secrets, no configs: 1 warning\n"},
		{"lint -c warn.yml --strict -q", []string{"TAG=1"}, 1, ""},
		{"lint -c warn.yml --format {{.Severity}},{{.Line}},{{.Column}},{{.Service}},{{.Key}}", []string{"TAG=1"}, 0, "warning,4,5,web,devices\n"},
		{"lint -c bad.yml", nil, 1, nett},
		{"lint -c bad.yml -q", nil, 1, ""},
		{"lint -c bad.yml --json", nil, 1, `{"Severity":"error","File":"bad.yml","Line":4,"Column":16,"Service":"","Key":"","Text":` +
			`"service web: undefined network \"nett\": did you mean net? Else add it under the top-level ` + "`networks:`\"}\n"},
	} {
		code, out, errs := runStack(t, "", c.env, strings.Fields(c.args)...)
		if code != c.code || out != c.out || errs != "" {
			t.Errorf("%s: %d\n%s%s\nwant %d\n%s", c.args, code, out, errs, c.code, c.out)
		}
	}
	const lost = "warn.yml:3:5: error: service web: invalid image \"nginx:\": invalid reference format\n" + unset
	if code, out, errs := runStack(t, "", nil, "lint", "-c", "warn.yml"); code != 1 || out != lost || errs != "" {
		t.Errorf("an image that lost its tag: %d\n%s%s\nwant\n%s", code, out, errs, lost)
	}
}
