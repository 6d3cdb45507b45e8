package dns

import "time"

// partBytes is about how long a part of a table becomes; even escaped byte by byte it is far below the keeper's limit of 1 MiB for
// a message.
const partBytes = 128 << 10

// Table calls fn with all that is known of a network, as a complete table in parts. For a network that is not known it does
// nothing.
func (s *Server) Table(id uint64, fn func(*Table) error) error {
	s.mu.RLock()
	n := s.nets[id]
	if n == nil || !s.known[id] {
		s.mu.RUnlock()
		return nil
	}
	whole := Table{Network: id, Complete: true, Draft: uint64(time.Now().UnixNano()), Name: n.name, Subnets: n.subnets, Internal: n.internal}
	for _, svc := range n.services {
		if svc.known {
			whole.Services = append(whole.Services, svc.row)
		}
	}
	for _, t := range n.tasks {
		whole.Tasks = append(whole.Tasks, *t)
	}
	s.mu.RUnlock()
	return whole.Split(fn)
}

// Split calls fn with the parts of a table, the last of which has More only when the table has. The parts of a complete one need
// a Draft of their own.
func (t *Table) Split(fn func(*Table) error) error {
	head := Table{Network: t.Network, Gone: t.Gone, Complete: t.Complete, Draft: t.Draft, Name: t.Name, Subnets: t.Subnets, Internal: t.Internal}
	part, size := head, 0
	var failed error
	room := func(n int) bool {
		if size += n; size <= partBytes {
			return failed == nil
		}
		full := part
		full.More = full.Complete
		failed = fn(&full)
		part, size = head, n
		return failed == nil
	}
	for _, id := range t.ServicesRemoved {
		if room(24) {
			part.ServicesRemoved = append(part.ServicesRemoved, id)
		}
	}
	for _, k := range t.TasksRemoved {
		if room(48) {
			part.TasksRemoved = append(part.TasksRemoved, k)
		}
	}
	for _, r := range t.Services {
		if room(bytesOf(r.Names)) {
			part.Services = append(part.Services, r)
		}
	}
	for _, r := range t.Tasks {
		if room(bytesOf(r.Names)) {
			part.Tasks = append(part.Tasks, r)
		}
	}
	if failed != nil {
		return failed
	}
	part.More = t.More
	return fn(&part)
}

func bytesOf(names []string) int {
	n := 160
	for _, name := range names {
		n += len(name) + 3
	}
	return n
}
