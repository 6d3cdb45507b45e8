package netplan

import "slices"

// A Space is what one network namespace must hold.
type Space struct {
	Name       string
	Links      []Link
	Addrs      []Addr
	Routes     []Route
	Rules      []Rule
	Neighbours []Neighbour
	Sysctls    []Sysctl
	Table      *Table // nil when nothing is filtered or translated here
}

// Add joins another part of the same namespace to s.
func (s *Space) Add(o Space) {
	s.Links = append(s.Links, o.Links...)
	s.Addrs = append(s.Addrs, o.Addrs...)
	s.Routes = append(s.Routes, o.Routes...)
	s.Rules = append(s.Rules, o.Rules...)
	s.Neighbours = append(s.Neighbours, o.Neighbours...)
	s.Sysctls = append(s.Sysctls, o.Sysctls...)
}

// Without is s without some links, and all that is planned for them.
func (s Space) Without(gone func(link string) bool) Space {
	s.Links = slices.DeleteFunc(slices.Clone(s.Links), func(l Link) bool { return gone(l.Name) })
	s.Addrs = slices.DeleteFunc(slices.Clone(s.Addrs), func(a Addr) bool { return gone(a.Link) })
	s.Routes = slices.DeleteFunc(slices.Clone(s.Routes), func(r Route) bool { return gone(r.Link) })
	s.Neighbours = slices.DeleteFunc(slices.Clone(s.Neighbours), func(n Neighbour) bool { return gone(n.Link) })
	return s
}
