package compose

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// dict is a YAML mapping. Lists are []any, the rest string, int, float64, bool or nil.
type dict = map[string]any

// doc is one YAML document: what it says, and its tree to find lines in.
type doc struct {
	name   string // as the user named the file
	dir    string // absolute; relative paths in the document start here
	path   string // absolute path of the file, "-" for standard input
	root   *yaml.Node
	value  dict
	resets [][]string // paths whose earlier value is thrown away: !reset and !override
	lookup func(string) (string, bool)
}

// parse reads the documents of one file.
func (l *loader) parse(name, abs, dir string, data []byte, vars map[string]string) ([]*doc, error) {
	var out []*doc
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var root yaml.Node
		err := dec.Decode(&root)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, Problems{yamlProblem(name, err)}
		}
		d := &doc{name: name, path: abs, dir: dir, root: &root, lookup: func(k string) (string, bool) { v, ok := vars[k]; return v, ok }}
		b := builder{l: l, d: d, casts: casts()}
		v, _ := b.value(&root, nil, 0)
		if err := l.problems.err(); err != nil {
			return nil, err
		}
		m, ok := v.(dict)
		if !ok && v != nil {
			return nil, Problems{{d.pos(&root), "the file must be a mapping, with `services:` at its top"}}
		}
		d.value = m
		if len(m) > 0 {
			out = append(out, d)
		}
	}
	if len(out) == 0 {
		return nil, Problems{{Pos{File: name}, "the file is empty: it needs `services:`"}}
	}
	return out, nil
}

var yamlLine = regexp.MustCompile(`line (\d+)`)

// yamlProblem finds the line in an error of the YAML library.
func yamlProblem(name string, err error) Problem {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	p := Problem{Pos{File: name}, "this is not YAML: " + text}
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
	}
	return p
}

func (d *doc) pos(n *yaml.Node) Pos {
	if n == nil {
		return Pos{File: d.name}
	}
	return Pos{d.name, n.Line, n.Column}
}

// builder makes values of YAML nodes: it follows aliases and merge keys, fills variables in, and
// refuses what YAML libraries let pass.
type builder struct {
	l     *loader
	d     *doc
	casts []cast
	full  bool // a bound was hit: say so once
}

func (b *builder) fail(n *yaml.Node, format string, args ...any) {
	b.l.problems.add(b.d.pos(n), format, args...)
}

// tooMuch reports a bound that was hit, once.
func (b *builder) tooMuch(n *yaml.Node, format string, args ...any) {
	if !b.full {
		b.fail(n, format, args...)
	}
	b.full = true
}

// value is what a node says; ok is false when it says that there is nothing.
func (b *builder) value(n *yaml.Node, path []string, depth int) (v any, ok bool) {
	b.l.nodes++
	if b.full || b.l.nodes > MaxNodes || depth > MaxDepth {
		b.tooMuch(n, "the file holds more than %d values or nests them more than %d deep once its aliases are followed", MaxNodes, MaxDepth)
		return nil, true
	}
	switch n.Kind {
	case yaml.DocumentNode:
		if len(n.Content) == 0 {
			return nil, true
		}
		return b.value(n.Content[0], path, depth+1)
	case yaml.AliasNode:
		return b.value(n.Alias, path, depth+1)
	}
	switch n.Tag {
	case "!reset":
		b.d.resets = append(b.d.resets, slices.Clone(path))
		return nil, false
	case "!override":
		b.d.resets = append(b.d.resets, slices.Clone(path))
	}
	switch n.Kind {
	case yaml.MappingNode:
		return b.mapping(n, path, depth), true
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for i, c := range n.Content {
			if v, ok := b.value(c, append(path, strconv.Itoa(i)), depth+1); ok {
				list = append(list, v)
			}
		}
		return list, true
	}
	return b.scalar(n, path), true
}

func (b *builder) mapping(n *yaml.Node, path []string, depth int) dict {
	out := dict{}
	lines := map[string]int{}
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, c := n.Content[i], n.Content[i+1]
		if k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		if k.ShortTag() == "!!merge" {
			merges = append(merges, c)
			continue
		}
		if k.Kind != yaml.ScalarNode || k.ShortTag() != "!!str" {
			b.fail(k, "a key must be a text: put %s in quotes", k.Value)
			continue
		}
		if at, twice := lines[k.Value]; twice {
			b.fail(k, "key %s is here twice, the first time on line %d: remove one", k.Value, at)
			continue
		}
		lines[k.Value] = k.Line
		if v, ok := b.value(c, append(path, k.Value), depth+1); ok {
			out[k.Value] = v
		}
	}
	for _, m := range merges {
		b.merge(m, out, path, depth)
	}
	return out
}

