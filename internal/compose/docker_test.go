package compose_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/skep-swarm/skep/internal/compose"
)

// stock is docker's CLI, or the test is skipped.
func stock(t *testing.T) string {
	t.Helper()
	built, err := filepath.Abs("../../bin/docker")
	if err == nil {
		if _, err := os.Stat(built); err == nil {
			return built
		}
	}
	found, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("there is no docker CLI to compare with: run `make docker-cli`")
	}
	return found
}

// engine is an Engine API that says yes to `docker stack deploy` and records what it is sent.
type engine struct {
	mu       sync.Mutex
	services map[string]any
	networks map[string]any
	secrets  map[string]any
	configs  map[string]any
	external []string // networks that the CLI asked for by name
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w.Header().Set("Api-Version", "1.51")
	w.Header().Set("Content-Type", "application/json")
	p := r.URL.Path
	if strings.HasPrefix(p, "/v1.") {
		p = p[strings.Index(p[1:], "/")+1:]
	}
	put := func(into map[string]any, name func(map[string]any) string) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		n := name(body)
		into[n] = body
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"Id":"id:%s"}`, n)
	}
	plain := func(b map[string]any) string { n, _ := b["Name"].(string); return n }
	switch {
	case p == "/_ping":
	case p == "/info":
		fmt.Fprint(w, `{"Swarm":{"NodeID":"n","LocalNodeState":"active","ControlAvailable":true}}`)
	case r.Method == "POST" && p == "/networks/create":
		put(e.networks, plain)
	case r.Method == "POST" && p == "/secrets/create":
		put(e.secrets, plain)
	case r.Method == "POST" && p == "/configs/create":
		put(e.configs, plain)
	case r.Method == "POST" && p == "/services/create":
		put(e.services, plain)
	case r.Method == "GET" && (p == "/secrets" || p == "/configs"):
		var f map[string]map[string]bool
		_ = json.Unmarshal([]byte(r.URL.Query().Get("filters")), &f)
		list := []any{}
		for name := range f["name"] {
			list = append(list, map[string]any{"ID": "id:" + name, "Spec": map[string]any{"Name": name}})
		}
		_ = json.NewEncoder(w).Encode(list)
	case r.Method == "GET" && (p == "/networks" || p == "/services"):
		fmt.Fprint(w, `[]`)
	case r.Method == "GET" && strings.HasPrefix(p, "/networks/"):
		name := strings.TrimPrefix(p, "/networks/")
		e.external = append(e.external, name)
		fmt.Fprintf(w, `{"Name":%q,"Id":"n1","Scope":"swarm","Driver":"overlay"}`, name)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"message":"not found: %s %s"}`, r.Method, p)
	}
}

// serve starts an engine on a unix socket and returns its address.
func serve(t *testing.T) (*engine, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{services: map[string]any{}, networks: map[string]any{}, secrets: map[string]any{}, configs: map[string]any{}}
	srv := &http.Server{Handler: e, ReadHeaderTimeout: time.Minute}
	go srv.Serve(l) // ends with the test
	t.Cleanup(func() { srv.Close() })
	return e, "unix://" + filepath.Join(dir, "s")
}

// run runs docker's CLI over a sample that lies in dir.
func (s sample) run(t *testing.T, docker, dir, host string, args ...string) (stdout []byte, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	files := s.options().Files
	for _, f := range files {
		args = append(args, "-c", f)
	}
	if len(args) > 1 && args[1] == "deploy" {
		args = append(args, "st")
	}
	cmd := exec.CommandContext(ctx, docker, args...)
	cmd.Dir = dir
	cmd.Env = []string{"DOCKER_HOST=" + host, "DOCKER_CONFIG=" + filepath.Join(dir, ".docker-config"), "PATH=/usr/bin:/bin"}
	for k, v := range s.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if s.stdin != "" {
		cmd.Stdin = bytes.NewReader(s.file(s.stdin))
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, errs.String())
	}
	return out.Bytes(), nil
}

