package netplan

import (
	"errors"
	"fmt"
)

// A PartError says that one part of a node's networks is not what was planned, and why: an overlay network, or the
// namespace of one task. The other parts do not suffer from it.
type PartError struct {
	// Task is the name of the task when only its namespace is concerned; its networks' virtual addresses may then be
	// those of before in it. Without it the Network itself is concerned, for all of its tasks.
	Task    string
	Network uint64
	// Nets are the networks of the Task.
	Nets []uint64
	Err  error
}

func (e *PartError) Error() string {
	if e.Task != "" {
		return fmt.Sprintf("task %s: %v", e.Task, e.Err)
	}
	return fmt.Sprintf("network %d: %v", e.Network, e.Err)
}

func (e *PartError) Unwrap() error { return e.Err }

// Parts takes an error apart that may be several errors joined: into those of parts, and the rest, which concerns the
// whole node.
func Parts(err error) (parts []*PartError, rest error) {
	switch v := err.(type) {
	case nil:
	case *PartError:
		return []*PartError{v}, nil
	case interface{ Unwrap() []error }:
		var others []error
		for _, e := range v.Unwrap() {
			p, r := Parts(e)
			parts, others = append(parts, p...), append(others, r)
		}
		return parts, errors.Join(others...)
	default:
		return nil, err
	}
	return nil, nil
}
