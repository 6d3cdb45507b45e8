package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// fakeDaemon answers fixed paths on a unix socket.
func fakeDaemon(t *testing.T, answers map[string]any) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		w.Header().Set("Content-Type", "application/json")
		p := r.URL.Path
		if i := strings.Index(p[1:], "/"); strings.HasPrefix(p, "/v1.") && i > 0 {
			p = p[i+1:]
		}
		a, ok := answers[r.Method+" "+p]
		switch v := a.(type) {
		case string:
			fmt.Fprint(w, v)
		case nil:
			if !ok && p != "/_ping" {
				w.WriteHeader(http.StatusNotFound)
				fmt.Fprintf(w, `{"message":"page not found: %s %s"}`, r.Method, p)
			}
		default:
			_ = json.NewEncoder(w).Encode(v)
		}
	})}
	go srv.Serve(l) // ends with the test
	t.Cleanup(func() { srv.Close() })
	return "unix://" + path
}

// run runs a command against a host and returns its exit code and output.
func run(t *testing.T, host string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Run(t.Context(), Config{
		Version: Version{"1.2.3", "abc"}, Daemon: &cobra.Command{Use: "daemon", Run: func(*cobra.Command, []string) {}},
		Stdout: &out, Stderr: &errs, Getenv: func(k string) string { return map[string]string{"SKEP_HOST": host}[k] },
	}, args)
	return code, out.String(), errs.String()
}

const services = `[{"ID":"8bkojgvl73om9dd7jao9i6xp5","Spec":{"Name":"web","Mode":{"Replicated":{"Replicas":3}},"TaskTemplate":{"ContainerSpec":{"Image":"nginx:1@sha256:abc"}}},
"Endpoint":{"Ports":[{"Protocol":"tcp","TargetPort":80,"PublishedPort":8080,"PublishMode":"ingress"},{"Protocol":"udp","TargetPort":53,"PublishedPort":53,"PublishMode":"host"}]},
"ServiceStatus":{"RunningTasks":2,"DesiredTasks":3}},{"ID":"aaaa","Spec":{"Name":"all","Mode":{"Global":{}}}}]`

func TestServiceLs(t *testing.T) {
	host := fakeDaemon(t, map[string]any{"GET /services": services})
	for _, c := range []struct{ args, want string }{
		{"service ls", "ID             NAME   MODE         REPLICAS   IMAGE     PORTS\n" +
			"aaaa           all    global       ?                    \n" +
			"8bkojgvl73om   web    replicated   2/3        nginx:1   *:8080->80/tcp, 53->53/udp\n"},
		{"service ls -q", "aaaa\n8bkojgvl73om9dd7jao9i6xp5\n"},
		{"service ls --format {{.Name}}={{.Replicas}}", "all=?\nweb=2/3\n"},
	} {
		if code, out, errs := run(t, host, strings.Fields(c.args)...); code != 0 || out != c.want {
			t.Errorf("%s: %d\n%s%s\nwant\n%s", c.args, code, out, errs, c.want)
		}
	}
	_, out, _ := run(t, host, "service", "ls", "--json")
	var row serviceRow
	if err := json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &row); err != nil || row.Name != "all" {
		t.Errorf("--json: %v in %s", err, out)
	}
}

func TestServicePsShowsReasonsAndHistory(t *testing.T) {
	service := `{"ID":"svc","Spec":{"Name":"web"}}`
	tasks := `[{"ID":"t2","ServiceID":"svc","Slot":1,"CreatedAt":"2026-01-02T00:00:00Z","DesiredState":"running","Status":{"State":"pending","Err":"no suitable node (scheduling constraints not satisfied on 1 node) and much more than fits"}},
	{"ID":"t1","ServiceID":"svc","Slot":1,"NodeID":"n","CreatedAt":"2026-01-01T00:00:00Z","DesiredState":"shutdown","Status":{"State":"failed"}}]`
	host := fakeDaemon(t, map[string]any{"GET /services/web": service, "GET /tasks": tasks, "GET /nodes": `[{"ID":"n","Description":{"Hostname":"one"}}]`})
	_, out, _ := run(t, host, "service", "ps", "web")
	lines := strings.Split(out, "\n")
	if !strings.HasPrefix(lines[1], "t2   web.1 ") || !strings.Contains(lines[1], "satisfied on 1…") || !strings.Contains(lines[2], `\_ web.1`) || !strings.Contains(lines[2], "one") {
		t.Errorf("ps:\n%s", out)
	}
	if _, out, _ := run(t, host, "service", "ps", "--no-trunc", "web"); !strings.Contains(out, "much more than fits") {
		t.Errorf("ps --no-trunc:\n%s", out)
	}
	if code, _, errs := run(t, host, "service", "ps", "nosuch"); code != 1 || !strings.Contains(errs, "skep: ") {
		t.Errorf("ps of what is not there: %d %s", code, errs)
	}
}

