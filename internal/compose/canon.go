package compose

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/google/shlex"
)

// canon gives every short form of a document its one long form, makes paths absolute, reads env files, and
// brings durations and sizes into Docker's notation. What it makes can be merged key by key and
// is what `stack config` prints.
type canon struct {
	l *loader
	d *doc
}

func (c canon) fail(path []string, format string, args ...any) {
	c.l.problems.add(c.d.at(path...), "%s: "+format, append([]any{strings.Join(path, ".")}, args...)...)
}

// raw says that a text still has variables in it, because they were not to be filled in.
func (c canon) raw(s string) bool { return c.l.opt.SkipInterpolation && strings.Contains(s, "$") }

func (l *loader) canon(d *doc) dict {
	c := canon{l, d}
	out := maps.Clone(d.value)
	for section, f := range map[string]func(string, dict) dict{
		"services": c.service, "networks": c.network, "volumes": c.volume,
		"secrets": func(n string, m dict) dict { return c.object("secrets", n, m) },
		"configs": func(n string, m dict) dict { return c.object("configs", n, m) },
	} {
		m := sub(out, section)
		if m == nil {
			delete(out, section)
			continue
		}
		done := dict{}
		for _, name := range sorted(m) {
			entry, _ := m[name].(dict)
			entry = maps.Clone(entry)
			if entry == nil {
				entry = dict{}
			}
			done[name] = f(name, entry)
		}
		out[section] = done
	}
	return out
}

func (c canon) service(name string, m dict) dict {
	at := func(keys ...string) []string { return append([]string{"services", name}, keys...) }
	for _, k := range []string{"command", "entrypoint"} {
		c.shell(m, k, at(k))
	}
	for _, k := range []string{"dns", "dns_search", "dns_opt", "tmpfs", "label_file"} {
		oneToList(m, k)
	}
	for _, k := range []string{"labels", "annotations", "sysctls"} {
		toMap(m, k, false)
	}
	c.env(m, at("env_file"))
	c.labelFiles(m, at("label_file"))
	c.extraHosts(m, at("extra_hosts"))
	c.ports(m, at("ports"))
	c.mounts(m, at("volumes"))
	for _, k := range []string{"secrets", "configs"} {
		eachItem(m, k, func(v any) any {
			if s, ok := v.(string); ok {
				return dict{"source": s}
			}
			return v
		})
	}
	namesToMap(m, "networks", nil)
	namesToMap(m, "depends_on", dict{"condition": "service_started", "required": true})
	if s, ok := m["build"].(string); ok {
		m["build"] = dict{"context": s}
	}
	for _, k := range []string{"expose", "group_add"} {
		eachItem(m, k, func(v any) any { return text(v) })
	}
	if logging := cloneSub(m, "logging"); logging != nil {
		toMap(logging, "options", false)
	}
	for net, v := range cloneSub(m, "networks") {
		if nm, ok := v.(dict); ok {
			nm = maps.Clone(nm)
			toMap(nm, "driver_opts", false)
			sub(m, "networks")[net] = nm
		}
	}
	c.health(cloneSub(m, "healthcheck"), at("healthcheck"))
	c.duration(m, "stop_grace_period", at())
	if m["deploy"] == nil {
		delete(m, "deploy")
	}
	c.deploy(cloneSub(m, "deploy"), at("deploy"))
	c.containerLimits(m, at())
	dropEmpty(m)
	return m
}

func (c canon) health(m dict, at []string) {
	if s, ok := m["test"].(string); ok {
		m["test"] = []any{"CMD-SHELL", s}
	}
	for _, k := range []string{"interval", "timeout", "start_period", "start_interval"} {
		c.duration(m, k, at)
	}
	if n, ok := number(m, "retries"); ok {
		m["retries"] = int(n)
	}
}

func (c canon) deploy(m dict, at []string) {
	toMap(m, "labels", false)
	for _, k := range []string{"update_config", "rollback_config"} {
		u := cloneSub(m, k)
		c.duration(u, "delay", append(at, k))
		c.duration(u, "monitor", append(at, k))
	}
	r := cloneSub(m, "restart_policy")
	c.duration(r, "delay", append(at, "restart_policy"))
	c.duration(r, "window", append(at, "restart_policy"))
	res := cloneSub(m, "resources")
	for _, k := range []string{"limits", "reservations"} {
		r := cloneSub(res, k)
		c.size(r, "memory", append(at, "resources", k))
		if v, ok := r["cpus"]; ok {
			r["cpus"] = text(v)
		}
	}
}

// containerLimits are the limits that stand on the service itself, not under deploy.
func (c canon) containerLimits(m dict, at []string) {
	for _, k := range []string{"mem_limit", "mem_reservation", "memswap_limit"} {
		if text(m[k]) != "-1" {
			c.size(m, k, at)
		}
	}
	if v, ok := m["cpus"]; ok {
		m["cpus"] = text(v)
	}
}

func (c canon) network(name string, m dict) dict {
	at := []string{"networks", name}
	c.external(m, at)
	toMap(m, "labels", false)
	toMap(m, "driver_opts", false)
	dropEmpty(m)
	return m
}

