package netplan

import (
	"errors"
	"fmt"
	"testing"
)

func TestParts(t *testing.T) {
	broken, lost := &PartError{Network: 7, Err: errors.New("taken")}, &PartError{Task: "abc", Nets: []uint64{8}, Err: errors.New("gone")}
	node := errors.New("no memory")
	parts, rest := Parts(errors.Join(nil, broken, errors.Join(lost, nil), node))
	if len(parts) != 2 || parts[0] != broken || parts[1] != lost {
		t.Errorf("parts: %v", parts)
	}
	if !errors.Is(rest, node) || errors.Is(rest, broken) {
		t.Errorf("the rest: %v", rest)
	}
	if parts, rest := Parts(nil); parts != nil || rest != nil {
		t.Errorf("of nothing: %v, %v", parts, rest)
	}
	if parts, rest := Parts(errors.Join(broken)); len(parts) != 1 || rest != nil {
		t.Errorf("of one part: %v, %v", parts, rest)
	}
	// What several errors were made into one of is no error of a part any more.
	if parts, rest := Parts(fmt.Errorf("make: %w", node)); parts != nil || rest == nil {
		t.Errorf("of none: %v, %v", parts, rest)
	}
	for e, want := range map[*PartError]string{broken: "network 7: taken", lost: "task abc: gone"} {
		if got := e.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
