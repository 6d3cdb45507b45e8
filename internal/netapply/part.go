package netapply

import (
	"errors"

	"github.com/skep-swarm/skep/internal/netplan"
)

// partOf says that an error is one network's.
func partOf(network uint64, err error) error {
	if err == nil {
		return nil
	}
	return &netplan.PartError{Network: network, Err: err}
}

// part says that an error is the task's.
func (st *taskState) part(err error) error {
	if err == nil {
		return nil
	}
	e := &netplan.PartError{Task: st.name(), Err: err}
	for _, a := range st.task.Nets {
		e.Nets = append(e.Nets, a.Network)
	}
	return e
}

// onePerPart joins errors and leaves out all but the first of each part: what is wrong with one is met again in every
// step that comes after.
func onePerPart(errs []error) error {
	type part struct {
		task    string
		network uint64
	}
	seen := map[part]bool{}
	parts, rest := netplan.Parts(errors.Join(errs...))
	out := []error{rest}
	for _, e := range parts {
		if k := (part{e.Task, e.Network}); !seen[k] {
			seen[k] = true
			out = append(out, e)
		}
	}
	return errors.Join(out...)
}
