package floors

import (
	"go/ast"
	"path"
	"slices"
	"strconv"
	"strings"
)

const pureLaw = "floors 0 to 2 decide from their arguments alone, so that every manager, every replay and every test decides the same"

// impure are imports that a pure package must not have at all. A trailing slash
// stands for everything below.
func impure() map[string]string {
	return map[string]string{
		"os": "the file system and the environment", "os/": "processes and signals", "io/ioutil": "the file system",
		"embed":     "the file system",
		"math/rand": "randomness", "math/rand/": "randomness", "crypto/rand": "randomness",
		"log": "a logger", "log/": "a logger",
		"net/http": "the network", "net/http/": "the network", "net/rpc": "the network", "net/smtp": "the network",
		"syscall": "the kernel", "golang.org/x/sys/": "the kernel", "runtime": "the process it runs in", "runtime/": "the process it runs in",
		"github.com/vishvananda/": "the kernel", "google.golang.org/grpc": "the network", "google.golang.org/grpc/": "the network",
	}
}

// impureNames are members of otherwise harmless packages that read a clock, wait
// or touch the network.
func impureNames() map[string][]string {
	return map[string][]string{
		"time":          {"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "NewTimer", "NewTicker", "Tick", "Local", "LoadLocation"},
		"context":       {"WithTimeout", "WithTimeoutCause", "WithDeadline", "WithDeadlineCause"},
		"path/filepath": {"Abs", "EvalSymlinks", "Glob", "Walk", "WalkDir"},
		"fmt":           {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
	}
}

// pureNet is all that a pure package may use of package net: values and their text.
func pureNet() []string {
	return []string{"IP", "IPNet", "IPMask", "IPv4", "IPv4len", "IPv6len", "HardwareAddr", "ParseIP", "ParseCIDR", "ParseMAC",
		"CIDRMask", "JoinHostPort", "SplitHostPort"}
}

// purity judges one file of a pure package.
func (c *checker) purity(f source) {
	names := map[string]string{} // local name → import path
	for _, spec := range f.ast.Imports {
		target, _ := strconv.Unquote(spec.Path.Value)
		for bad, what := range impure() {
			if target == bad || strings.HasSuffix(bad, "/") && strings.HasPrefix(target, bad) {
				c.report(spec, "a pure package imports "+target+" ("+what+")", pureLaw)
			}
		}
		name := path.Base(target)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = target
	}
	members := impureNames()
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			c.report(n, "a pure package starts a goroutine", pureLaw)
		case *ast.SelectorExpr:
			id, ok := n.X.(*ast.Ident)
			if !ok || id.Obj != nil { // a local variable, not a package
				return true
			}
			target := names[id.Name]
			if slices.Contains(members[target], n.Sel.Name) ||
				target == "net" && !slices.Contains(pureNet(), n.Sel.Name) {
				c.report(n, "a pure package uses "+target+"."+n.Sel.Name, pureLaw)
			}
		}
		return true
	})
}
