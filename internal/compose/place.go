package compose

import (
	"fmt"
	"strings"
)

// places are where the parts of a stack are written, by kind and scoped name, and where its services publish ports.
func (c *converter) places() map[string]Pos {
	out := map[string]Pos{}
	for _, section := range []string{"networks", "secrets", "configs"} {
		for key := range sub(c.m.value, section) {
			out[strings.TrimSuffix(section, "s")+" "+c.named(section, key)] = c.m.at(section, key)
		}
	}
	services := sub(c.m.value, "services")
	for key := range services {
		part := "service " + c.scope.name(key)
		out[part] = c.m.at("services", key)
		for i, p := range list(sub(services, key), "ports") {
			m, _ := p.(dict)
			if n, ok := number(m, "published"); ok && n != 0 {
				out[fmt.Sprintf("%s port %d", part, n)] = c.m.at("services", key, "ports", fmt.Sprint(i))
			}
		}
	}
	return out
}

// Place is where a part of the stack is in the files that Load read: a service, network, secret or config by its scoped name. about is
// what somebody says of it; of a service's port that it names ("port '80'") the place is that port's. The zero Pos is unknown.
func (s *Stack) Place(kind, name, about string) Pos {
	part := kind + " " + name
	if _, rest, ok := strings.Cut(about, "port '"); ok {
		num, _, _ := strings.Cut(rest, "'")
		if pos, ok := s.places[part+" port "+num]; ok {
			return pos
		}
	}
	return s.places[part]
}
