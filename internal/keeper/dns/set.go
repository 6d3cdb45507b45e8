package dns

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// draft is a complete table whose parts are arriving.
type draft struct {
	id  uint64
	net *network
}

// Set takes a table, or a part of one. With an error nothing has changed.
func (s *Server) Set(t *Table) error {
	if err := t.check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.Gone {
		delete(s.drafts, t.Network)
		delete(s.known, t.Network)
		if n := s.nets[t.Network]; n != nil {
			*n = *newNetwork(t.Network)
		}
		s.sweep()
		return nil
	}
	if !s.known[t.Network] && len(s.known) >= MaxNetworks {
		return fmt.Errorf("tables of %d networks are known, which is the limit", MaxNetworks)
	}
	if err := s.room(t); err != nil {
		return err
	}
	if !t.Complete {
		if !s.known[t.Network] {
			return fmt.Errorf("changes to the names of network %d, whose table is not known: send it complete", t.Network)
		}
		s.nets[t.Network].apply(t)
		return nil
	}
	d := s.drafts[t.Network]
	if d == nil || d.id != t.Draft {
		if d == nil && len(s.drafts) >= MaxNetworks {
			return errors.New("too many tables of names are half sent")
		}
		d = &draft{t.Draft, newNetwork(t.Network)}
		s.drafts[t.Network] = d
	}
	d.net.apply(t)
	if !t.More {
		delete(s.drafts, t.Network)
		*s.network(t.Network) = *d.net
		s.known[t.Network] = true
	}
	return nil
}

// room refuses a table that would be too much; s.mu is held.
func (s *Server) room(t *Table) error {
	rows := len(t.Services) + len(t.Tasks)
	for id, n := range s.nets {
		if id != t.Network || !t.Complete {
			rows += n.rows()
		}
	}
	for _, d := range s.drafts {
		rows += d.net.rows()
	}
	if rows > MaxRows {
		return fmt.Errorf("tables of names with %d rows, the limit is %d", rows, MaxRows)
	}
	return nil
}

// network returns the one of a number, made when it is new; s.mu is held.
func (s *Server) network(id uint64) *network {
	n := s.nets[id]
	if n == nil {
		n = newNetwork(id)
		s.nets[id] = n
	}
	return n
}

// sweep drops networks that nobody gave a table for and no task looks at; s.mu is held.
func (s *Server) sweep() {
	used := make(map[uint64]bool, len(s.nets))
	for _, c := range s.clients {
		for _, n := range c.nets {
			used[n.id] = true
		}
	}
	for id := range s.nets {
		if !used[id] && !s.known[id] {
			delete(s.nets, id)
		}
	}
}

// Networks lists the networks that tables were given for, sorted.
func (s *Server) Networks() []uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(s.known))
}
