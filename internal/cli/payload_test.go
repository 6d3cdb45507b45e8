package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPayloads(t *testing.T) {
	item := func(id, name, more string) string {
		return `{"ID":"` + id + `","Version":{"Index":7},"CreatedAt":"2020-01-02T03:04:05Z","UpdatedAt":"2020-01-02T03:04:05Z","Spec":{"Name":"` + name + `","Labels":{"b":"2","a":"1"}` + more + `}}`
	}
	one, two := item("8bkojgvl73om9dd7jao9i6xp5", "web.conf", `,"Data":"aGVsbG8K","Templating":{"Name":"golang"}`), item("aaaa", "app", "")
	host := fakeDaemon(t, map[string]any{
		"GET /configs": "[" + one + "," + two + "]", "GET /secrets": "[" + two + "]", "GET /configs/web.conf": one, "GET /secrets/app": two,
		"POST /secrets/create": `{"ID":"new"}`, "POST /configs/create": `{"ID":"new"}`, "DELETE /secrets/app": "", "DELETE /configs/web.conf": "",
	})
	dir := t.TempDir()
	file, empty := filepath.Join(dir, "file"), filepath.Join(dir, "empty")
	for path, text := range map[string]string{file: "value", empty: ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args         string
		code         int
		stdout, errs string
	}{
		{"config ls --format {{.Name}}:{{.CreatedAt}}", 0, "app:2020-01-02T03:04:05Z\nweb.conf:2020-01-02T03:04:05Z\n", ""},
		{"secret ls -q", 0, "aaaa\n", ""},
		{"secret create -l x=1 n " + file, 0, "new\n", ""},
		{"config create --template-driver golang n " + file, 0, "new\n", ""},
		{"secret create n " + empty, 1, "", "secret create: " + empty + " is empty"},
		{"secret create n /does/not/exist", 1, "", "no such file"},
		{"secret create -l =1 n " + file, 2, "", "is not of the form KEY=VALUE"},
		{"secret create", 2, "", "Usage: skep secret create NAME [FILE|-]"},
		{"secret rm app nope", 1, "app\n", "page not found: DELETE"},
		{"config rm web.conf", 0, "web.conf\n", ""},
		{"config inspect nope", 1, "", "page not found"},
		{"secret nosuch", 2, "", `unknown command "nosuch" for "skep secret"`},
		{"__complete secret rm a", 0, "app\n:4\n", ""},
		{"__complete config inspect app ", 0, "web.conf\n:4\n", ""},
	} {
		code, out, errs := run(t, host, strings.Split(c.args, " ")...)
		if code != c.code || out != c.stdout || !strings.Contains(errs, c.errs) {
			t.Errorf("%s: %d %q %q", c.args, code, out, errs)
		}
	}
	_, out, _ := run(t, host, "config", "inspect", "--pretty", "web.conf")
	for _, want := range []string{"Name:     web.conf\nLabel:    a=1\nLabel:    b=2\nTemplate: golang\nCreated:  2020-01-02T03:04:05Z (", "Data:\nhello\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("--pretty lacks %q:\n%s", want, out)
		}
	}
	if _, out, _ := run(t, host, "secret", "inspect", "app"); !strings.HasPrefix(out, "[\n    {\n        \"ID\": \"aaaa\",") {
		t.Errorf("inspect:\n%s", out)
	}
	if _, out, _ := run(t, host, "config", "ls"); !strings.HasPrefix(out, "ID             NAME       CREATED") || !strings.Contains(out, "8bkojgvl73om   web.conf   ") {
		t.Errorf("ls:\n%s", out)
	}
}
