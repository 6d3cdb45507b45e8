package compose

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// validate holds a document against the schema of the Compose Specification and reports all that is
// wrong in it.
func (l *loader) validate(d *doc) error {
	v := forSchema(d.value)
	err := schema.Validate(v)
	if err == nil {
		return nil
	}
	all, detailErr := schemaErrors(v)
	if detailErr != nil || len(all) == 0 {
		return Problems{{d.at(), err.Error()}}
	}
	keys := schemaKeys()
	for _, e := range all {
		l.schemaProblem(d, e, keys)
	}
	return l.problems.err()
}

// forSchema leaves out what is ignored anyway and what the specification has forgotten of the old
// version 3.
func forSchema(m dict) dict {
	out := maps.Clone(m)
	delete(out, "version")
	services, ok := m["services"].(dict)
	if !ok {
		return out
	}
	clean := dict{}
	for name, s := range services {
		if sm, ok := s.(dict); ok {
			sm = maps.Clone(sm)
			delete(sm, "build")
			s = sm
		}
		clean[name] = s
	}
	out["services"] = clean
	return out
}

// schemaErrors is what the schema says in detail.
func schemaErrors(v dict) ([]*jsonschema.ValidationError, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	raw, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	js, err := jsonschema.UnmarshalJSON(strings.NewReader(schema.Schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("compose-spec.json", js); err != nil {
		return nil, err
	}
	s, err := c.Compile("compose-spec.json")
	if err != nil {
		return nil, err
	}
	var verr *jsonschema.ValidationError
	if err := s.Validate(raw); !errors.As(err, &verr) {
		return nil, err
	}
	return leaves(verr), nil
}

// leaves are the errors to report: of a choice only the branch that went deepest, for that is the one
// that was meant.
func leaves(e *jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(e.Causes) == 0 {
		return []*jsonschema.ValidationError{e}
	}
	_, one := e.ErrorKind.(*kind.OneOf)
	_, some := e.ErrorKind.(*kind.AnyOf)
	if !one && !some {
		var out []*jsonschema.ValidationError
		for _, c := range e.Causes {
			out = append(out, leaves(c)...)
		}
		return out
	}
	var best []*jsonschema.ValidationError
	depth := -1
	for _, c := range e.Causes {
		branch := leaves(c)
		d := 0
		for _, x := range branch {
			d = max(d, len(x.InstanceLocation))
			if _, ok := x.ErrorKind.(*kind.Type); !ok {
				d = max(d, len(e.InstanceLocation)+1)
			}
		}
		switch {
		case d > depth:
			best, depth = branch, d
		case d == depth && len(branch) == 1 && len(best) == 1:
			best = []*jsonschema.ValidationError{eitherType(best[0], branch[0])}
		}
	}
	return best
}

// eitherType joins two complaints about the type of the same value.
func eitherType(a, b *jsonschema.ValidationError) *jsonschema.ValidationError {
	ka, ok1 := a.ErrorKind.(*kind.Type)
	kb, ok2 := b.ErrorKind.(*kind.Type)
	if !ok1 || !ok2 {
		return a
	}
	joined := *a
	joined.ErrorKind = &kind.Type{Got: ka.Got, Want: slices.Concat(ka.Want, kb.Want)}
	return &joined
}

func (l *loader) schemaProblem(d *doc, e *jsonschema.ValidationError, known keyNames) {
	at := strings.Join(e.InstanceLocation, ".")
	pos := d.at(e.InstanceLocation...)
	switch k := e.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		for _, key := range k.Properties {
			l.unknownKey(d, append(slices.Clone(e.InstanceLocation), key), known)
		}
	case *kind.FalseSchema:
		// A known key is here when its value is wrong, which is reported by itself.
		if n := len(e.InstanceLocation); n > 0 && !slices.Contains(known.at(e.InstanceLocation), e.InstanceLocation[n-1]) {
			l.unknownKey(d, e.InstanceLocation, known)
		}
	case *kind.Type:
		l.problems.add(pos, "%s must be %s, not %s", at, typeNames(k.Want), typeName(k.Got))
	case *kind.Required:
		l.problems.add(pos, "%s needs %s", at, strings.Join(k.Missing, ", "))
	case *kind.Enum:
		l.problems.add(pos, "%s is %v, but must be one of %s", at, k.Got, listed(k.Want))
	case *kind.Minimum:
		l.problems.add(pos, "%s must be %s or more", at, k.Want.RatString())
	case *kind.Maximum:
		l.problems.add(pos, "%s must be %s or less", at, k.Want.RatString())
	case *kind.UniqueItems:
		l.problems.add(pos, "%s has the same item twice: remove one", at)
	default:
		l.problems.add(pos, "%s", strings.TrimSpace(at+" "+strings.TrimPrefix(fmt.Sprint(e), "jsonschema validation failed")))
	}
}

func (l *loader) unknownKey(d *doc, path []string, keys keyNames) {
	key := path[len(path)-1]
	known := slices.DeleteFunc(slices.Clone(keys.at(path)), func(k string) bool { return k == key })
	in := strings.Join(path[:len(path)-1], ".")
	if in == "" {
		in = "the file"
	}
	advice := "remove it, or name it x-" + key + " to keep it as a note"
	if m := meant(key, known); m != "" {
		advice = "did you mean " + m + "?"
	}
	l.problems.add(d.at(path...), "unknown key %s in %s: %s", key, in, advice)
}

func typeName(s string) string {
	switch s {
	case "object":
		return "a mapping"
	case "array":
		return "a list"
	case "string":
		return "a text"
	case "boolean":
		return "true or false"
	case "integer":
		return "a whole number"
	case "number":
		return "a number"
	case "null":
		return "nothing"
	}
	return s
}

func typeNames(want []string) string {
	var names []string
	for _, w := range want {
		if n := typeName(w); !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return strings.Join(names, " or ")
}

func listed(values []any) string {
	var out []string
	for _, v := range values {
		out = append(out, fmt.Sprint(v))
	}
	return strings.Join(out, ", ")
}

// keyNames are the names that the schema knows: at the top of a file, in a service, and all.
type keyNames struct{ top, service, all []string }

// at are those that a key at a path may have been meant to be.
func (k keyNames) at(path []string) []string {
	switch {
	case len(path) == 1:
		return k.top
	case len(path) == 3 && path[0] == "services":
		return k.service
	}
	return k.all
}

func schemaKeys() keyNames {
	var root struct {
		Properties map[string]any
		Defs       map[string]any `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(schema.Schema), &root); err != nil {
		return keyNames{}
	}
	set := map[string]bool{}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case dict:
			for k := range sub(v, "properties") {
				set[k] = true
			}
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(root.Defs)
	out := keyNames{top: sorted(root.Properties), all: sorted(set)}
	for _, d := range []string{"service", "container_spec", "workload_spec"} {
		out.service = append(out.service, sorted(sub(sub(root.Defs, d), "properties"))...)
	}
	return out
}
