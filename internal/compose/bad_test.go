package compose_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/skep-swarm/skep/internal/compose"

	"os"

	"github.com/rogpeppe/go-internal/txtar"
)

// TestBad: each archive in testdata/bad holds files that cannot be used and, in its file want, all
// that Load says of them.
func TestBad(t *testing.T) {
	paths, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil || len(paths) < 20 {
		t.Fatalf("only %d bad files: %v", len(paths), err)
	}
	for _, p := range paths {
		s := readSample(t, p)
		t.Run(s.name, func(t *testing.T) {
			stack, err := compose.Load(t.Context(), s.fs(), s.options())
			if err == nil {
				t.Fatalf("no error, but %v", stack)
			}
			got := err.Error() + "\n"
			if *update {
				rewrite(t, p, s, got)
				return
			}
			if diff := cmp.Diff(string(s.file("want")), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			checkProblems(t, s, err)
		})
	}
}

func rewrite(t *testing.T, path string, s sample, want string) {
	t.Helper()
	var files []txtar.File
	for _, f := range s.archive.Files {
		if f.Name != "want" {
			files = append(files, f)
		}
	}
	s.archive.Files = append(files, txtar.File{Name: "want", Data: []byte(want)})
	if err := os.WriteFile(path, txtar.Format(s.archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

// checkProblems: every problem is in a file of the sample and on one of its lines.
func checkProblems(t *testing.T, s sample, err error) {
	t.Helper()
	problems, ok := compose.AsProblems(err)
	if !ok {
		t.Errorf("%T is no list of problems", err)
	}
	for _, p := range problems {
		data := s.file(p.File)
		if n := strings.Count(string(data), "\n") + 1; p.Line > n {
			t.Errorf("%v: %s has %d lines", p, p.File, n)
		}
		if data == nil && p.Line != 0 {
			t.Errorf("%v: there is no such file", p)
		}
	}
}
