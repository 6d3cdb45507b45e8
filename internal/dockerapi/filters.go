package dockerapi

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/skep-swarm/skep/internal/model"
)

// filters are a client's: a key with the values of which one must match.
type filters map[string][]string

// readFilters reads the query's filters in both of Docker's forms and refuses unknown keys.
func readFilters(r *request, known ...string) (filters, error) {
	text := r.query("filters")
	if text == "" {
		return nil, nil
	}
	f := filters{}
	var now map[string]map[string]bool
	if err := json.Unmarshal([]byte(text), &now); err == nil {
		for key, values := range now {
			f[key] = []string{}
			for v, on := range values {
				if on {
					f[key] = append(f[key], v)
				}
			}
			slices.Sort(f[key])
		}
	} else {
		var old map[string][]string
		if err := json.Unmarshal([]byte(text), &old); err != nil {
			return nil, model.Invalidf("invalid filter")
		}
		f = old
	}
	for key := range f {
		if !slices.Contains(known, key) {
			return nil, model.Invalidf("invalid filter '%s'", key)
		}
	}
	return f, nil
}

// has reports whether the client asked for the key at all.
func (f filters) has(key string) bool { return len(f[key]) > 0 }

// exact is true when the key is not asked for, or one of its values is the value.
func (f filters) exact(key, value string) bool {
	return !f.has(key) || slices.Contains(f[key], value)
}

// prefix is true when the key is not asked for, or one of its values begins the value.
func (f filters) prefix(key, value string) bool {
	return !f.has(key) || slices.ContainsFunc(f[key], func(p string) bool { return strings.HasPrefix(value, p) })
}

// patterns are the regular expressions of a key: what Docker's own objects are found by, where "^web$" is one name and "web" every
// name that has it within. The swarm's objects (services, tasks, nodes, secrets, configs) are found by the beginnings of their names.
func (f filters) patterns(key string) (patterns, error) {
	var out patterns
	for _, text := range f[key] {
		re, err := regexp.Compile(text)
		if err != nil {
			return nil, model.Invalidf("invalid filter '%s=%s': %v", key, text, err)
		}
		out = append(out, re)
	}
	return out, nil
}

// patterns are regular expressions of which one must match; without any, everything does.
type patterns []*regexp.Regexp

func (p patterns) match(value string) bool {
	return len(p) == 0 || slices.ContainsFunc(p, func(re *regexp.Regexp) bool { return re.MatchString(value) })
}

// labels is true when every label asked for (key, or key=value) is there.
func (f filters) labels(key string, labels map[string]string) bool {
	for _, want := range f[key] {
		k, v, withValue := strings.Cut(want, "=")
		have, ok := labels[k]
		if !ok || withValue && have != v {
			return false
		}
	}
	return true
}

// anyLabel is true when one of the labels (key, or key=value) is there: the opposite of what "label!" asks for.
func (f filters) anyLabel(key string, labels map[string]string) bool {
	return slices.ContainsFunc(f[key], func(want string) bool {
		k, v, withValue := strings.Cut(want, "=")
		have, ok := labels[k]
		return ok && (!withValue || have == v)
	})
}

// flag reads a boolean filter (dangling=true).
func (f filters) flag(key string) (value, asked bool, err error) {
	if !f.has(key) {
		return false, false, nil
	}
	switch v := strings.ToLower(f[key][0]); v {
	case "1", "true", "t":
		return true, true, nil
	case "0", "false", "f":
		return false, true, nil
	default:
		return false, true, model.Invalidf("invalid filter '%s=%s'", key, v)
	}
}