func TestExitCodes(t *testing.T) {
	dead := "unix:///does/not/exist.sock"
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"service ls", 1, "no daemon answers at " + dead},
		{"service", 0, ""},
		{"service nosuch", 2, `unknown command "nosuch" for "skep service"`},
		{"service ls extra", 2, "Usage: skep service ls"},
		{"service ls --nosuch", 2, "unknown flag: --nosuch"},
		{"service ps", 2, "Usage: skep service ps SERVICE…"},
		{"service ls --filter name", 2, "is not of the form KEY=VALUE"},
		{"image load -i /does/not/exist", 1, "no such file"},
		{"nosuch", 2, "unknown command"},
		{"down", 0, ""},
	} {
		code, _, errs := run(t, dead, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit code %d, %q; want %d, …%s…", c.args, code, errs, c.code, c.want)
		}
	}
}

// What is for machines in the texts of Docker's managers is not shown to people, wherever it comes from.
func TestPlainErrors(t *testing.T) {
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/_ping"):
		case strings.Contains(r.URL.Path, "/containers/"):
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"message":"No such container: web.7"}`)
		case strings.HasSuffix(r.URL.Path, "/images/load"):
			fmt.Fprintln(w, `{"errorDetail":{"message":"rpc error: code = Unavailable desc = no leader"}}`)
		default:
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"message":"rpc error: code = InvalidArgument desc = it cannot be: rpc error: code = NotFound desc = x"}`)
		}
	}))
	for args, want := range map[string]string{
		"service ls":               "skep: it cannot be: x\n",
		"stack rm shop":            "skep: it cannot be: x\n",
		"service why web":          "skep: it cannot be: x\n",
		"secret rm key":            "skep: it cannot be: x\n",
		"exec web.7 ls":            "skep: no such task: web.7: 'skep ps' lists those that run\n",
		"top web.7":                "skep: no such task: web.7: 'skep ps' lists those that run\n",
		"image load -i /dev/null":  "skep: no leader\n",
		"service logs --tail 1 ab": "skep: it cannot be: x\n",
	} {
		if code, _, errs := run(t, host, strings.Fields(args)...); code != 1 || errs != want {
			t.Errorf("%s: exit code %d, %q", args, code, errs)
		}
	}
}

// Help is for people: switches are switches, and everything is in line.
func TestHelpAndCompletion(t *testing.T) {
	_, out, _ := run(t, "", "service", "ls", "--help")
	want := "  -f, --filter KEY=VALUE   show only what matches KEY=VALUE (id, label, mode, name)\n" +
		"      --format template    Go template for each row, or 'json'\n" +
		"  -h, --help               help for ls\n"
	if !strings.Contains(out, want) || strings.Contains(out, "true|false") || !strings.Contains(out, "\n  -H, --host address       address of the daemon") {
		t.Errorf("help:\n%s", out)
	}
	host := fakeDaemon(t, map[string]any{"GET /services": services, "GET /secrets": `[{"ID":"x","Spec":{"Name":"key"}}]`})
	if _, out, _ := run(t, host, "__complete", "secret", "rm", ""); !strings.HasPrefix(out, "key\n:4") {
		t.Errorf("completion of secrets: %q", out)
	}
	for _, verb := range []string{"ps", "logs", "why", "history", "rollback", "pause"} {
		if _, out, _ := run(t, host, "__complete", "service", verb, ""); !strings.HasPrefix(out, "all\nweb\n:4") {
			t.Errorf("completion of service %s: %q", verb, out)
		}
	}
}

func TestImageLoadReportsTheDaemonsError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	host := fakeDaemon(t, map[string]any{"POST /images/load": `{"stream":"Loaded image: nginx:1\n"}` + "\n" + `{"errorDetail":{"message":"disk full"}}`})
	if code, out, errs := run(t, host, "image", "load", "-i", file); code != 1 || out != "Loaded image: nginx:1\n" || !strings.Contains(errs, "disk full") {
		t.Errorf("%d %q %q", code, out, errs)
	}
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	c := &cli{Config: Config{Getenv: os.Getenv}}
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" {
			t.Errorf("%s has no description", cmd.CommandPath())
		}
		if !cmd.HasSubCommands() && cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(c.root())
}

