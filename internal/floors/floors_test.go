package floors

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "example.org/m"

// TestTree is the law itself, over this repository.
func TestTree(t *testing.T) {
	found, err := Check(os.DirFS("../.."), "github.com/skep-swarm/skep")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range found {
		t.Error(v)
	}
}

// A page that says where everything is must be today's: each package of the table is there, and has its row.
func TestArchitectureNamesEveryPackage(t *testing.T) {
	page, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range table() {
		level := strconv.Itoa(f.level)
		if f.level == testFloor {
			level = "test"
		}
		for _, name := range f.packages {
			if _, err := os.Stat("../" + name); err != nil {
				t.Errorf("the table of floors has package %s, which is not there: %v", name, err)
			}
			if !slices.ContainsFunc(strings.Split(string(page), "\n"), func(line string) bool {
				return strings.HasPrefix(line, "| "+level+" |") && strings.Contains(line, "`"+name+"`")
			}) {
				t.Errorf("docs/architecture.md has no row for package %s on floor %s", name, level)
			}
		}
	}
}

// check runs Check over files given as path, text, path, text, …
func check(t *testing.T, files ...string) []Violation {
	t.Helper()
	tree := fstest.MapFS{}
	for i := 0; i < len(files); i += 2 {
		tree[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
	}
	found, err := Check(tree, module)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func imports(pkg string, paths ...string) string {
	var b strings.Builder
	b.WriteString("// Package " + pkg + " is for a test.\npackage " + pkg + "\n")
	for _, p := range paths {
		b.WriteString("import _ \"" + p + "\"\n")
	}
	return b.String()
}

func pure(imports, body string) string {
	return "// Package model is for a test.\npackage model\n" + imports + "\n" + body + "\n"
}

func TestLaws(t *testing.T) {
	long := "// Package model is for a test.\npackage model\n" + strings.Repeat("// x\n", maxLines)
	tests := []struct {
		name  string
		files []string
		want  string // a piece of the one violation, "" for none
	}{
		{"downward", []string{"internal/state/a.go", imports("state", module+"/internal/model")}, ""},
		{"upward", []string{"internal/model/a.go", imports("model", module+"/internal/state")}, "upward"},
		{"upward over several floors", []string{"internal/raftlog/a.go", imports("raftlog", module+"/internal/daemon")}, "upward"},
		{"sibling", []string{"internal/agent/a.go", imports("agent", module+"/internal/dispatch")}, "sibling"},
		{"sibling in a test", []string{"internal/agent/a_test.go", imports("agent", module+"/internal/dispatch")}, ""},
		{"upward in a test", []string{"internal/agent/a_test.go", imports("agent", module+"/internal/daemon")}, "upward"},
		{"own sub-package", []string{"internal/wire/a.go", imports("wire", module+"/internal/wire/pb")}, ""},
		{"sub-package to parent", []string{"internal/runtime/fake/a.go", imports("fake", module+"/internal/runtime")}, ""},
		{"sub-package of a sibling", []string{"internal/images/a.go", imports("images", module+"/internal/runtime/fake")}, "sibling"},
		{"not in the table", []string{"internal/stray/a.go", imports("stray")}, "is on no floor"},
		{"test package in a test", []string{"internal/agent/a_test.go", imports("agent", module+"/internal/lab")}, ""},
		{"test package shipped", []string{"internal/agent/a.go", imports("agent", module+"/internal/lab")}, "test package"},
		{"test program", []string{"cmd/x/a.go", imports("main", module+"/internal/lab", module+"/internal/daemon")}, ""},
		{"a program as library", []string{"internal/agent/a.go", imports("agent", module+"/cmd/x")}, "not libraries"},
		{"raft behind its fence", []string{"internal/raftlog/a.go", imports("raftlog", "github.com/hashicorp/raft")}, ""},
		{"raft elsewhere", []string{"internal/manager/a.go", imports("manager", "github.com/hashicorp/raft")}, "for raftlog only"},
		{"raft-wal elsewhere, in a test", []string{"internal/manager/a_test.go", imports("manager", "github.com/hashicorp/raft-wal/x")}, "for raftlog only"},
		{"bad name", []string{"hack/util/a.go", imports("util")}, "says nothing"},
		{"no package comment", []string{"internal/state/a.go", "package state\n"}, "no package comment"},
		{"dot import", []string{"internal/agent/a.go", "// Package agent is for a test.\npackage agent\nimport . \"strings\"\n"}, "dot import"},

		{"clock", []string{"internal/model/a.go", pure(`import "time"`, `func f() { _ = time.Now() }`)}, "time.Now"},
		{"clock under another name", []string{"internal/model/a.go", pure(`import clock "time"`, `func f() { clock.Sleep(1) }`)}, "time.Sleep"},
		{"timer", []string{"internal/model/a.go", pure(`import "time"`, `var newTimer = time.NewTimer`)}, "time.NewTimer"},
		{"deadline", []string{"internal/model/a.go", pure(`import "context"`, `func f() { context.WithTimeout(nil, 1) }`)}, "context.WithTimeout"},
		{"time as a value", []string{"internal/model/a.go", pure(`import "time"`, `func f(t time.Time) time.Time { return t.Add(time.Second) }`)}, ""},
		{"local named time", []string{"internal/model/a.go", pure(``, `func f(time interface{ Now() }) { time.Now() }`)}, ""},
		{"clock in a test", []string{"internal/model/a_test.go", pure(`import "time"`, `func f() { _ = time.Now() }`)}, ""},
		{"clock above", []string{"internal/agent/a.go", "// Package agent is for a test.\npackage agent\nimport \"time\"\nfunc f() { _ = time.Now() }\n"}, ""},
		{"random", []string{"internal/model/a.go", imports("model", "math/rand/v2")}, "randomness"},
		{"crypto random", []string{"internal/pki/a.go", imports("pki", "crypto/rand")}, "randomness"},
		{"files", []string{"internal/netplan/a.go", imports("netplan", "os")}, "file system"},
		{"file interface", []string{"internal/compose/a.go", imports("compose", "io/fs")}, ""},
		{"logger", []string{"internal/state/a.go", imports("state", "log/slog")}, "a logger"},
		{"http", []string{"internal/state/a.go", imports("state", "net/http")}, "the network"},
		{"addresses", []string{"internal/state/a.go", imports("state", "net/netip", "net/url")}, ""},
		{"dialling", []string{"internal/model/a.go", pure(`import "net"`, `func f() { net.Dial("", "") }`)}, "net.Dial"},
		{"net values", []string{"internal/model/a.go", pure(`import "net"`, `func f() net.IP { return net.ParseIP("") }`)}, ""},
		{"goroutine", []string{"internal/model/a.go", pure(``, `func f() { go f() }`)}, "goroutine"},

		{"long file", []string{"internal/model/a.go", long}, "more than 500"},
		{"long test", []string{"internal/model/a_test.go", long}, ""},
		{"generated in its place", []string{"internal/wire/pb/a.go", "// Code generated by x. DO NOT EDIT.\n\npackage pb\nvar x int\n" + strings.Repeat("//\n", 999)}, ""},
		{"generated elsewhere", []string{"internal/model/a.go", "// Code generated by x. DO NOT EDIT.\n\npackage model\n"}, "generated code outside"},
		{"init", []string{"cmd/x/a.go", "// Command x is for a test.\npackage main\nfunc init() {}\n"}, "func init"},
		{"method named init", []string{"cmd/x/a.go", "// Command x is for a test.\npackage main\ntype t int\nfunc (t) init() {}\n"}, ""},

		{"sentinel", []string{"internal/model/a.go", pure(`import "errors"`, `var ErrX = errors.New("x")`)}, ""},
		{"lookup table", []string{"internal/model/a.go", pure(``, "var names = map[int]string{1: \"a\"}\nfunc f() string { return names[1] }")}, ""},
		{"type assertion", []string{"internal/model/a.go", pure(``, `var _ interface{} = (*int)(nil)`)}, ""},
		{"embed", []string{"internal/agent/a.go", "// Package agent is for a test.\npackage agent\nimport \"embed\"\n\n//go:embed x\nvar files embed.FS\n"}, ""},
		{"empty variable", []string{"internal/model/a.go", pure(``, `var count int`)}, "no value yet"},
		{"lock", []string{"internal/model/a.go", pure(`import "sync"`, `var mu = sync.Mutex{}`)}, "a lock"},
		{"pointer", []string{"internal/model/a.go", pure(``, "type t struct{}\nvar x = &t{}")}, "a pointer"},
		{"map to fill", []string{"internal/model/a.go", pure(``, `var cache = make(map[string]int)`)}, "made empty"},
		{"assigned", []string{"internal/model/a.go", pure(``, "var n = 1\nfunc f() { n = 2 }")}, "assigned to"},
		{"assigned in another file", []string{"internal/model/a.go", pure(``, "var n = 1"), "internal/model/b.go", pure(``, "func f() { n = 2 }")}, "assigned to"},
		{"table written", []string{"internal/model/a.go", pure(``, "var m = map[int]int{}\nfunc f() { m[1] = 2 }")}, "assigned to"},
		{"table emptied", []string{"internal/model/a.go", pure(``, "var m = map[int]int{}\nfunc f() { delete(m, 1) }")}, "emptied"},
		{"counter", []string{"internal/model/a.go", pure(``, "var n = 1\nfunc f() { n++ }")}, "counted"},
		{"address", []string{"internal/model/a.go", pure(``, "var n = 1\nfunc f() *int { return &n }")}, "by address"},
		{"a local of the same name", []string{"internal/model/a.go", pure(``, "var n = 1\nfunc f() { n := n; n = 2; _ = n }")}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found := check(t, tt.files...)
			if tt.want == "" {
				for _, v := range found {
					t.Errorf("unexpected: %s", v)
				}
				return
			}
			if len(found) != 1 || !strings.Contains(found[0].String(), tt.want) {
				t.Errorf("want one violation about %q, got %v", tt.want, found)
			}
		})
	}
}

func TestFailuresAreReadable(t *testing.T) {
	found := check(t, "internal/model/a.go", imports("model", module+"/internal/state"))
	want := "internal/model/a.go:3: internal/model (floor 0) imports internal/state (floor 1): upward\n\tbecause imports go down only"
	if len(found) != 1 || !strings.HasPrefix(found[0].String(), want) {
		t.Errorf("got %v", found)
	}
}

func TestSkipsWhatIsNotOurs(t *testing.T) {
	found := check(t,
		"internal/model/testdata/a.go", "package x\nfunc init() {}\n",
		"hack/other/go.mod", "module other\n",
		"hack/other/a.go", "package x\nfunc init() {}\n",
		".cache/a.go", "package x\nfunc init() {}\n",
	)
	for _, v := range found {
		t.Errorf("unexpected: %s", v)
	}
}

func TestBrokenSourceIsAnError(t *testing.T) {
	if _, err := Check(fstest.MapFS{"a.go": {Data: []byte("package")}}, module); err == nil {
		t.Error("want an error")
	}
}
