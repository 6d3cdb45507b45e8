package compose

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
)

// fileRef is what a service says about a secret or config that it wants as a file.
type fileRef struct {
	name, target, uid, gid string
	mode                   fs.FileMode
}

func (c *converter) refs(service, section string, m dict) []fileRef {
	var out []fileRef
	for i, v := range list(m, section) {
		ref, _ := v.(dict)
		source := str(ref, "source")
		r := fileRef{
			name: c.named(section, source), target: cmp.Or(str(ref, "target"), source),
			uid: cmp.Or(text(ref["uid"]), "0"), gid: cmp.Or(text(ref["gid"]), "0"), mode: 0o444,
		}
		if n, ok := number(ref, "mode"); ok {
			r.mode = fs.FileMode(n)
		}
		if slices.ContainsFunc(out, func(x fileRef) bool { return x.target == r.target }) {
			c.fail(service, []string{section, fmt.Sprint(i)}, "two of its %s have the same target %s: give one another target", section, r.target)
		}
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b fileRef) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.target, b.target))
	})
	return out
}

func (c *converter) secretRefs(service string, m dict) []*swarm.SecretReference {
	out := []*swarm.SecretReference{}
	for _, r := range c.refs(service, "secrets", m) {
		out = append(out, &swarm.SecretReference{SecretName: r.name, File: &swarm.SecretReferenceFileTarget{Name: r.target, UID: r.uid, GID: r.gid, Mode: r.mode}})
	}
	return out
}

func (c *converter) configRefs(service string, m dict) []*swarm.ConfigReference {
	out := []*swarm.ConfigReference{}
	for _, r := range c.refs(service, "configs", m) {
		out = append(out, &swarm.ConfigReference{ConfigName: r.name, File: &swarm.ConfigReferenceFileTarget{Name: r.target, UID: r.uid, GID: r.gid, Mode: r.mode}})
	}
	if source := str(sub(m, "credential_spec"), "config"); source != "" {
		out = append(out, &swarm.ConfigReference{ConfigName: c.named("configs", source), Runtime: &swarm.ConfigReferenceRuntimeTarget{}})
	}
	slices.SortStableFunc(out, func(a, b *swarm.ConfigReference) int { return strings.Compare(a.ConfigName, b.ConfigName) })
	return out
}

func (c *converter) privileges(service string, m dict) *swarm.Privileges {
	out := &swarm.Privileges{}
	if cs := sub(m, "credential_spec"); cs != nil {
		spec := &swarm.CredentialSpec{Config: str(cs, "config"), File: str(cs, "file"), Registry: str(cs, "registry")}
		n := 0
		for _, s := range []string{spec.Config, spec.File, spec.Registry} {
			if s != "" {
				n++
			}
		}
		if n > 1 {
			c.fail(service, []string{"credential_spec"}, "credential_spec: config, file and registry exclude each other: keep one")
		}
		if spec.Config != "" {
			spec.Config = c.named("configs", spec.Config)
		}
		if n > 0 {
			out.CredentialSpec = spec
		}
	}
	for _, o := range texts(m, "security_opt") {
		if set, ok := securityOption(o); ok {
			set(out)
		}
	}
	return out
}

// securityOption is what one security_opt does to the privileges of a service, if it can do it.
func securityOption(o string) (func(*swarm.Privileges), bool) {
	key, value, ok := strings.Cut(o, "=")
	if !ok {
		key, value, _ = strings.Cut(o, ":")
	}
	switch {
	case key == "no-new-privileges" && (value == "" || value == "true"):
		return func(p *swarm.Privileges) { p.NoNewPrivileges = true }, true
	case key == "no-new-privileges" && value == "false":
		return func(p *swarm.Privileges) { p.NoNewPrivileges = false }, true
	case key == "seccomp" && value == "unconfined":
		return func(p *swarm.Privileges) { p.Seccomp = &swarm.SeccompOpts{Mode: swarm.SeccompModeUnconfined} }, true
	case key == "apparmor" && value == "unconfined":
		return func(p *swarm.Privileges) { p.AppArmor = &swarm.AppArmorOpts{Mode: swarm.AppArmorModeDisabled} }, true
	case key == "label" && value == "disable":
		return func(p *swarm.Privileges) { p.SELinuxContext = &swarm.SELinuxContext{Disable: true} }, true
	case key == "label":
		return selinux(value)
	}
	return nil, false
}

