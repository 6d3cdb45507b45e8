package compose

import (
	"fmt"
	"strings"
	"unicode"
)

// dotenv reads a file of variables in Compose's notation: KEY=VALUE or KEY: VALUE, `export` before it, #
// comments; a value in single quotes is taken as it is, in double quotes it may have escapes and
// variables, and both may run over lines; without quotes it may have variables and ends at " #". A
// bare KEY is looked up.
type dotenv struct {
	file   string
	line   int
	rest   string
	out    map[string]string
	lookup func(string) (string, bool)
	warn   func(pos Pos, format string, args ...any)
}

func (l *loader) dotenv(file string, data []byte, lookup func(string) (string, bool)) (map[string]string, error) {
	d := dotenv{file: file, line: 1, rest: strings.TrimPrefix(string(data), "\xef\xbb\xbf"), out: map[string]string{}, lookup: lookup}
	d.warn = func(pos Pos, format string, args ...any) { l.warn(pos, "", "", format, args...) }
	for d.skip(); d.rest != ""; d.skip() {
		if err := d.statement(); err != nil {
			return nil, Problems{{Pos{File: file, Line: d.line}, err.Error()}}
		}
	}
	return d.out, nil
}

// take moves n bytes on.
func (d *dotenv) take(n int) {
	d.line += strings.Count(d.rest[:n], "\n")
	d.rest = d.rest[n:]
}

// skip passes white space and comments.
func (d *dotenv) skip() {
	for {
		n := len(d.rest) - len(strings.TrimLeftFunc(d.rest, unicode.IsSpace))
		d.take(n)
		if !strings.HasPrefix(d.rest, "#") {
			return
		}
		if n = strings.IndexByte(d.rest, '\n'); n < 0 {
			n = len(d.rest)
		}
		d.take(n)
	}
}

func (d *dotenv) statement() error {
	if after, ok := strings.CutPrefix(d.rest, "export"); ok && len(after) > 0 && (after[0] == ' ' || after[0] == '\t') {
		d.take(len(d.rest) - len(strings.TrimLeft(after, " \t")))
	}
	end := strings.IndexAny(d.rest, "=:\n")
	inherited := end < 0 || d.rest[end] == '\n'
	if end < 0 {
		end = len(d.rest)
	}
	key := strings.TrimRightFunc(d.rest[:end], unicode.IsSpace)
	for _, r := range key {
		if !unicode.IsLetter(r) && !unicode.IsNumber(r) && !strings.ContainsRune("_.-[]", r) {
			return fmt.Errorf("%q is no name of a variable: a line is KEY=VALUE", key)
		}
	}
	if key == "" {
		return fmt.Errorf("there is no variable name before the =")
	}
	if inherited {
		d.take(end)
		if v, ok := d.get(key); ok {
			d.out[key] = v
		}
		return nil
	}
	d.take(end + 1)
	d.take(len(d.rest) - len(strings.TrimLeft(d.rest, " \t")))
	v, err := d.value()
	d.out[key] = v
	return err
}

func (d *dotenv) get(key string) (string, bool) {
	if v, ok := d.lookup(key); ok {
		return v, true
	}
	v, ok := d.out[key]
	return v, ok
}

func (d *dotenv) value() (string, error) {
	if d.rest == "" || d.rest[0] != '"' && d.rest[0] != '\'' {
		line, _, _ := strings.Cut(d.rest, "\n")
		v, _, _ := strings.Cut(line, " #")
		v, err := d.fill(strings.TrimRightFunc(v, unicode.IsSpace))
		d.take(len(line))
		return v, err
	}
	quote := d.rest[0]
	for i := 1; i < len(d.rest); i++ {
		switch d.rest[i] {
		case '\\':
			i++
		case quote:
			v := d.rest[1:i]
			var err error
			if quote == '"' {
				v, err = d.fill(unescape(v))
			} else {
				v = strings.ReplaceAll(v, `\'`, "'")
			}
			d.take(i + 1)
			return v, err
		}
	}
	return "", fmt.Errorf("the quote that begins here is never closed")
}

func (d *dotenv) fill(s string) (string, error) {
	pos := Pos{File: d.file, Line: d.line}
	t := template{lookup: d.get, unset: func(name string) {
		d.warn(pos, "variable %s is not set: an empty text takes its place", name)
	}}
	return t.fill(s)
}

// unescape works out \n, \t, \", \\ and the like; \$ becomes $$, which is a dollar sign.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	known := map[byte]string{'n': "\n", 't': "\t", 'r': "\r", 'a': "\a", 'b': "\b", 'f': "\f", 'v': "\v", '\\': `\`, '"': `"`, '$': "$$"}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			if r, ok := known[s[i+1]]; ok {
				out.WriteString(r)
				i++
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
