package compose

import (
	"path"
	"slices"
	"strings"
)

// extender puts services together with those that they extend.
type extender struct {
	l     *loader
	vars  map[string]string
	chain []string
	files map[string]*model // by absolute path; nil when it cannot be used
}

// extend resolves `extends` of one service of a model, in place. Steps are the services on the way
// here, to see a circle.
func (x *extender) extend(m *model, d *doc, name string, steps []string) {
	services := sub(m.value, "services")
	svc := sub(services, name)
	ext, ok := svc["extends"]
	if !ok {
		return
	}
	key := "services/" + name
	pos := m.at("services", name, "extends")
	step := name + " in " + d.name
	if slices.Contains(steps, step) {
		x.l.problems.add(pos, "service %s: extends goes round in a circle: %s: remove one", name, strings.Join(append(steps, step), " extends "))
		return
	}
	file, baseName := "", text(ext)
	if long, ok := ext.(dict); ok {
		file, baseName = str(long, "file"), str(long, "service")
	}
	if o := m.origins[key]; len(o) > 0 {
		d = o[0].d
	}
	from := m
	if file != "" {
		if from = x.file(d, file, pos); from == nil {
			return
		}
	}
	bases := sub(from.value, "services")
	if _, ok := bases[baseName]; !ok {
		advice := "write it, or correct the name"
		if s := meant(baseName, sorted(bases)); s != "" {
			advice = "did you mean " + s + "?"
		}
		x.l.problems.add(pos, "service %s extends service %s, which is not there: %s", name, baseName, advice)
		return
	}
	baseDoc := d
	if o := from.origins["services/"+baseName]; len(o) > 0 {
		baseDoc = o[0].d
	}
	x.extend(from, baseDoc, baseName, append(slices.Clone(steps), step))
	base, _ := clone(bases[baseName]).(dict)
	delete(base, "extends")
	for _, r := range d.resets {
		if len(r) > 2 && r[0] == "services" && r[1] == name {
			forget(base, r[2:])
		}
	}
	own, _ := clone(svc).(dict)
	delete(own, "extends")
	services[name] = mergeValue([]string{"services", name}, base, own)
	m.origins[key] = slices.Concat(m.origins[key], from.origins["services/"+baseName])
}

// file loads a file that services extend from, once.
func (x *extender) file(d *doc, file string, pos Pos) *model {
	abs := x.l.abs(d.dir, file)
	if m, ok := x.files[abs]; ok {
		return m
	}
	x.files[abs] = nil
	data, err := x.l.read(abs, MaxFileBytes)
	if err != nil {
		x.l.problems.add(pos, "extends from %s: %v", file, explainRead(err))
		return nil
	}
	docs, err := x.l.parse(x.l.shown(d, file), abs, path.Dir(abs), data, x.vars)
	m := newModel()
	for _, one := range docs {
		var part *model
		if part, err = x.l.unextended(one, x.vars, x.chain); err != nil {
			break
		}
		m.add(part, one.resets)
	}
	if err != nil {
		if p, ok := AsProblems(err); ok {
			x.l.problems = append(x.l.problems, p...)
		} else {
			x.l.problems.add(pos, "%v", err)
		}
		return nil
	}
	x.files[abs] = m
	return m
}
