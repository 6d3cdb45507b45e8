package dns

import (
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
)

// outcome is what the tables say of a question.
type outcome int

const (
	foreign outcome = iota // not ours: to be asked outside
	found                  // ours, with or without an address
	absent                 // ours to say, and there is none
)

// lookup finds a name in the networks of a task, in their order: first as it is, then as NAME.NETWORK. The first network
// that knows it answers, with addresses or without.
func lookup(nets []*network, name []byte, typ uint16, self TaskKey, out []netip.Addr) ([]netip.Addr, outcome) {
	for _, n := range nets {
		if list, ok := n.find(name, typ, self, out); ok {
			return list, found
		}
	}
	for _, n := range nets {
		if bare, ok := n.strip(name); ok {
			if list, ok := n.find(bare, typ, self, out); ok {
				return list, found
			}
		}
	}
	return out, foreign
}

// reverse finds who has an address in the networks of a task: NAME.NETWORK. An address of theirs that nobody has is absent:
// servers outside know nothing of it.
func reverse(nets []*network, a netip.Addr) (string, outcome) {
	in := false
	for _, n := range nets {
		if name, ok := n.byAddr[a]; ok {
			if n.name == "" {
				return name, found
			}
			return name + "." + n.name, found
		}
		in = in || n.has(a)
	}
	if in {
		return "", absent
	}
	return "", foreign
}

// parseReverse reads the address that a name of in-addr.arpa or ip6.arpa (in lower case) asks for.
func parseReverse(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(s, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		var ip [4]byte
		for i, p := range parts {
			n, err := strconv.ParseUint(p, 10, 8)
			if err != nil {
				return netip.Addr{}, false
			}
			ip[3-i] = byte(n)
		}
		return netip.AddrFrom4(ip), true
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(s) != 63 {
		return netip.Addr{}, false
	}
	var digits [32]byte
	for i := range digits {
		if i > 0 && s[2*i-1] != '.' {
			return netip.Addr{}, false
		}
		digits[31-i] = s[2*i]
	}
	var ip [16]byte
	if _, err := hex.Decode(ip[:], digits[:]); err != nil {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16(ip), true
}