func (c canon) volume(name string, m dict) dict {
	at := []string{"volumes", name}
	c.external(m, at)
	toMap(m, "labels", false)
	toMap(m, "driver_opts", false)
	if flag(m, "external") {
		for _, k := range []string{"driver", "driver_opts", "labels"} {
			if _, ok := m[k]; ok {
				c.fail(append(at, k), "an external volume is not made by the stack, so %s means nothing: remove it or external", k)
			}
		}
	}
	dropEmpty(m)
	return m
}

// object is a secret or a config.
func (c canon) object(section, name string, m dict) dict {
	at := []string{section, name}
	c.external(m, at)
	toMap(m, "labels", false)
	toMap(m, "driver_opts", false)
	if f := str(m, "file"); f != "" && !c.raw(f) {
		if str(m, "driver") != "" {
			c.fail(append(at, "driver"), "driver and file exclude each other: keep one")
		}
		if !flag(m, "external") {
			m["file"] = c.l.abs(c.d.dir, f)
		}
	}
	dropEmpty(m)
	return m
}

// external brings `external: {name: x}` and `external: true` into one form with a name.
func (c canon) external(m dict, at []string) {
	ext, ok := m["external"].(dict)
	if !ok {
		if flag(m, "external") && str(m, "name") == "" {
			m["name"] = at[1]
		}
		if e, is := m["external"].(bool); is && !e {
			delete(m, "external")
		}
		return
	}
	m["external"] = true
	n := str(ext, "name")
	if n != "" && str(m, "name") != "" {
		c.fail(append(at, "external", "name"), "external.name and name exclude each other: keep name")
	}
	if str(m, "name") == "" {
		m["name"] = n
	}
	if str(m, "name") == "" {
		m["name"] = at[1]
	}
}

// shell splits a command line as a shell would.
func (c canon) shell(m dict, key string, at []string) {
	s, ok := m[key].(string)
	if !ok {
		return
	}
	words, err := shlex.Split(s)
	if err != nil {
		c.fail(at, "%v: close the quote, or write a list", err)
	}
	m[key] = anys(words)
}

// duration brings a duration into Go's notation; days and weeks are Compose's.
func (c canon) duration(m dict, key string, at []string) {
	s, ok := m[key].(string)
	if !ok || c.raw(s) {
		return
	}
	d, err := parseDuration(s)
	if err != nil {
		c.fail(append(at, key), "%q is no duration: write for example 30s, 1m30s or 2h", s)
		return
	}
	m[key] = d.String()
}

func parseDuration(s string) (time.Duration, error) {
	var days time.Duration
	rest := s
	for _, u := range []struct {
		letter string
		unit   time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		before, after, ok := strings.Cut(rest, u.letter)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(before, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q is no duration", s)
		}
		days += time.Duration(n) * u.unit
		rest = after
	}
	if rest == "" && days > 0 {
		return days, nil
	}
	d, err := time.ParseDuration(rest)
	return days + d, err
}

// size brings a number of bytes into Docker's notation: a text with the bare number.
func (c canon) size(m dict, key string, at []string) {
	v, ok := m[key]
	if !ok || v == nil || c.raw(text(v)) {
		return
	}
	n, err := parseSize(v)
	if err != nil {
		c.fail(append(at, key), "%q is no size: write for example 512M or 2G", text(v))
		return
	}
	m[key] = strconv.FormatInt(n, 10)
}

func parseSize(v any) (int64, error) {
	if n, ok := v.(int); ok {
		return int64(n), nil
	}
	return units.RAMInBytes(text(v))
}

func anys(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}

func oneToList(m dict, key string) {
	if s, ok := m[key].(string); ok {
		m[key] = []any{s}
	}
}

// eachItem replaces the items of a list.
func eachItem(m dict, key string, f func(any) any) {
	l, ok := m[key].([]any)
	if !ok {
		return
	}
	out := make([]any, len(l))
	for i, v := range l {
		out[i] = f(v)
	}
	m[key] = out
}

// toMap makes a mapping of a list of KEY=VALUE, and texts of its values. An entry without a value is
// nil when they may be, else empty.
func toMap(m dict, key string, nils bool) {
	out := dict{}
	switch v := m[key].(type) {
	case dict:
		for k, x := range v {
			if x != nil || !nils {
				x = text(x)
			}
			out[k] = x
		}
	case []any:
		for _, x := range v {
			k, val, has := strings.Cut(text(x), "=")
			out[k] = val
			if !has && nils {
				out[k] = nil
			}
		}
	default:
		return
	}
	m[key] = out
}

// namesToMap makes a mapping of a list of names.
func namesToMap(m dict, key string, value any) {
	if l, ok := m[key].([]any); ok {
		out := dict{}
		for _, v := range l {
			out[text(v)] = clone(value)
		}
		m[key] = out
	}
}

// cloneSub puts a copy of a mapping in its place, to be changed.
func cloneSub(m dict, key string) dict {
	d := sub(m, key)
	if d == nil {
		return nil
	}
	d = maps.Clone(d)
	m[key] = d
	return d
}

// dropEmpty removes what says nothing.
func dropEmpty(m dict) {
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
}
