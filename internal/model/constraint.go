package model

import (
	"net/netip"
	"strings"

	"github.com/moby/moby/api/types/swarm"
)

// Constraint is one placement constraint: "node.role==manager".
type Constraint struct {
	Key   string
	Not   bool
	Value string
}

// String is the constraint in its shortest spelling; equal constraints have equal strings.
func (c Constraint) String() string {
	if c.Not {
		return c.Key + "!=" + c.Value
	}
	return c.Key + "==" + c.Value
}

// ParseConstraints reads placement constraints. Errors are Invalid, with Docker's texts.
func ParseConstraints(exprs []string) ([]Constraint, error) {
	out := make([]Constraint, 0, len(exprs))
	for _, e := range exprs {
		// "==" is looked for first, wherever it stands, as Docker does.
		op := "=="
		key, value, ok := strings.Cut(e, op)
		if !ok {
			op = "!="
			if key, value, ok = strings.Cut(e, op); !ok {
				return nil, Invalidf("constraint expected one operator from ==, !=")
			}
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !constraintKey(key) {
			return nil, Invalidf("key '%s' is invalid", key)
		}
		if !constraintValue(value) {
			return nil, Invalidf("value '%s' is invalid", value)
		}
		out = append(out, Constraint{Key: key, Not: op == "!=", Value: value})
	}
	return out, nil
}

func constraintKey(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z':
		case i > 0 && (c == '-' || c == '.' || c >= '0' && c <= '9'):
		default:
			return false
		}
	}
	return len(s) >= 2
}

func constraintValue(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c|0x20 >= 'a' && c|0x20 <= 'z', c >= '0' && c <= '9':
		case strings.IndexByte(":-_ \t\n\f\r.*()?+[]\\^$|/", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// Prefixes of the keys that read labels; what follows them is case sensitive.
const (
	nodeLabelPrefix   = "node.labels."
	engineLabelPrefix = "engine.labels."
)

// Match reports whether a node satisfies the constraint; id is the node's identifier as
// users see it. Keys and values compare without case, a label that is not there is
// empty, and a key that nobody knows is never satisfied.
func (c Constraint) Match(n *Node, id string) bool {
	if label, ok := cutPrefixFold(c.Key, nodeLabelPrefix); ok {
		return c.equal(n.Spec.Labels[label])
	}
	if label, ok := cutPrefixFold(c.Key, engineLabelPrefix); ok {
		return c.equal(n.Description.Engine.Labels[label])
	}
	switch strings.ToLower(c.Key) {
	case "node.id":
		return c.equal(id)
	case "node.hostname":
		return c.equal(n.Description.Hostname)
	case "node.role":
		return c.equal(string(n.Spec.Role))
	case "node.platform.os":
		return c.equal(n.Description.Platform.OS)
	case "node.platform.arch":
		return c.equal(n.Description.Platform.Architecture)
	case "node.ip":
		return c.matchIP(n.Addr)
	}
	return false
}

func (c Constraint) equal(what string) bool { return strings.EqualFold(c.Value, what) != c.Not }

// matchIP compares with one address or a subnet; a value that is neither fits no node.
func (c Constraint) matchIP(addr string) bool {
	node, _ := netip.ParseAddr(addr)
	node = node.Unmap()
	if ip, err := netip.ParseAddr(c.Value); err == nil {
		return (ip.Unmap() == node) != c.Not
	}
	if p, err := netip.ParsePrefix(c.Value); err == nil {
		return p.Contains(node) != c.Not
	}
	return false
}

// ValidIP reports whether the value is an address or a subnet, as "node.ip" needs it.
func (c Constraint) ValidIP() bool {
	_, addr := netip.ParseAddr(c.Value)
	_, subnet := netip.ParsePrefix(c.Value)
	return addr == nil || subnet == nil
}

// NodeMatches reports whether a node satisfies all constraints.
func NodeMatches(cs []Constraint, n *Node, id string) bool {
	for _, c := range cs {
		if !c.Match(n, id) {
			return false
		}
	}
	return true
}

// PlatformMatches reports whether a node runs one of the platforms; an empty list is any, an
// empty field of a platform is any. The kernel's names of architectures are understood.
func PlatformMatches(ps []swarm.Platform, node swarm.Platform) bool {
	if len(ps) == 0 {
		return true
	}
	arch := goArch(node.Architecture)
	for _, p := range ps {
		if (p.Architecture == "" || goArch(p.Architecture) == arch) && (p.OS == "" || p.OS == node.OS) {
			return true
		}
	}
	return false
}

func goArch(a string) string {
	switch a {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return a
}

// cutPrefixFold cuts a prefix without regard to case; nothing must not remain.
func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) > len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
		return s[len(prefix):], true
	}
	return "", false
}
