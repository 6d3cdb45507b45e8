package floors

import (
	"go/ast"
	"go/token"
	"strings"
)

const (
	globalLaw = "state at package level is shared by all daemons and tests in one process; put it into a value that someone makes"
	initLaw   = "init runs in every process that links the package, the shims too, and in an order that nobody reads"
)

// globals judges the package-level variables and init functions of a package.
// A variable is fine when it has its value from the start and nothing in the
// package changes it: errors, compiled patterns, lookup tables, build versions.
func (c *checker) globals(p pkg) {
	vars := map[string]*ast.ValueSpec{}
	for _, f := range p.files {
		if f.test || f.generated {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.Name == "init" {
					c.report(d, "func init in "+p.dir, initLaw)
				}
			case *ast.GenDecl:
				if d.Tok == token.VAR {
					c.collectVars(d, vars)
				}
			}
		}
	}
	for _, f := range p.files {
		if !f.test && !f.generated {
			c.writes(f, vars)
		}
	}
}

func (c *checker) collectVars(d *ast.GenDecl, vars map[string]*ast.ValueSpec) {
	for _, s := range d.Specs {
		spec := s.(*ast.ValueSpec)
		for i, name := range spec.Names {
			if name.Name == "_" {
				continue // an assertion about types
			}
			vars[name.Name] = spec
			switch {
			case len(spec.Values) == 0 && !embedded(d.Doc) && !embedded(spec.Doc):
				c.report(name, "package-level variable "+name.Name+" has no value yet, so something must set it later", globalLaw)
			case i < len(spec.Values):
				if what := mutable(spec.Values[i]); what != "" {
					c.report(name, "package-level variable "+name.Name+" is "+what, globalLaw)
				}
			}
		}
	}
}

func embedded(doc *ast.CommentGroup) bool {
	if doc == nil {
		return false
	}
	for _, line := range doc.List {
		if strings.HasPrefix(line.Text, "//go:embed ") {
			return true
		}
	}
	return false
}

// mutable says what makes an initial value changeable, or "".
func mutable(v ast.Expr) string {
	switch v := v.(type) {
	case *ast.UnaryExpr:
		if v.Op == token.AND {
			return "a pointer to a value that can be changed"
		}
	case *ast.CallExpr:
		if id, ok := v.Fun.(*ast.Ident); ok && (id.Name == "make" || id.Name == "new") {
			return "made empty, to be filled"
		}
	case *ast.CompositeLit:
		if sel, ok := v.Type.(*ast.SelectorExpr); ok {
			if id, ok := sel.X.(*ast.Ident); ok && (id.Name == "sync" || id.Name == "atomic") {
				return "a lock, a pool or a counter"
			}
		}
	}
	return ""
}

// writes reports statements that change one of the package's variables.
func (c *checker) writes(f source, vars map[string]*ast.ValueSpec) {
	report := func(e ast.Expr, how string) {
		if name, ok := target(e, vars); ok {
			c.report(e, "package-level variable "+name+" is "+how, globalLaw)
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, l := range n.Lhs {
					report(l, "assigned to")
				}
			}
		case *ast.IncDecStmt:
			report(n.X, "counted with")
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				report(n.X, "handed out by address")
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "delete" || id.Name == "clear") && len(n.Args) > 0 {
				report(n.Args[0], "emptied")
			}
		}
		return true
	})
}

// target finds the package-level variable at the root of an expression such as
// x, x[i] or x.field.
func target(e ast.Expr, vars map[string]*ast.ValueSpec) (string, bool) {
	for {
		switch x := e.(type) {
		case *ast.ParenExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.Ident:
			spec, ok := vars[x.Name]
			// The parser resolves names within a file: one that belongs to
			// something else is a local of the same name.
			if !ok || x.Obj != nil && x.Obj.Decl != spec {
				return "", false
			}
			return x.Name, true
		default:
			return "", false
		}
	}
}