func TestLogLinesBearNames(t *testing.T) {
	var out bytes.Buffer
	w := &lineWriter{w: &out, names: &logNames{names: map[string]string{"t1": "web.1@one"}}, stamps: true}
	const line = "2026-01-01T00:00:00Z com.docker.swarm.node.id=n,com.docker.swarm.service.id=s,com.docker.swarm.task.id=t1 hello world\n"
	for _, piece := range []string{line[:20], line[20:90], line[90:] + line} {
		if _, err := w.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if want := strings.Repeat("2026-01-01T00:00:00Z web.1@one    | hello world\n", 2); out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestHistoryAndDiff(t *testing.T) {
	host := fakeDaemon(t, map[string]any{"GET /skep/v1/services/web/history": `[
		{"Number":4,"At":"2026-01-01T00:00:00Z","Actor":"alice","Reason":"create","Tasks":1,"Spec":{"Name":"web","Labels":{"a":"b"},"L":[1,2]}},
		{"Number":5,"Current":true,"At":"2026-01-01T00:00:00Z","Actor":"swarm","Reason":"rollback","Tasks":2,"Spec":{"Name":"web","Labels":{"a":"c"},"L":[1],"N":12345678901234567890}}]`})
	if _, out, errs := run(t, host, "service", "history", "--format", "{{.Number}} {{.Actor}} {{.Current}}", "web"); out != "4 alice false\n5 swarm true\n" {
		t.Errorf("history: %s%s", out, errs)
	}
	want := "--- web, revision 4\n+++ web, revision 5\n- L[1]: 2\n- Labels.a: \"b\"\n+ Labels.a: \"c\"\n+ N: 12345678901234567890\n"
	if _, out, errs := run(t, host, "service", "diff", "web"); out != want {
		t.Errorf("diff:\n%s%s\nwant\n%s", out, errs, want)
	}
	if _, out, _ := run(t, host, "service", "diff", "web", "5", "4"); !strings.Contains(out, "+ L[1]: 2") {
		t.Errorf("diff 5 4:\n%s", out)
	}
	for args, wantErr := range map[string]string{"web 9": "has no revision 9", "web x": "is not the number of a revision"} {
		if code, _, errs := run(t, host, append([]string{"service", "diff"}, strings.Fields(args)...)...); code == 0 || !strings.Contains(errs, wantErr) {
			t.Errorf("diff %s: %d %s", args, code, errs)
		}
	}
}

func TestWhy(t *testing.T) {
	host := fakeDaemon(t, map[string]any{
		"GET /skep/v1/services/web/why": `{"Name":"web","Running":1,"Desired":3,"Update":"paused: x","Reasons":[{"Text":"no suitable node","State":"pending","Count":2}]}`,
		"GET /skep/v1/services/ok/why":  `{"Name":"ok","Running":1,"Desired":1}`,
	})
	if code, out, _ := run(t, host, "service", "why", "web"); code != 3 || out != "web: 1 of 3 tasks run\n  update paused: x\n  2 × pending: no suitable node\n" {
		t.Errorf("%d\n%s", code, out)
	}
	if code, out, _ := run(t, host, "service", "why", "--json", "web"); code != 3 || !strings.HasPrefix(out, `{"Name":"web","Running":1,"Desired":3,`) {
		t.Errorf("--json: %d\n%s", code, out)
	}
	if code, out, _ := run(t, host, "service", "why", "ok"); code != 0 || out != "ok: 1 of 1 tasks run\n" {
		t.Errorf("%d\n%s", code, out)
	}
	if code, _, errs := run(t, host, "service", "why", "nosuch"); code != 1 || !strings.Contains(errs, "page not found") {
		t.Errorf("%d %s", code, errs)
	}
}

func TestUpdateVerbs(t *testing.T) {
	host := fakeDaemon(t, map[string]any{
		"POST /skep/v1/services/web/rollback":      `{"Revision":7,"Message":"manually requested rollback"}`,
		"POST /skep/v1/services/web/update/pause":  `{"Revision":6,"Message":"update paused on request"}`,
		"POST /skep/v1/services/web/update/resume": `{"Revision":6,"Message":"update in progress"}`,
		"POST /skep/v1/services/web/update/cancel": `{"Revision":8,"Message":"update canceled on request"}`,
		"POST /skep/v1/swarm/accept-loss":          `{"Message":"fine"}`,
	})
	for args, want := range map[string]string{
		"service rollback --to 3 web": "web: manually requested rollback (revision 7)\n",
		"service pause web":           "web: update paused on request (revision 6)\n",
		"service resume web":          "web: update in progress (revision 6)\n",
		"service cancel web":          "web: update canceled on request (revision 8)\n",
		"swarm accept-loss":           "fine\n",
	} {
		if code, out, errs := run(t, host, strings.Fields(args)...); code != 0 || out != want {
			t.Errorf("%s: %d %q %s", args, code, out, errs)
		}
	}
}