func selinux(option string) (func(*swarm.Privileges), bool) {
	key, value, _ := strings.Cut(option, ":")
	if !slices.Contains([]string{"user", "role", "type", "level"}, key) {
		return nil, false
	}
	return func(p *swarm.Privileges) {
		if p.SELinuxContext == nil {
			p.SELinuxContext = &swarm.SELinuxContext{}
		}
		switch c := p.SELinuxContext; key {
		case "user":
			c.User = value
		case "role":
			c.Role = value
		case "type":
			c.Type = value
		case "level":
			c.Level = value
		}
	}, true
}

func (c *converter) secrets() []Secret {
	var out []Secret
	for _, key := range sorted(sub(c.m.value, "secrets")) {
		m := sub(sub(c.m.value, "secrets"), key)
		s := Secret{Name: c.named("secrets", key), External: flag(m, "external")}
		if !s.External {
			s.Spec = &swarm.SecretSpec{Annotations: swarm.Annotations{Name: s.Name, Labels: c.scope.labels(textMap(m, "labels"))}}
			if d := str(m, "driver"); d != "" {
				s.Spec.Driver = &swarm.Driver{Name: d, Options: textMap(m, "driver_opts")}
			} else {
				s.Spec.Data = c.data("secrets", key, m)
			}
			s.Spec.Templating = templating(m)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Secret) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (c *converter) configs() []Config {
	var out []Config
	for _, key := range sorted(sub(c.m.value, "configs")) {
		m := sub(sub(c.m.value, "configs"), key)
		s := Config{Name: c.named("configs", key), External: flag(m, "external")}
		if !s.External {
			s.Spec = &swarm.ConfigSpec{
				Annotations: swarm.Annotations{Name: s.Name, Labels: c.scope.labels(textMap(m, "labels"))},
				Data:        c.data("configs", key, m), Templating: templating(m),
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Config) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func templating(m dict) *swarm.Driver {
	if d := str(m, "template_driver"); d != "" {
		return &swarm.Driver{Name: d}
	}
	return nil
}

// data is the value of a secret or config: exactly one of file, environment and content.
func (c *converter) data(section, key string, m dict) []byte {
	thing := strings.TrimSuffix(section, "s")
	var from []string
	for _, k := range []string{"file", "environment", "content"} {
		if m[k] != nil {
			from = append(from, k)
		}
	}
	pos := c.m.at(section, key)
	if len(from) != 1 {
		c.l.problems.add(pos, "%s %s: say where its value is from with one of file, environment%s, or external: true if it exists already", thing, key,
			map[bool]string{true: ", content"}[section == "configs"])
		return nil
	}
	pos = c.m.at(section, key, from[0])
	var data []byte
	switch from[0] {
	case "file":
		var err error
		if data, err = c.l.read(str(m, "file"), MaxDataBytes); err != nil {
			c.l.problems.add(pos, "%s %s: file %s: %v", thing, key, str(m, "file"), explainRead(err))
			return nil
		}
	case "environment":
		v, ok := c.l.vars[str(m, "environment")]
		if !ok {
			c.l.problems.add(pos, "%s %s: variable %s is not set", thing, key, str(m, "environment"))
		}
		data = []byte(v)
	case "content":
		data = []byte(str(m, "content"))
	}
	if limit := maxData(section); len(data) > limit {
		c.l.problems.add(pos, "%s %s: its value is larger than %d KiB", thing, key, limit>>10)
	}
	return data
}

// maxData is Docker's limit on the value of a secret or config.
func maxData(section string) int {
	if section == "secrets" {
		return 500 << 10
	}
	return MaxDataBytes
}
