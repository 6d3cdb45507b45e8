package compose

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// files loads and merges the files of the options.
func (l *loader) files() (*model, error) {
	m := newModel()
	for _, f := range l.opt.Files {
		docs, err := l.open(f)
		if err != nil {
			return nil, err
		}
		for _, d := range docs {
			one, err := l.resolve(d, l.vars, nil)
			if err != nil {
				return nil, err
			}
			m.add(one, d.resets)
		}
	}
	if n := len(sub(m.value, "services")); n > MaxServices {
		return nil, fmt.Errorf("the files hold %d services: the most is %d", n, MaxServices)
	}
	return m, nil
}

// open reads one of the main files.
func (l *loader) open(f string) ([]*doc, error) {
	if f == "-" {
		if len(l.opt.Stdin) > MaxFileBytes {
			return nil, fmt.Errorf("standard input is larger than %d KiB", MaxFileBytes>>10)
		}
		return l.parse("standard input", "-", l.dir, l.opt.Stdin, l.vars)
	}
	abs := l.abs(path.Join("/", l.opt.Dir), f)
	data, err := l.read(abs, MaxFileBytes)
	if err != nil {
		return nil, Problems{{Pos{File: f}, explainRead(err).Error()}}
	}
	return l.parse(f, abs, l.dir, data, l.vars)
}

// resolve makes a model of one document: validated, in the long form, with what it includes and what
// its services extend.
func (l *loader) resolve(d *doc, vars map[string]string, chain []string) (*model, error) {
	m, err := l.unextended(d, vars, chain)
	if err != nil {
		return nil, err
	}
	x := extender{l: l, vars: vars, chain: append(slices.Clone(chain), d.path), files: map[string]*model{}}
	for _, name := range sorted(sub(m.value, "services")) {
		if _, ok := sub(sub(m.value, "services"), name)["extends"]; ok {
			x.extend(m, d, name, nil)
		}
	}
	return m, l.problems.err()
}

// unextended is a document with what it includes, but with `extends` still in place.
func (l *loader) unextended(d *doc, vars map[string]string, chain []string) (*model, error) {
	if err := l.validate(d); err != nil {
		return nil, err
	}
	m := newModel()
	includes, _ := d.value["include"].([]any)
	for i, inc := range includes {
		one, err := l.include(d, inc, []string{"include", fmt.Sprint(i)}, vars, append(slices.Clone(chain), d.path))
		if err != nil {
			return nil, err
		}
		m.add(one, nil)
	}
	m.name = "" // an included file does not name the stack
	delete(m.value, "name")
	value := l.canon(d)
	if err := l.problems.err(); err != nil {
		return nil, err
	}
	delete(value, "include")
	m.add(modelOf(d, value), d.resets)
	return m, nil
}

// include loads what one entry of `include` names: a file, and files that are merged over it, with a
// directory and variables of their own.
func (l *loader) include(d *doc, entry any, at []string, vars map[string]string, chain []string) (*model, error) {
	long, ok := entry.(dict)
	if !ok {
		long = dict{"path": entry}
	}
	fail := func(format string, args ...any) error {
		return Problems{{d.at(at...), fmt.Sprintf(format, args...)}}
	}
	if len(chain) > MaxIncludeDepth {
		return nil, fail("include is nested more than %d deep", MaxIncludeDepth)
	}
	oneToList(long, "path")
	oneToList(long, "env_file")
	paths := texts(long, "path")
	if len(paths) == 0 {
		return nil, fail("include needs a path")
	}
	dir := path.Dir(l.abs(d.dir, paths[0]))
	if p := str(long, "project_directory"); p != "" {
		dir = l.abs(d.dir, p)
	}
	vars, err := l.includeVars(d, long, dir, vars)
	if err != nil {
		return nil, fail("%v", err)
	}
	m := newModel()
	for _, p := range paths {
		abs := l.abs(d.dir, p)
		if slices.Contains(chain, abs) {
			return nil, fail("include goes round in a circle: %s: remove one", strings.Join(append(chain, abs), " includes "))
		}
		data, err := l.read(abs, MaxFileBytes)
		if err != nil {
			return nil, fail("include %s: %v", p, explainRead(err))
		}
		docs, err := l.parse(l.shown(d, p), abs, dir, data, vars)
		if err != nil {
			return nil, err
		}
		for _, child := range docs {
			one, err := l.resolve(child, vars, chain)
			if err != nil {
				return nil, err
			}
			m.add(one, child.resets)
		}
	}
	return m, nil
}

// includeVars are the variables of an included file: those of the including one win over its own.
func (l *loader) includeVars(d *doc, long dict, dir string, vars map[string]string) (map[string]string, error) {
	files := texts(long, "env_file")
	if len(files) == 0 {
		f := path.Join(dir, ".env")
		if dir == l.dir || !l.exists(f) {
			return vars, nil
		}
		files = []string{f}
	}
	files = slices.DeleteFunc(files, func(f string) bool { return f == "/dev/null" })
	return l.variables(d.dir, files, vars)
}

func (l *loader) exists(abs string) bool {
	f, err := l.fsys.Open(fsPath(abs))
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	return err == nil && !info.IsDir()
}

// shown is how messages name a file that another one refers to.
func (l *loader) shown(d *doc, p string) string {
	if path.IsAbs(p) || d.path == "-" {
		return p
	}
	return path.Join(path.Dir(d.name), p)
}
