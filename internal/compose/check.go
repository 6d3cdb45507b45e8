package compose

import (
	"fmt"
	"slices"
	"strings"
)

// selectProfiles takes out the services whose profiles are all off.
func (l *loader) selectProfiles(m *model, on []string) {
	services := sub(m.value, "services")
	for _, name := range sorted(services) {
		want := texts(sub(services, name), "profiles")
		enabled := len(want) == 0 || slices.Contains(on, "*") || slices.ContainsFunc(want, func(p string) bool { return slices.Contains(on, p) })
		if enabled {
			continue
		}
		delete(services, name)
		for _, other := range services {
			deps := sub(other.(dict), "depends_on")
			if d, ok := deps[name].(dict); ok {
				if required, ok := d["required"].(bool); ok && !required {
					delete(deps, name)
				}
			}
		}
	}
}

// check finds what is wrong between the parts of a model.
func (l *loader) check(m *model) {
	services := sub(m.value, "services")
	if len(services) == 0 {
		l.problems.add(Pos{File: l.opt.Files[0]}, "the file has no service that is on: add one under `services:`, or switch a profile on")
	}
	for _, name := range sorted(services) {
		svc := sub(services, name)
		l.checkRefs(m, name, svc)
		l.ignored(m, name, svc)
	}
	l.checkPorts(m, services)
	l.checkCycles(m, services)
	l.checkTop(m)
}

// undefined reports a name that is not in a section.
func (l *loader) undefined(m *model, service, key, section, name string) bool {
	known := sub(m.value, section)
	if _, ok := known[name]; ok {
		return false
	}
	thing := strings.TrimSuffix(section, "s")
	advice := fmt.Sprintf("add it under the top-level `%s:`", section)
	if s := meant(name, sorted(known)); s != "" {
		advice = fmt.Sprintf("did you mean %s? Else %s", s, advice)
	}
	l.problems.add(m.at("services", service, key, name), "service %s: undefined %s %q: %s", service, thing, name, advice)
	return true
}

func (l *loader) checkRefs(m *model, name string, svc dict) {
	for _, n := range sorted(sub(svc, "networks")) {
		if n != "default" {
			l.undefined(m, name, "networks", "networks", n)
		}
	}
	for _, k := range []string{"secrets", "configs"} {
		for _, v := range list(svc, k) {
			ref, _ := v.(dict)
			l.undefined(m, name, k, k, str(ref, "source"))
		}
	}
	if c := str(sub(svc, "credential_spec"), "config"); c != "" {
		l.undefined(m, name, "credential_spec", "configs", c)
	}
	for i, v := range list(svc, "volumes") {
		mnt, _ := v.(dict)
		source, kind := str(mnt, "source"), str(mnt, "type")
		if source == "" || kind != "volume" && kind != "" && kind != "cluster" || strings.HasPrefix(source, "group:") {
			continue
		}
		if _, ok := sub(m.value, "volumes")[source]; !ok {
			pos := m.at("services", name, "volumes", source)
			if pos.Line == 0 {
				pos = m.at("services", name, "volumes", fmt.Sprint(i))
			}
			advice := "add it under the top-level `volumes:`, or begin it with ./ for a path on the node"
			if s := meant(source, sorted(sub(m.value, "volumes"))); s != "" {
				advice = fmt.Sprintf("did you mean %s? Else %s", s, advice)
			}
			l.problems.add(pos, "service %s: undefined volume %q: %s", name, source, advice)
		}
	}
	for _, dep := range sorted(sub(svc, "depends_on")) {
		l.undefined(m, name, "depends_on", "services", dep)
	}
	if str(svc, "network_mode") != "" && len(sub(svc, "networks")) > 0 {
		l.problems.add(m.at("services", name, "network_mode"), "service %s: network_mode and networks exclude each other: keep one", name)
	}
}

// published is a port of the host that a service wants.
type published struct {
	service string
	mode    string
	pos     Pos
}

// checkPorts finds two services, or one twice, that publish the same port.
func (l *loader) checkPorts(m *model, services dict) {
	seen := map[string]published{}
	for _, name := range sorted(services) {
		for i, v := range list(sub(services, name), "ports") {
			p, _ := v.(dict)
			n, ok := number(p, "published")
			if !ok || n == 0 {
				continue
			}
			if n > 65535 {
				l.problems.add(m.at("services", name, "ports", fmt.Sprint(i)), "service %s: %d is no port: 1 to 65535", name, n)
			}
			key := portKey(p)
			this := published{name, str(p, "mode"), m.at("services", name, "ports", fmt.Sprint(i))}
			other, clash := seen[key]
			switch {
			case !clash:
				seen[key] = this
			case this.mode != "host" && other.mode != "host":
				l.problems.add(this.pos, "service %s: port %s is published by service %s already (line %d): choose another", name, key, other.service, other.pos.Line)
			case name == other.service:
				l.problems.add(this.pos, "service %s: port %s is published twice (line %d): remove one", name, key, other.pos.Line)
			default:
				l.warn(this.pos, name, "ports", "wants port %s of the host, which service %s wants, too: they cannot run on the same node", key, other.service)
			}
		}
	}
}

// checkCycles finds services that wait for each other.
func (l *loader) checkCycles(m *model, services dict) {
	const (
		open = 1
		done = 2
	)
	state := map[string]int{}
	var chain []string
	var visit func(name string)
	visit = func(name string) {
		if state[name] == done {
			return
		}
		if state[name] == open {
			from := slices.Index(chain, name)
			ring := append(slices.Clone(chain[from:]), name)
			l.problems.add(m.at("services", name, "depends_on"), "depends_on goes round in a circle, so none of these can start: %s: remove one", strings.Join(ring, " waits for "))
			return
		}
		state[name] = open
		chain = append(chain, name)
		for _, dep := range sorted(sub(sub(services, name), "depends_on")) {
			if _, ok := services[dep]; ok {
				visit(dep)
			}
		}
		chain = chain[:len(chain)-1]
		state[name] = done
	}
	for _, name := range sorted(services) {
		visit(name)
	}
}

// checkTop looks at what is declared but never used, and at keys of the file that mean nothing here.
func (l *loader) checkTop(m *model) {
	for _, k := range []string{"models", "jobs"} {
		for name := range sub(m.value, k) {
			l.warn(m.at(k, name), "", k+"."+name, "is ignored: a swarm has no %s; use a service", k)
		}
	}
	for _, name := range sorted(sub(m.value, "volumes")) {
		if _, ok := sub(sub(m.value, "volumes"), name)["x-cluster-spec"]; ok {
			l.warn(m.at("volumes", name, "x-cluster-spec"), "", "x-cluster-spec", "is ignored, as docker stack does: make the cluster volume with docker volume create")
		}
	}
	for _, name := range sorted(sub(m.value, "networks")) {
		nw := sub(sub(m.value, "networks"), name)
		if flag(nw, "external") {
			for _, k := range []string{"driver", "driver_opts", "ipam", "internal", "attachable", "labels", "enable_ipv6"} {
				if _, ok := nw[k]; ok {
					l.warn(m.at("networks", name, k), "", "networks."+name+"."+k, "is ignored: the network is external, so the stack does not make it")
				}
			}
		}
	}
}
