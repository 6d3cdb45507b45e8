package compose_test

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/skep-swarm/skep/internal/compose"
)

func load(t testing.TB, files map[string]string, names ...string) (*compose.Stack, error) {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, text := range files {
		fsys["p/"+name] = &fstest.MapFile{Data: []byte(text)}
	}
	if len(names) == 0 {
		names = []string{"stack.yml"}
	}
	return compose.Load(t.Context(), fsys, compose.Options{Name: "st", Dir: "/p", Files: names, Env: map[string]string{"BIG": strings.Repeat("x", 1<<20)}})
}

// TestBounds: files that would grow without end are refused with one clear line.
func TestBounds(t *testing.T) {
	laughs := "a: &a [x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c < 'k'; c++ {
		laughs += fmt.Sprintf("x-%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	chain := map[string]string{"stack.yml": "include: [i0.yml]\nservices: {a: {image: x}}\n"}
	for i := range 30 {
		chain[fmt.Sprintf("i%d.yml", i)] = fmt.Sprintf("include: [i%d.yml]\n", i+1)
	}
	wide := map[string]string{"stack.yml": "include:\n" + strings.Repeat("  - one.yml\n", compose.MaxFiles+1), "one.yml": "services: {a: {image: x}}"}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"billion laughs":     {map[string]string{"stack.yml": strings.Replace(laughs, "a: &a", "x-a: &a", 1)}, "more than 200000 values"},
		"an alias of itself": {map[string]string{"stack.yml": "x-a: &a [*a, *a]\n"}, "values"},
		"a merge of itself":  {map[string]string{"stack.yml": "x-a: &a {<<: *a, b: c}\n"}, "values"},
		"deep":               {map[string]string{"stack.yml": "x-a: " + strings.Repeat("[", 90) + strings.Repeat("]", 90)}, "nests them more than 64 deep"},
		"large":              {map[string]string{"stack.yml": "x-a: " + strings.Repeat("x", compose.MaxFileBytes)}, "is larger than 4096 KiB"},
		"long texts":         {map[string]string{"stack.yml": "x-a: &a " + strings.Repeat("x", 1<<20) + "\nx-b: [" + strings.Repeat("*a, ", 60) + "x]\n"}, "longer than 32 MiB"},
		"large variables":    {map[string]string{"stack.yml": "x-a: " + strings.Repeat("$BIG", 100) + "\n"}, "larger than 4096 KiB"},
		"many variables":     {map[string]string{"stack.yml": "x-a: [" + strings.Repeat("$BIG, ", 100) + "x]\n"}, "longer than 32 MiB"},
		"nested variables":   {map[string]string{"stack.yml": "x-a: " + strings.Repeat("${A:-", 40) + strings.Repeat("}", 40) + "\n"}, "nested more than 16 deep"},
		"include in include": {chain, "nested more than 16 deep"},
		"many files":         {wide, "more than 200 files"},
		"ports":              {map[string]string{"stack.yml": "services: {a: {image: x, ports: ['1-60000:1-60000']}}"}, "more than 1000 ports"},
		"config":             {map[string]string{"stack.yml": "services: {a: {image: x}}\nconfigs: {c: {file: ./big}}", "big": strings.Repeat("x", compose.MaxDataBytes+1)}, "is larger than 1000 KiB"},
		"secret":             {map[string]string{"stack.yml": "services: {a: {image: x}}\nsecrets: {c: {file: ./big}}", "big": strings.Repeat("x", 501<<10)}, "is larger than 500 KiB"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, c.files)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("want an error about %q, got %.300v", c.want, err)
			}
			if n := strings.Count(err.Error(), "\n"); n > 60 {
				t.Errorf("the error has %d lines", n)
			}
		})
	}
}

