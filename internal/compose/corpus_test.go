package compose_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/skep-swarm/skep/internal/compose"
	"go.yaml.in/yaml/v4"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// sample is one file of the corpus: a txtar archive whose comment says how to load it.
//
//	files: a.yml b.yml    the Compose files, in order (stack.yml)
//	stdin: a.yml          the first file comes by standard input
//	env: K=V              a variable; may come several times
//	profiles: a b         profiles that are on
//	docker: refuses       docker's CLI does not take it: the golden file counts
//	docker: differs       docker's CLI takes it, but makes something else of it on purpose: the golden file counts
//	config: differs       as before, for `stack config` only
type sample struct {
	name     string
	files    []string
	stdin    string
	env      map[string]string
	profiles []string
	docker   string
	config   string
	archive  *txtar.Archive
}

func readSample(t *testing.T, file string) sample {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := sample{name: strings.TrimSuffix(filepath.Base(file), ".txtar"), files: []string{"stack.yml"}, env: map[string]string{"HOME": "/home/me"}, archive: a}
	for line := range strings.SplitSeq(string(a.Comment), "\n") {
		key, value, ok := strings.Cut(line, ": ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		switch key {
		case "files":
			s.files = strings.Fields(value)
		case "stdin":
			s.stdin = value
		case "env":
			k, v, _ := strings.Cut(value, "=")
			s.env[k] = v
		case "profiles":
			s.profiles = strings.Fields(value)
		case "docker":
			s.docker, _, _ = strings.Cut(value, ",")
		case "config":
			s.config, _, _ = strings.Cut(value, ",")
		default:
			t.Fatalf("%s: unknown directive %q", file, line)
		}
	}
	return s
}

func samples(t *testing.T) []sample {
	t.Helper()
	paths, err := filepath.Glob("testdata/corpus/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	var out []sample
	for _, p := range paths {
		out = append(out, readSample(t, p))
	}
	return out
}

// root is where the samples lie for compose.
const root = "/stack"

func (s sample) fs() fstest.MapFS {
	fsys := fstest.MapFS{}
	for _, f := range s.archive.Files {
		fsys[strings.TrimPrefix(root, "/")+"/"+f.Name] = &fstest.MapFile{Data: f.Data}
	}
	return fsys
}

func (s sample) file(name string) []byte {
	for _, f := range s.archive.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

func (s sample) options() compose.Options {
	opt := compose.Options{Name: "st", Dir: root, Files: s.files, Env: s.env, Profiles: s.profiles}
	if s.stdin != "" {
		opt.Stdin = s.file(s.stdin)
		opt.Files = append([]string{"-"}, slices.DeleteFunc(slices.Clone(s.files), func(f string) bool { return f == "stack.yml" })...)
	}
	return opt
}

// golden holds a value against testdata/golden/NAME.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (make it with go test -update)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// TestCorpusGolden loads every sample. Those that docker's CLI is no judge of have a golden file.
func TestCorpusGolden(t *testing.T) {
	all := samples(t)
	if len(all) < 60 {
		t.Errorf("the corpus has %d files: at least 60 are wanted", len(all))
	}
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			stack, err := compose.Load(t.Context(), s.fs(), s.options())
			if err != nil {
				t.Fatalf("Load: %v", err)
			}
			checkLines(t, s, stack.Warnings)
			if s.docker == "" {
				return
			}
			golden(t, s.name+".json", readable(t, stack))
		})
	}
}

// readable is a stack as JSON, with the source as lines.
func readable(t *testing.T, s *compose.Stack) []byte {
	t.Helper()
	source := strings.Split(strings.TrimSuffix(string(s.Source), "\n"), "\n")
	c := *s
	c.Source = nil
	var warnings []string
	for _, w := range c.Warnings {
		warnings = append(warnings, w.String())
	}
	c.Warnings = nil
	var m map[string]any
	data, err := json.Marshal(&c)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	m["Source"], m["Warnings"] = source, warnings
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(m); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// checkLines holds every warning that names a key against the line it points to.
func checkLines(t *testing.T, s sample, warnings []compose.Warning) {
	t.Helper()
	for _, w := range warnings {
		if w.Line == 0 || w.Key == "" {
			continue
		}
		data := s.file(path.Clean(w.File))
		if w.File == "standard input" {
			data = s.file(s.stdin)
		}
		lines := strings.Split(string(data), "\n")
		if w.Line > len(lines) {
			t.Errorf("%s: there is no such line in %s", w, w.File)
			continue
		}
		parts := strings.FieldsFunc(w.Key, func(r rune) bool { return r == '.' })
		for len(parts) > 1 && isNumber(parts[len(parts)-1]) {
			return // an item of a list does not show its key
		}
		if last := parts[len(parts)-1]; !strings.Contains(lines[w.Line-1], last) && last != "ports" && last != "tmpfs" && last != "depends_on" {
			t.Errorf("%s: that line is %q", w, lines[w.Line-1])
		}
	}
}

func isNumber(s string) bool { return strings.Trim(s, "0123456789") == "" }

// TestSourceLoadsAgain: what `stack config` prints is itself a stack file that means the same.
func TestSourceLoadsAgain(t *testing.T) {
	for _, s := range samples(t) {
		t.Run(s.name, func(t *testing.T) {
			first, _, err := compose.Render(t.Context(), s.fs(), s.options())
			if err != nil {
				t.Fatal(err)
			}
			opt := compose.Options{Name: "st", Dir: root, Files: []string{"-"}, Env: map[string]string{}, Profiles: s.profiles, EnvFiles: []string{"/dev/null"}}
			opt.Stdin = bytes.ReplaceAll(first, []byte("$"), []byte("$$"))
			fsys := s.fs()
			fsys["dev/null"] = &fstest.MapFile{}
			second, _, err := compose.Render(t.Context(), fsys, opt)
			if err != nil {
				t.Fatalf("%v\n%s", err, first)
			}
			if diff := cmp.Diff(string(first), string(second)); diff != "" {
				t.Errorf("(-first +second):\n%s", diff)
			}
		})
	}
}

func yamlValue(t *testing.T, data []byte) map[string]any {
	t.Helper()
	var v map[string]any
	if err := yaml.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return v
}

func osDir(dir string) fs.FS { return os.DirFS(dir) }

// readSampleFile are the texts of a sample's files.
func readSampleFile(t testing.TB, file string) []string {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range a.Files {
		out = append(out, string(f.Data))
	}
	return out
}
