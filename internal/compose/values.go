package compose

import (
	"fmt"
	"slices"
)

// The values of a document that has passed the schema and got its one long form have known types; what is
// not of its type reads as absent.

func str(m dict, key string) string {
	s, _ := m[key].(string)
	return s
}

func sub(m dict, key string) dict {
	d, _ := m[key].(dict)
	return d
}

func list(m dict, key string) []any {
	l, _ := m[key].([]any)
	return l
}

func flag(m dict, key string) bool {
	b, _ := m[key].(bool)
	return b
}

// number is a whole number; YAML may have read it as a float.
func number(m dict, key string) (int64, bool) {
	switch n := m[key].(type) {
	case int:
		return int64(n), true
	case int64:
		return n, true
	case uint64:
		return int64(n), n < 1<<63
	case float64:
		return int64(n), true
	}
	return 0, false
}

func texts(m dict, key string) []string {
	var out []string
	for _, v := range list(m, key) {
		out = append(out, text(v))
	}
	return out
}

// textMap reads a mapping of texts; nil when there is none.
func textMap(m dict, key string) map[string]string {
	d := sub(m, key)
	if d == nil {
		return nil
	}
	out := map[string]string{}
	for k, v := range d {
		out[k] = text(v)
	}
	return out
}

// text is a scalar as Docker writes it where it wants a text.
func text(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

// sorted are the keys of a mapping in order.
func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// clone copies mappings and lists all the way down.
func clone(v any) any {
	switch v := v.(type) {
	case dict:
		out := make(dict, len(v))
		for k, x := range v {
			out[k] = clone(x)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = clone(x)
		}
		return out
	}
	return v
}
