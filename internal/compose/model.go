package compose

import (
	"maps"
	"slices"
	"strings"
)

// model is one or more documents in the long form.
type model struct {
	name    string // top-level `name:`
	value   dict
	origins map[string][]origin // "services/web" → where it is written, what counts most first
}

// origin is a place where a service, network, volume, secret or config is written.
type origin struct {
	d    *doc
	path []string // of the entry in that document
}

func newModel() *model { return &model{value: dict{}, origins: map[string][]origin{}} }

// sections are the parts of a file that hold named entries.
func sections() []string {
	return []string{"services", "networks", "volumes", "secrets", "configs", "models", "jobs"}
}

// modelOf is the model of one document in its long form.
func modelOf(d *doc, value dict) *model {
	m := newModel()
	m.value = value
	m.name = str(value, "name")
	for _, s := range sections() {
		for name := range sub(value, s) {
			m.origins[s+"/"+name] = []origin{{d, []string{s, name}}}
		}
	}
	return m
}

// at is the place of something in an entry: where it is written by the document that counts most.
func (m *model) at(section, name string, keys ...string) Pos {
	var best Pos
	deepest := -1
	for _, o := range m.origins[section+"/"+name] {
		pos, deep := o.d.find(append(slices.Clone(o.path), keys...)...)
		if deep -= len(o.path); deep > deepest {
			best, deepest = pos, deep
		}
		if deep == len(keys) {
			break
		}
	}
	return best
}

// add merges a later model over this one. What resets names is forgotten before.
func (m *model) add(over *model, resets [][]string) {
	for _, path := range resets {
		forget(m.value, path)
	}
	if over.name != "" {
		m.name = over.name
	}
	for k, v := range over.value {
		m.value[k] = mergeValue([]string{k}, m.value[k], v)
	}
	for k, o := range over.origins {
		m.origins[k] = slices.Concat(o, m.origins[k])
	}
}

// forget removes the value at a path.
func forget(v any, path []string) {
	m, ok := v.(dict)
	switch {
	case !ok || len(path) == 0:
	case len(path) == 1:
		delete(m, path[0])
	default:
		forget(m[path[0]], path[1:])
	}
}

// mergeValue is what two files together say at a path: mappings key by key, lists one after the other, of
// all else the later. The exceptions are Docker's, or Compose's where Docker's lose something; docs/compose.md
// lists them.
func mergeValue(path []string, a, b any) any {
	if a == nil {
		return b
	}
	if b == nil {
		return a
	}
	if replaced(path, a, b) {
		return b
	}
	am, aok := a.(dict)
	bm, bok := b.(dict)
	if aok && bok {
		out := maps.Clone(am)
		for k, v := range bm {
			out[k] = mergeValue(append(slices.Clone(path), k), am[k], v)
		}
		return out
	}
	al, aok := a.([]any)
	bl, bok := b.([]any)
	if !aok || !bok {
		return b
	}
	if key := listKey(path); key != nil {
		return mergeKeyed(al, bl, key)
	}
	out := slices.Clone(al)
	for _, v := range bl {
		if !slices.ContainsFunc(out, func(x any) bool { return equal(x, v) }) {
			out = append(out, v)
		}
	}
	return out
}

// replaced names the values that a later file replaces as a whole.
func replaced(path []string, a, b any) bool {
	if path[0] != "services" {
		return len(path) == 2 && slices.Contains(sections(), path[0]) // a network, volume, secret or config
	}
	if len(path) < 3 {
		return false
	}
	switch strings.Join(path[2:], "/") {
	case "command", "entrypoint":
		l, ok := b.([]any)
		return !ok || len(l) > 0
	case "healthcheck/test":
		return true
	case "logging":
		am, _ := a.(dict)
		bm, _ := b.(dict)
		da, db := str(am, "driver"), str(bm, "driver")
		return da != "" && db != "" && da != db
	}
	return len(path) == 4 && path[2] == "ulimits" || len(path) == 5 && path[2] == "networks" && path[4] == "aliases"
}

// listKey is what makes two items of a list the same, for the later to replace the earlier.
func listKey(path []string) func(any) string {
	if len(path) != 3 || path[0] != "services" {
		return nil
	}
	field := func(name string) func(any) string {
		return func(v any) string {
			m, _ := v.(dict)
			return text(m[name])
		}
	}
	switch path[2] {
	case "volumes":
		return field("target")
	case "secrets", "configs":
		return field("source")
	case "ports":
		return portKey
	}
	return nil
}

// portKey: Docker's CLI takes the published port alone, and so makes one of 53/tcp and 53/udp and of all
// ports that are not published.
func portKey(v any) string {
	m, ok := v.(dict)
	if !ok {
		return text(v)
	}
	protocol := str(m, "protocol")
	if protocol == "" {
		protocol = "tcp"
	}
	if p, ok := number(m, "published"); ok && p != 0 {
		return text(m["published"]) + "/" + protocol
	}
	return ":" + text(m["target"]) + "/" + protocol
}

// mergeKeyed replaces and adds items, and sorts them by key as Docker does.
func mergeKeyed(a, b []any, key func(any) string) []any {
	later := map[string]bool{}
	for _, v := range b {
		later[key(v)] = true
	}
	out := slices.DeleteFunc(slices.Clone(a), func(v any) bool { return later[key(v)] })
	out = append(out, b...)
	slices.SortStableFunc(out, func(x, y any) int { return strings.Compare(key(x), key(y)) })
	return out
}

// equal compares two values of a document.
func equal(a, b any) bool {
	switch a := a.(type) {
	case dict:
		b, ok := b.(dict)
		return ok && maps.EqualFunc(a, b, equal)
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equal)
	}
	switch b.(type) {
	case dict, []any:
		return false
	}
	return a == b
}