// TestSecretsStaySecret: the values of secrets are in the secrets' data alone, and not without it.
func TestSecretsStaySecret(t *testing.T) {
	const value = "hunter2-hunter2"
	fsys := fstest.MapFS{
		"p/stack.yml": {Data: []byte("services: {a: {image: x, secrets: [one, two]}}\nsecrets: {one: {file: ./f}, two: {environment: SECRET}}")},
		"p/f":         {Data: []byte(value)},
	}
	s, err := compose.Load(t.Context(), fsys, compose.Options{Name: "st", Dir: "/p", Files: []string{"stack.yml"}, Env: map[string]string{"SECRET": value}})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range s.Secrets {
		if string(x.Spec.Data) != value {
			t.Errorf("%s has the value %q", x.Name, x.Spec.Data)
		}
	}
	if strings.Contains(string(s.Source), value) {
		t.Errorf("the source shows the value:\n%s", s.Source)
	}
	kept := s.WithoutData()
	for i, x := range kept.Secrets {
		if x.Spec.Data != nil || s.Secrets[i].Spec.Data == nil || x.Name != s.Secrets[i].Name {
			t.Errorf("%s: %q, before %q", x.Name, x.Spec.Data, s.Secrets[i].Spec.Data)
		}
	}
}

// TestNames: where the stack's name comes from, and what it may be.
func TestNames(t *testing.T) {
	fsys := fstest.MapFS{"p/a.yml": {Data: []byte("name: from-${X:-file}\nservices: {a: {image: x}}")}, "p/b.yml": {Data: []byte("services: {a: {image: x}}")}}
	for _, c := range []struct{ file, name, def, want, err string }{
		{"a.yml", "", "", "from-file", ""},
		{"a.yml", "given", "", "given", ""},
		{"b.yml", "", "fallback", "fallback", ""},
		{"b.yml", "", "", "", "the stack has no name"},
		{"b.yml", "no spaces", "", "", "invalid stack name"},
		{"b.yml", "-x", "", "", "invalid stack name"},
		{"b.yml", strings.Repeat("x", 64), "", "", "more than 63"},
	} {
		s, err := compose.Load(t.Context(), fsys, compose.Options{Name: c.name, DefaultName: c.def, Dir: "/p", Files: []string{c.file}})
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%+v: error %v", c, err)
		case c.err == "" && (err != nil || s.Name != c.want || s.Services[0].Name != c.want+"_a"):
			t.Errorf("%+v: %v, %v", c, s, err)
		}
	}
}

// FuzzLoad: whatever is in the files, Load ends, does not panic, and its source loads again.
func FuzzLoad(f *testing.F) {
	for _, dir := range []string{"corpus", "bad"} {
		paths, err := fs.Glob(osDir("testdata/"+dir), "*.txtar")
		if err != nil || len(paths) == 0 {
			f.Fatal("no seeds", err)
		}
		for _, p := range paths {
			for _, file := range readSampleFile(f, "testdata/"+dir+"/"+p) {
				f.Add(file)
			}
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		fsys := fstest.MapFS{
			"p/stack.yml": {Data: []byte(text)}, "p/f": {Data: []byte("A=1\nB=\"2 ${X}\"\n")},
			"p/a.yml": {Data: []byte("services: {a: {image: x}}")}, "p/b.yml": {Data: []byte("services: {web: {image: x, volumes: [v:/v], ports: ['1:1']}}\nvolumes: {v: }")},
		}
		opt := compose.Options{Name: "st", Dir: "/p", Files: []string{"stack.yml", "b.yml"}, Env: map[string]string{"A": "b", "N": "3"}}
		stack, err := compose.Load(t.Context(), fsys, opt)
		if err != nil {
			return
		}
		opt.Files, opt.Stdin, opt.EnvFiles = []string{"-"}, []byte(strings.ReplaceAll(string(stack.Source), "$", "$$")), []string{"f"}
		opt.Profiles = []string{"*"}
		if _, err := compose.Load(t.Context(), fsys, opt); err != nil {
			t.Errorf("the source does not load: %v\n%s", err, stack.Source)
		}
	})
}
