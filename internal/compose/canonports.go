package compose

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/docker/go-connections/nat"
	"github.com/moby/moby/api/types/mount"
)

// maxPorts bounds what one port range opens up to.
const maxPorts = 1000

// ports brings port specifications into the long form, one entry a port.
func (c canon) ports(m dict, at []string) {
	entries, ok := m["ports"].([]any)
	if !ok {
		return
	}
	out := []any{}
	for i, v := range entries {
		here := append(at, strconv.Itoa(i))
		switch v := v.(type) {
		case dict:
			out = append(out, c.longPort(v, here)...)
		default:
			if c.raw(text(v)) {
				out = append(out, v)
				continue
			}
			out = append(out, c.shortPort(text(v), here)...)
		}
		if len(out) > maxPorts {
			c.fail(here, "more than %d ports for one service: is the range meant?", maxPorts)
			break
		}
	}
	m["ports"] = out
}

// shortPort reads [IP:][PUBLISHED:]TARGET[/PROTOCOL], in which both ports may be ranges.
func (c canon) shortPort(s string, at []string) []any {
	mappings, err := nat.ParsePortSpec(s)
	if err != nil {
		c.fail(at, "%q is no port: %v; write for example \"8080:80\", 53:53/udp or 3000-3005:3000-3005", s, err)
		return nil
	}
	slices.SortStableFunc(mappings, func(a, b nat.PortMapping) int { return strings.Compare(string(a.Port), string(b.Port)) })
	var out []any
	for _, pm := range mappings {
		first, last := 0, 0
		if pm.Binding.HostPort != "" {
			first, last, _ = nat.ParsePortRangeToInt(pm.Binding.HostPort)
		}
		if last-first > maxPorts {
			c.fail(at, "more than %d ports for one service: is the range meant?", maxPorts)
			return nil
		}
		for p := first; p <= last; p++ {
			port := dict{"mode": "ingress", "target": pm.Port.Int(), "protocol": pm.Port.Proto()}
			if p != 0 {
				port["published"] = p
			}
			if ip := pm.Binding.HostIP; ip != "" {
				if a, err := netip.ParseAddr(ip); err != nil || !a.IsUnspecified() {
					port["host_ip"] = ip
				}
			}
			out = append(out, port)
		}
	}
	return out
}

// longPort makes numbers of the published port, or several entries of a range.
func (c canon) longPort(m dict, at []string) []any {
	m = maps.Clone(m)
	if n, ok := number(m, "target"); ok {
		if n < 1 || n > 65535 {
			c.fail(append(at, "target"), "%d is no port: 1 to 65535", n)
		}
		m["target"] = int(n)
	}
	published, has := m["published"]
	if !has || published == "" || c.raw(text(published)) {
		if published == "" {
			delete(m, "published")
		}
		return []any{m}
	}
	first, last, err := nat.ParsePortRangeToInt(text(published))
	if err != nil || last-first > maxPorts {
		c.fail(append(at, "published"), "%q is no port: write a number, or a range like 8000-8005", text(published))
		return nil
	}
	var out []any
	for p := first; p <= last; p++ {
		one := maps.Clone(m)
		if one["published"] = p; p == 0 {
			delete(one, "published")
		}
		out = append(out, one)
	}
	return out
}

// mounts brings volume specifications into the long form and makes host paths absolute.
func (c canon) mounts(m dict, at []string) {
	entries, ok := m["volumes"].([]any)
	if !ok {
		return
	}
	out := make([]any, 0, len(entries))
	for i, v := range entries {
		here := append(at, strconv.Itoa(i))
		long, ok := v.(dict)
		if !ok {
			var err error
			if long, err = parseMount(text(v)); err != nil {
				c.fail(here, "%q is no volume: %v; write SOURCE:TARGET or SOURCE:TARGET:ro", text(v), err)
				continue
			}
		}
		long = maps.Clone(long)
		if str(long, "type") == "bind" {
			c.hostPath(long, here)
		}
		if tmpfs := cloneSub(long, "tmpfs"); tmpfs != nil {
			if _, ok := tmpfs["size"]; ok {
				n, err := parseSize(tmpfs["size"])
				if err != nil {
					c.fail(append(here, "tmpfs", "size"), "%q is no size: write for example 64M", text(tmpfs["size"]))
				}
				tmpfs["size"] = int(n)
			}
		}
		out = append(out, long)
	}
	m["volumes"] = out
}

func (c canon) hostPath(m dict, at []string) {
	source := str(m, "source")
	if source == "" {
		c.fail(at, "a bind mount needs a source: the path on the node")
		return
	}
	p := c.l.home(source)
	if path.IsAbs(p) || c.raw(p) || strings.HasPrefix(p, `\\`) || len(p) > 2 && windowsDrive([]rune(p)[:1], rune(p[1])) {
		m["source"] = p
		return
	}
	m["source"] = c.l.abs(c.d.dir, p)
}

// parseMount reads [SOURCE:]TARGET[:OPTION,…].
func parseMount(spec string) (dict, error) {
	if spec == "" {
		return nil, fmt.Errorf("it is empty")
	}
	if len(spec) <= 2 {
		return dict{"type": "volume", "target": spec}, nil
	}
	parts, err := mountParts(spec)
	if err != nil {
		return nil, err
	}
	m := dict{}
	if len(parts) == 1 {
		m["target"] = parts[0]
	} else {
		m["source"], m["target"] = parts[0], parts[1]
	}
	if len(parts) == 3 {
		for o := range strings.SplitSeq(parts[2], ",") {
			switch {
			case o == "ro":
				m["read_only"] = true
			case o == "rw":
				delete(m, "read_only")
			case o == "nocopy":
				m["volume"] = dict{"nocopy": true}
			case slices.Contains(mount.Propagations, mount.Propagation(o)):
				m["bind"] = dict{"propagation": o}
			}
		}
	}
	m["type"] = "volume"
	if isHostPath(str(m, "source")) {
		m["type"] = "bind"
	}
	return m, nil
}

// mountParts splits at colons, but not behind the letter of a Windows drive.
func mountParts(spec string) ([]string, error) {
	var parts []string
	var part []rune
	for _, r := range spec + "\x00" {
		if r != ':' && r != 0 || windowsDrive(part, r) {
			part = append(part, r)
			continue
		}
		if len(part) == 0 {
			return nil, fmt.Errorf("nothing stands between two colons")
		}
		parts = append(parts, string(part))
		part = nil
	}
	if len(parts) > 3 {
		return nil, fmt.Errorf("it has too many colons")
	}
	return parts, nil
}

func windowsDrive(before []rune, r rune) bool {
	return r == ':' && len(before) == 1 && unicode.IsLetter(before[0])
}

func isHostPath(source string) bool {
	switch {
	case source == "":
		return false
	case strings.HasPrefix(source, ".") || strings.HasPrefix(source, "/") || strings.HasPrefix(source, "~") || strings.HasPrefix(source, `\\`):
		return true
	}
	r := []rune(source)
	return len(r) > 1 && windowsDrive(r[:1], r[1])
}
