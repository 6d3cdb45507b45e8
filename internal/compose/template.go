package compose

import (
	"fmt"
	"strings"
)

// template fills variables into a text. Its forms are $V, ${V}, and with : also for the empty value
// ${V-default}, ${V?message}, ${V+replacement}; $$ is a dollar sign. Defaults, messages and replacements may
// hold variables themselves.
type template struct {
	lookup func(string) (string, bool)
	// unset hears of variables that had no value and no default.
	unset func(name string)
}

// missing is a variable that the file says must be there.
type missing struct{ name, message string }

func (m missing) Error() string {
	if m.message == "" {
		return fmt.Sprintf("variable %s is not set, but required: set it, in the environment or in a file .env", m.name)
	}
	return fmt.Sprintf("variable %s is not set, but required: %s", m.name, m.message)
}

func (t template) fill(s string) (string, error) {
	if !strings.Contains(s, "$") {
		return s, nil
	}
	return t.fillDepth(s, 0)
}

func (t template) fillDepth(s string, depth int) (string, error) {
	if depth > 16 {
		return "", fmt.Errorf("variables are nested more than 16 deep")
	}
	var out strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if out.Len() > MaxFileBytes {
			return "", fmt.Errorf("with its variables filled in it is larger than %d KiB", MaxFileBytes>>10)
		}
		if i < 0 {
			out.WriteString(s)
			return out.String(), nil
		}
		out.WriteString(s[:i])
		s = s[i+1:]
		switch name := variableName(s); {
		case strings.HasPrefix(s, "$"):
			out.WriteByte('$')
			s = s[1:]
		case name != "":
			out.WriteString(t.value(name))
			s = s[len(name):]
		case strings.HasPrefix(s, "{"):
			end := closing(s)
			if end < 0 {
				return "", badTemplate("${" + s[1:])
			}
			v, err := t.braced(s[1:end], depth)
			if err != nil {
				return "", err
			}
			out.WriteString(v)
			s = s[end+1:]
		default:
			return "", badTemplate("$" + s)
		}
	}
}

func badTemplate(s string) error {
	if len(s) > 40 {
		s = s[:40] + "…"
	}
	return fmt.Errorf("%q is no variable: write ${NAME}, or $$ for a dollar sign", s)
}

func (t template) value(name string) string {
	v, ok := t.lookup(name)
	if !ok {
		t.unset(name)
	}
	return v
}

// braced is the value of what stands between braces.
func (t template) braced(s string, depth int) (string, error) {
	name := variableName(s)
	if name == "" {
		return "", badTemplate("${" + s + "}")
	}
	rest := s[len(name):]
	if rest == "" {
		return t.value(name), nil
	}
	emptyToo := strings.HasPrefix(rest, ":")
	rest = strings.TrimPrefix(rest, ":")
	if rest == "" {
		return "", badTemplate("${" + s + "}")
	}
	v, ok := t.lookup(name)
	has := ok && (v != "" || !emptyToo)
	op, word := rest[0], rest[1:]
	switch {
	case op == '-' && has, op == '?' && has:
		return v, nil
	case op == '+' && !has:
		return "", nil
	case op == '-', op == '+':
		return t.fillDepth(word, depth+1)
	case op == '?':
		message, err := t.fillDepth(word, depth+1)
		if err != nil {
			message = word
		}
		return "", missing{name, message}
	}
	return "", badTemplate("${" + s + "}")
}

// variableName is the name that a text begins with.
func variableName(s string) string {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return s[:i]
		}
	}
	return s
}

// closing is where the brace that s begins with is closed, or -1. Braces inside count only when they
// belong to a variable.
func closing(s string) int {
	open := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '{' && (i == 0 || s[i-1] == '$'):
			open++
		case s[i] == '}':
			if open--; open == 0 {
				return i
			}
		}
	}
	return -1
}
