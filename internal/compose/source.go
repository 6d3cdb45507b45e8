package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"strings"
)

// loader is one Load: what it may read, what it has counted, what it has found.
type loader struct {
	ctx      context.Context
	fsys     fs.FS
	opt      Options
	dir      string            // the project's: relative paths of the main files start here
	vars     map[string]string // Options.Env over env files
	opened   int
	nodes    int
	filled   int // bytes of all texts
	problems Problems
	warnings []Warning
}

func newLoader(ctx context.Context, fsys fs.FS, opt Options) (*loader, error) {
	if len(opt.Files) == 0 {
		return nil, errors.New("no Compose file given: name one with --compose-file")
	}
	l := &loader{ctx: ctx, fsys: fsys, opt: opt, dir: path.Join("/", opt.Dir)}
	if f := opt.Files[0]; f != "-" {
		l.dir = path.Dir(l.abs(path.Join("/", opt.Dir), f))
	}
	files := opt.EnvFiles
	if len(files) == 0 {
		if info, err := fs.Stat(fsys, fsPath(path.Join(l.dir, ".env"))); err == nil && !info.IsDir() {
			files = []string{path.Join(l.dir, ".env")}
		}
	}
	var err error
	l.vars, err = l.variables(path.Join("/", opt.Dir), files, opt.Env)
	return l, err
}

// variables reads env files; what env has wins over them, and a later file over an earlier one.
func (l *loader) variables(dir string, files []string, env map[string]string) (map[string]string, error) {
	out := map[string]string{}
	for _, f := range files {
		data, err := l.read(l.abs(dir, f), MaxFileBytes)
		if err != nil {
			return nil, fmt.Errorf("env file %s: %w", f, explainRead(err))
		}
		vars, err := l.dotenv(l.brief(f), data, func(k string) (string, bool) {
			if v, ok := env[k]; ok {
				return v, true
			}
			v, ok := out[k]
			return v, ok
		})
		if err != nil {
			return nil, err
		}
		maps.Copy(out, vars)
	}
	maps.Copy(out, env)
	return out, nil
}

// brief is a path as messages show it: without the working directory.
func (l *loader) brief(p string) string {
	if rest, ok := strings.CutPrefix(p, path.Join("/", l.opt.Dir)+"/"); ok {
		return rest
	}
	return p
}

// abs resolves a path against a directory.
func (l *loader) abs(dir, p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join(dir, p)
}

// home expands a leading ~.
func (l *loader) home(p string) string {
	if home, ok := l.vars["HOME"]; ok && strings.HasPrefix(p, "~") {
		return strings.Replace(p, "~", home, 1)
	}
	return p
}

// fsPath is an absolute path as an fs.FS wants it.
func fsPath(abs string) string {
	if p := strings.TrimPrefix(path.Clean(abs), "/"); p != "" {
		return p
	}
	return "."
}

// read reads a whole file, up to a limit.
func (l *loader) read(abs string, limit int) ([]byte, error) {
	if err := l.ctx.Err(); err != nil {
		return nil, err
	}
	if l.opened++; l.opened > MaxFiles {
		return nil, fmt.Errorf("more than %d files are needed: is there a loop of include or extends?", MaxFiles)
	}
	f, err := l.fsys.Open(fsPath(abs))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, errors.New("is a directory")
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("is larger than %d KiB", limit>>10)
	}
	return data, nil
}

// explainRead cuts an error of the file system down to its reason.
func explainRead(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no such file")
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
