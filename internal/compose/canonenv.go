package compose

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"unicode"
	"unicode/utf8"
)

// env reads a service's env files into its environment, whose own entries win, and fills in
// entries without a value from the variables at hand, as Docker does.
func (c canon) env(m dict, at []string) {
	oneToList(m, "env_file")
	out := dict{}
	if c.d.dir != c.l.dir {
		defer eachItem(m, "env_file", c.absPath) // what is printed is read in the project's directory
	}
	for i, v := range list(m, "env_file") {
		vars := c.envFile(v, append(at, fmt.Sprint(i)))
		c.fillEnv(vars)
		maps.Copy(out, vars)
	}
	toMap(m, "environment", true)
	own := sub(m, "environment")
	c.fillEnv(own)
	maps.Copy(out, own)
	if len(out) > 0 {
		m["environment"] = out
	} else {
		delete(m, "environment")
	}
}

func (c canon) absPath(v any) any {
	if long, ok := v.(dict); ok {
		long = maps.Clone(long)
		long["path"] = c.l.abs(c.d.dir, str(long, "path"))
		return long
	}
	return c.l.abs(c.d.dir, text(v))
}

func (c canon) fillEnv(vars dict) {
	for k, v := range vars {
		if v != nil && v != "" {
			continue
		}
		if x, ok := c.d.lookup(k); ok {
			vars[k] = x
		}
	}
}

// envFile reads one entry of env_file. The short form, a path, is Docker's: a line is KEY=VALUE and the value
// is what stands there, quotes included. The long form is Compose's: quotes and variables are worked out
// unless its format is raw.
func (c canon) envFile(v any, at []string) dict {
	name, format, required := text(v), "raw", true
	if long, ok := v.(dict); ok {
		name, format = str(long, "path"), str(long, "format")
		if r, ok := long["required"].(bool); ok {
			required = r
		}
	}
	if c.raw(name) {
		return dict{}
	}
	data, err := c.l.read(c.l.abs(c.d.dir, name), MaxFileBytes)
	if err != nil {
		if required {
			c.fail(at, "env file %s: %v: make it, or write `path: %s` with `required: false`", name, explainRead(err), name)
		}
		return dict{}
	}
	if format == "raw" {
		return c.rawEnv(c.l.shown(c.d, name), data)
	}
	return c.dotenv(name, data)
}

func (c canon) dotenv(name string, data []byte) dict {
	vars, err := c.l.dotenv(c.l.shown(c.d, name), data, c.d.lookup)
	if p, ok := AsProblems(err); ok {
		c.l.problems = append(c.l.problems, p...)
	}
	out := dict{}
	for k, v := range vars {
		out[k] = v
	}
	return out
}

func (c canon) rawEnv(name string, data []byte) dict {
	out := dict{}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	for i, line := range strings.Split(string(data), "\n") {
		pos := Pos{File: name, Line: i + 1}
		line = strings.TrimLeftFunc(strings.TrimSuffix(line, "\r"), unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, has := strings.Cut(line, "=")
		switch {
		case !utf8.ValidString(line):
			c.l.problems.add(pos, "this line is not UTF-8")
		case key == "":
			c.l.problems.add(pos, "there is no variable name before the =")
		case strings.ContainsAny(key, " \t"):
			c.l.problems.add(pos, "the variable name %q has a space in it", key)
		case has:
			out[key] = value
			if quoted(value) {
				c.l.warn(pos, "", key, "keeps its quotes: docker stack reads env files so; write `env_file: [{path: %s}]` to have them removed", name)
			}
		default:
			if v, ok := c.d.lookup(key); ok {
				out[key] = v
			}
		}
	}
	return out
}

func quoted(s string) bool {
	return len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0]
}

// labelFiles reads files of KEY=VALUE into the labels.
func (c canon) labelFiles(m dict, at []string) {
	files := list(m, "label_file")
	if len(files) == 0 {
		return
	}
	out := dict{}
	for i, f := range files {
		data, err := c.l.read(c.l.abs(c.d.dir, text(f)), MaxFileBytes)
		if err != nil {
			c.fail(append(at, fmt.Sprint(i)), "label file %s: %v", text(f), explainRead(err))
			continue
		}
		maps.Copy(out, c.dotenv(text(f), data))
	}
	maps.Copy(out, sub(m, "labels"))
	m["labels"] = out
}

// extraHosts brings HOST=IP, HOST:IP and mappings into HOST:IP.
func (c canon) extraHosts(m dict, at []string) {
	var out []any
	add := func(host string, ip any, key string) {
		s := text(ip)
		if len(s) > 2 && s[0] == '[' && s[len(s)-1] == ']' {
			s = s[1 : len(s)-1]
		}
		if s == "" || host == "" {
			c.fail(append(at, key), "an extra host is HOST:IP")
		}
		out = append(out, host+":"+s)
	}
	switch v := m["extra_hosts"].(type) {
	case dict:
		for _, host := range sorted(v) {
			ips, many := v[host].([]any)
			if !many {
				ips = []any{v[host]}
			}
			for _, ip := range ips {
				add(host, ip, host)
			}
		}
	case []any:
		for i, x := range v {
			host, ip, ok := strings.Cut(text(x), "=")
			if !ok {
				host, ip, _ = strings.Cut(text(x), ":")
			}
			add(host, ip, fmt.Sprint(i))
		}
	default:
		return
	}
	m["extra_hosts"] = out
}