// merge adds the keys of `<<: *a` or `<<: [*a, *b]` that are not there yet.
func (b *builder) merge(n *yaml.Node, into dict, path []string, depth int) {
	if n.Kind == yaml.SequenceNode {
		for _, c := range n.Content {
			b.merge(c, into, path, depth)
		}
		return
	}
	v, _ := b.value(n, path, depth+1)
	m, ok := v.(dict)
	if !ok {
		b.fail(n, "what `<<` merges must be a mapping")
		return
	}
	for k, v := range m {
		if _, there := into[k]; !there {
			into[k] = v
		}
	}
}

func (b *builder) scalar(n *yaml.Node, path []string) any {
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			b.fail(n, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		}
		return v
	case "!!str", "!!timestamp", "!override":
		return b.text(n, path)
	}
	b.fail(n, "tag %s means nothing in a Compose file: remove it", n.ShortTag())
	return nil
}

// text fills in variables and makes a number or boolean of the result where one belongs.
func (b *builder) text(n *yaml.Node, path []string) any {
	if b.l.filled += len(n.Value); b.l.filled > MaxTextBytes {
		b.tooMuch(n, "the texts of the file are longer than %d MiB once its aliases are followed", MaxTextBytes>>20)
		return ""
	}
	if b.l.opt.SkipInterpolation {
		return n.Value
	}
	t := template{lookup: b.d.lookup, unset: func(name string) {
		b.l.warn(b.d.pos(n), "", "", "variable %s is not set: an empty text takes its place", name)
	}}
	s, err := t.fill(n.Value)
	if err != nil {
		b.fail(n, "%s: %v", strings.Join(path, "."), err)
		return ""
	}
	b.l.filled += len(s) - len(n.Value)
	for _, c := range b.casts {
		if !c.at(path) {
			continue
		}
		v, err := c.to(s)
		if err != nil {
			b.fail(n, "%s: %v", strings.Join(path, "."), err)
			return s
		}
		return v
	}
	return s
}

// at is the place of a value: as deep along the path as the document goes. A step finds a
// mapping's key (its position), a list's index, or the item of a list that is named so (KEY, KEY=…,
// KEY:…, source: KEY).
func (d *doc) at(path ...string) Pos {
	pos, _ := d.find(path...)
	return pos
}

// find says, besides, how many steps it went.
func (d *doc) find(path ...string) (Pos, int) {
	n := d.root
	for n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	pos := d.pos(n)
	for i, step := range path {
		key, next := child(n, step, 0)
		if next == nil {
			return pos, i
		}
		pos, n = d.pos(key), next
	}
	return pos, len(path)
}

func child(n *yaml.Node, step string, depth int) (key, value *yaml.Node) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case depth > MaxDepth:
		return nil, nil
	case n.Kind == yaml.SequenceNode:
		return item(n, step)
	case n.Kind != yaml.MappingNode:
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == step {
			return n.Content[i], n.Content[i+1]
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].ShortTag() != "!!merge" {
			continue
		}
		from := []*yaml.Node{n.Content[i+1]}
		if from[0].Kind == yaml.SequenceNode {
			from = from[0].Content
		}
		for _, m := range from {
			if k, v := child(m, step, depth+1); v != nil {
				return k, v
			}
		}
	}
	return nil, nil
}

func item(n *yaml.Node, step string) (key, value *yaml.Node) {
	if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
		return n.Content[i], n.Content[i]
	}
	for _, c := range n.Content {
		if c.Kind == yaml.ScalarNode && (c.Value == step || strings.HasPrefix(c.Value, step+"=") || strings.HasPrefix(c.Value, step+":")) {
			return c, c
		}
		if c.Kind == yaml.MappingNode {
			if _, source := child(c, "source", 0); source != nil && source.Value == step {
				return c, c
			}
		}
	}
	return nil, nil
}
