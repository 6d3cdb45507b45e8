package floors

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// A Violation is one broken law.
type Violation struct {
	Pos  string // file, or file:line
	What string // what is wrong
	Why  string // the reason of the law
}

func (v Violation) String() string { return v.Pos + ": " + v.What + "\n\tbecause " + v.Why }

// source is one parsed file of the tree.
type source struct {
	path      string // slash-separated, from the root
	test      bool
	generated bool
	lines     int
	ast       *ast.File
}

// pkg is one directory of Go files.
type pkg struct {
	dir   string
	files []source
}

// checker collects violations of one tree.
type checker struct {
	module string
	fset   *token.FileSet
	found  []Violation
}

// Check reads the Go files below root and returns every broken law, in a stable
// order. module is the path of the module whose root that is. Directories with a
// go.mod of their own, testdata and hidden directories are not looked at.
func Check(root fs.FS, module string) ([]Violation, error) {
	c := &checker{module: module, fset: token.NewFileSet()}
	pkgs, err := c.load(root)
	if err != nil {
		return nil, err
	}
	for _, p := range pkgs {
		c.names(p)
		c.imports(p)
		c.globals(p)
		for _, f := range p.files {
			c.shape(f)
			if fl, ok := floorOf(p.dir); ok && fl.pure && !f.test {
				c.purity(f)
			}
		}
	}
	slices.SortStableFunc(c.found, func(a, b Violation) int { return strings.Compare(a.Pos, b.Pos) })
	return c.found, nil
}

func (c *checker) load(root fs.FS) ([]pkg, error) {
	byDir := map[string]*pkg{}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipDir(root, name, d.Name())
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := c.parse(root, name)
		if err != nil {
			return err
		}
		dir := path.Dir(name)
		if byDir[dir] == nil {
			byDir[dir] = &pkg{dir: dir}
		}
		byDir[dir].files = append(byDir[dir].files, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the source tree: %w", err)
	}
	var pkgs []pkg
	for _, p := range byDir {
		pkgs = append(pkgs, *p)
	}
	slices.SortFunc(pkgs, func(a, b pkg) int { return strings.Compare(a.dir, b.dir) })
	return pkgs, nil
}

func skipDir(root fs.FS, name, base string) error {
	if name == "." {
		return nil
	}
	if base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "node_modules" {
		return fs.SkipDir
	}
	if _, err := fs.Stat(root, path.Join(name, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

func (c *checker) parse(root fs.FS, name string) (source, error) {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return source{}, err
	}
	f, err := parser.ParseFile(c.fset, name, text, parser.ParseComments)
	if err != nil {
		return source{}, err
	}
	return source{
		path:      name,
		test:      strings.HasSuffix(name, "_test.go"),
		generated: ast.IsGenerated(f),
		lines:     bytes.Count(text, []byte("\n")),
		ast:       f,
	}, nil
}

func (c *checker) report(n ast.Node, what, why string) {
	p := c.fset.Position(n.Pos())
	c.found = append(c.found, Violation{fmt.Sprintf("%s:%d", p.Filename, p.Line), what, why})
}

// family is the top package below internal/ that dir belongs to, or "".
func family(dir string) string {
	rest, ok := strings.CutPrefix(dir, "internal/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

// floorOf finds the floor of a directory, or false when it is not below internal/
// or not in the table.
func floorOf(dir string) (floor, bool) {
	name := family(dir)
	for _, f := range table() {
		if slices.Contains(f.packages, name) {
			return f, true
		}
	}
	return floor{}, false
}

// names judges the package itself: that the table knows it, that its name says
// something, that it has a package comment.
func (c *checker) names(p pkg) {
	first := p.files[0].ast
	if family(p.dir) != "" {
		if _, ok := floorOf(p.dir); !ok {
			c.report(first.Name, "package "+p.dir+" is on no floor",
				"every package has its place: add it to the table in internal/floors/table.go")
		}
	}
	if slices.Contains([]string{"util", "utils", "common", "helpers", "misc", "base", "shared"}, path.Base(p.dir)) {
		c.report(first.Name, "package "+p.dir+" has a name that says nothing",
			"such packages collect what nobody wants to place; name the duty")
	}
	documented, onlyTests := false, true
	for _, f := range p.files {
		documented = documented || f.ast.Doc.Text() != "" || f.generated
		onlyTests = onlyTests && f.test
	}
	if !documented && !onlyTests {
		c.report(first.Name, "package "+p.dir+" has no package comment",
			"a reader needs its duty, its place in the flow and what it must not know")
	}
}

func (c *checker) imports(p pkg) {
	for _, f := range p.files {
		for _, spec := range f.ast.Imports {
			target, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				continue // the parser has checked it
			}
			if spec.Name != nil && spec.Name.Name == "." {
				c.report(spec, "dot import of "+target, "a reader, and this test, must see where a name comes from")
			}
			c.fenced(p, spec, target)
			if dir, ok := strings.CutPrefix(target, c.module+"/"); ok {
				c.floors(p, f, spec, dir)
			}
		}
	}
}

func (c *checker) fenced(p pkg, spec *ast.ImportSpec, target string) {
	for _, fence := range fences() {
		if target != fence.module && !strings.HasPrefix(target, fence.module+"/") {
			continue
		}
		// Mains may use anything: they wire one program each.
		inHouse := family(p.dir) != ""
		if fl, ok := floorOf(p.dir); ok && fl.level == testFloor {
			inHouse = false
		}
		if inHouse && !slices.Contains(fence.only, family(p.dir)) {
			c.report(spec, fmt.Sprintf("%s imports %s, which is for %s only", p.dir, target, strings.Join(fence.only, ", ")), fence.why)
		}
	}
}

// floors judges one import of a package of this module.
func (c *checker) floors(p pkg, f source, spec *ast.ImportSpec, dir string) {
	const law = "imports go down only: what two packages share belongs on a lower floor, and what joins them is wired in daemon"
	if family(dir) == "" {
		c.report(spec, p.dir+" imports "+dir, "programs and scripts are not libraries: only packages below internal/ are imported")
		return
	}
	to, ok := floorOf(dir)
	if !ok {
		return // reported where that package is declared
	}
	from, inHouse := floorOf(p.dir)
	if to.level == testFloor {
		if inHouse && from.level != testFloor && !f.test {
			c.report(spec, p.dir+" imports the test package "+dir, "what is made for tests must not ship")
		}
		return
	}
	if !inHouse || from.level == testFloor || family(dir) == family(p.dir) {
		return
	}
	switch {
	case to.level > from.level:
		c.report(spec, fmt.Sprintf("%s (floor %d) imports %s (floor %d): upward", p.dir, from.level, dir, to.level), law)
	case to.level == from.level && !f.test: // a test may bring two neighbours together
		c.report(spec, fmt.Sprintf("%s imports its sibling %s (both on floor %d)", p.dir, dir, to.level), law)
	}
}

// shape judges one file's length and origin.
func (c *checker) shape(f source) {
	dir := path.Dir(f.path)
	if f.generated {
		if dir != generatedHome {
			c.report(f.ast.Name, "generated code outside of "+generatedHome, "generated code lives in one place, where nobody edits it by hand")
		}
		return
	}
	limit := maxLines
	if f.test {
		limit = maxTestLines
	}
	if f.lines > limit {
		c.report(f.ast.Name, fmt.Sprintf("%d lines, more than %d", f.lines, limit), "a file this long hides a noun that wants a file of its own")
	}
}
