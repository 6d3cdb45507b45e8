package agent

import (
	"errors"
	"fmt"
	"strings"
	gotemplate "text/template"
	"text/template/parse"
)

// expand fills the placeholders of a text that a user wrote, with data and functions of ours; what it becomes has a limit in
// bytes. Whatever the text is, it ends soon and takes a bounded amount of memory.
func expand(text string, data any, limit int, funcs gotemplate.FuncMap) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	t, err := gotemplate.New("expansion").Option("missingkey=error").Funcs(newBudget().funcs()).Funcs(funcs).Parse(text)
	if err != nil {
		return "", err
	}
	if t.Tree != nil {
		if err := straight(t.Root); err != nil {
			return "", err
		}
	}
	out := &bounded{left: limit, limit: limit}
	if err := t.Execute(out, data); err != nil {
		return "", err
	}
	return out.String(), nil
}

// straight refuses what could run for ever without writing a byte, which nobody could stop: loops, and templates that
// call each other. What is left takes as long as its text.
func straight(n parse.Node) error {
	var branch parse.BranchNode
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, child := range n.Nodes {
			if err := straight(child); err != nil {
				return err
			}
		}
		return nil
	case *parse.RangeNode:
		return errors.New("a placeholder cannot loop with range")
	case *parse.TemplateNode:
		return errors.New("a placeholder cannot call another template")
	case *parse.IfNode:
		branch = n.BranchNode
	case *parse.WithNode:
		branch = n.BranchNode
	default:
		return nil
	}
	return errors.Join(straight(branch.List), straight(branch.ElseList))
}

// bounded is a buffer that refuses to grow without end.
type bounded struct {
	strings.Builder
	left, limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, fmt.Errorf("it becomes longer than %d bytes", b.limit)
	}
	return b.Builder.Write(p)
}

// maxWork bounds the bytes that functions of one template may make, needed or not: a variable can be doubled again and
// again without a byte being written.
const maxWork = 64 << 20

// budget is what is left of maxWork.
type budget struct{ left int }

func newBudget() *budget { return &budget{maxWork} }

func (b *budget) spend(n int) error {
	if b.left -= n; b.left < 0 || n < 0 {
		return fmt.Errorf("its functions make more than %d bytes", maxWork)
	}
	return nil
}

// funcs are join, and those of text/template that make text, within the budget.
func (b *budget) funcs() gotemplate.FuncMap {
	type maker = func(...any) string
	counted := func(factor int, make maker) func(...any) (string, error) {
		return func(args ...any) (string, error) {
			if err := b.spend(factor * sizeOf(args)); err != nil {
				return "", err
			}
			return make(args...), nil
		}
	}
	return gotemplate.FuncMap{
		"join": func(parts ...string) (string, error) {
			if len(parts) == 0 {
				return "", nil
			}
			n := len(parts) * len(parts[0])
			for _, p := range parts[1:] {
				n += len(p)
			}
			if err := b.spend(n); err != nil {
				return "", err
			}
			return strings.Join(parts[1:], parts[0]), nil
		},
		"print": counted(1, fmt.Sprint), "println": counted(1, fmt.Sprintln),
		"html": counted(6, gotemplate.HTMLEscaper), "js": counted(6, gotemplate.JSEscaper), "urlquery": counted(3, gotemplate.URLQueryEscaper),
		"printf": func(format string, args ...any) (string, error) {
			if err := b.spend(formatted(format, args)); err != nil {
				return "", err
			}
			return fmt.Sprintf(format, args...), nil
		},
	}
}

// sizeOf is about how long values are as text.
func sizeOf(args []any) int {
	n := 0
	for _, a := range args {
		if s, ok := a.(string); ok {
			n += len(s) + 1
		} else {
			n += len(fmt.Sprint(a)) + 1 // of the scope, or a number: short
		}
	}
	return n
}

// formatted is at least how long a formatted text becomes: every verb may repeat the longest argument, in a form that is
// six times as long, and pad it to the width that its digits say.
func formatted(format string, args []any) int {
	width, digits := 0, 0
	for i := range len(format) {
		switch c := format[i]; {
		case c == '*':
			width = 1 << 20 // fmt's own limit
		case '0' <= c && c <= '9':
			digits = min(digits*10+int(c-'0'), 1<<20)
			width = max(width, digits)
		default:
			digits = 0
		}
	}
	longest := 0
	for i := range args {
		longest = max(longest, sizeOf(args[i:i+1]))
	}
	return len(format) + strings.Count(format, "%")*(6*longest+width)
}