func (s sample) extract(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), root)
	for _, f := range s.archive.Files {
		p := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestCorpusDocker: for every sample that docker's CLI takes, it sends what compose.Load makes.
func TestCorpusDocker(t *testing.T) {
	docker := stock(t)
	for _, s := range samples(t) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			dir := s.extract(t)
			e, host := serve(t)
			_, err := s.run(t, docker, dir, host, "stack", "deploy", "--detach=true", "--resolve-image=never")
			switch {
			case s.docker == "refuses":
				if err == nil {
					t.Error("docker's CLI takes it: remove `docker: refuses`")
				}
				return
			case err != nil:
				t.Fatalf("docker stack deploy: %v", err)
			}
			stack, err := compose.Load(t.Context(), s.fs(), s.options())
			if err != nil {
				t.Fatal(err)
			}
			diff := cmp.Diff(sent(t, e, dir), made(t, stack))
			if s.docker == "differs" {
				if diff == "" {
					t.Error("docker's CLI makes the same: remove `docker: differs`")
				}
				return
			}
			if diff != "" {
				t.Errorf("(-docker +skep):\n%s", diff)
			}
			if s.config == "differs" {
				return
			}
			s.compareConfig(t, docker, dir, host)
		})
	}
}

func (s sample) compareConfig(t *testing.T, docker, dir, host string) {
	t.Helper()
	out, err := s.run(t, docker, dir, host, "stack", "config")
	if err != nil {
		t.Fatalf("docker stack config: %v", err)
	}
	ours, _, err := compose.Render(t.Context(), s.fs(), s.options())
	if err != nil {
		t.Fatal(err)
	}
	want := sameConfig(yamlValue(t, bytes.ReplaceAll(out, []byte(filepath.Dir(dir)), nil)))
	got := sameConfig(yamlValue(t, ours))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stack config (-docker +skep):\n%s", diff)
	}
}

// sameConfig evens out what is written differently and means the same: the order of depends_on, and x- keys of
// networks, volumes, secrets and configs, which docker's CLI prints for external ones only.
func sameConfig(m map[string]any) map[string]any {
	services, _ := m["services"].(map[string]any)
	for _, v := range services {
		svc, _ := v.(map[string]any)
		if deps, ok := svc["depends_on"].([]any); ok {
			slices.SortFunc(deps, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	}
	for _, section := range []string{"networks", "volumes", "secrets", "configs"} {
		entries, _ := m[section].(map[string]any)
		for _, v := range entries {
			entry, _ := v.(map[string]any)
			for k := range entry {
				if strings.HasPrefix(k, "x-") {
					delete(entry, k)
				}
			}
		}
	}
	return m
}

// sent is what the engine was sent: paths of the test replaced, identifiers taken out.
func sent(t *testing.T, e *engine, dir string) any {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	slices.Sort(e.external)
	data, err := json.Marshal(map[string]any{
		"services": e.services, "networks": e.networks, "secrets": e.secrets, "configs": e.configs, "external": slices.Compact(e.external),
	})
	if err != nil {
		t.Fatal(err)
	}
	data = bytes.ReplaceAll(data, []byte(filepath.Dir(dir)), nil)
	return plainJSON(t, data)
}

// made is the same of a stack.
func made(t *testing.T, s *compose.Stack) any {
	t.Helper()
	out := map[string]map[string]any{"services": {}, "networks": {}, "secrets": {}, "configs": {}}
	var external []string
	for _, x := range s.Services {
		out["services"][x.Name] = x
	}
	for _, x := range s.Networks {
		switch {
		case x.Create != nil:
			out["networks"][x.Name] = x.Create
		case x.Name != "host" && x.Name != "none" && x.Name != "bridge":
			external = append(external, x.Name)
		}
	}
	for _, x := range s.Secrets {
		if x.Spec != nil {
			out["secrets"][x.Name] = x.Spec
		}
	}
	for _, x := range s.Configs {
		if x.Spec != nil {
			out["configs"][x.Name] = x.Spec
		}
	}
	data, err := json.Marshal(map[string]any{
		"services": out["services"], "networks": out["networks"], "secrets": out["secrets"], "configs": out["configs"], "external": external,
	})
	if err != nil {
		t.Fatal(err)
	}
	return plainJSON(t, data)
}

// plainJSON reads JSON and takes out what is no difference: nulls, empty lists and mappings, identifiers
// that the engine gave, labels of skep, CheckDuplicate of old API versions, and the order of ports when
// there are many and of files of one secret or config, which docker's CLI leaves to chance.
func plainJSON(t *testing.T, data []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return plain(v)
}

func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			if k == "SecretID" || k == "ConfigID" || k == "CheckDuplicate" || strings.HasPrefix(k, "skep.") {
				continue
			}
			if many, ok := x.([]any); ok && (k == "Ports" || k == "Secrets" || k == "Configs") {
				slices.SortFunc(many, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			}
			if x = plain(x); x != nil {
				out[k] = x
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		var out []any
		for _, x := range v {
			out = append(out, plain(x))
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case string:
		if name, ok := strings.CutPrefix(v, "id:"); ok {
			return name
		}
	}
	return v
}
