package model

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestNamerRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var key [16]byte
		copy(key[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "key"))
		n := NewNamer(key)
		k := TaskKey(TaskID{ServiceID(rapid.Uint64Range(1, 1<<56-1).Draw(t, "service")), rapid.Uint64Min(1).Draw(t, "task")})
		id := n.ID(k)
		if len(id) != IDLen || strings.Trim(id, idAlphabet) != "" {
			t.Fatalf("ID(%v) = %q", k, id)
		}
		got, ok := n.Parse(id)
		if !ok || got != k {
			t.Fatalf("Parse(%q) = %v, %v; want %v", id, got, ok, k)
		}
	})
}

func TestNamerRefusesForeign(t *testing.T) {
	a, b := NewNamer([16]byte{1}), NewNamer([16]byte{2})
	for _, id := range []string{
		"", "web", strings.Repeat("z", IDLen), strings.Repeat("0", IDLen), strings.Repeat("A", IDLen),
		b.ServiceID(7), b.TaskID(TaskID{7, 9}), a.ServiceID(7) + "0",
	} {
		if k, ok := a.Parse(id); ok {
			t.Errorf("Parse(%q) = %v, want refused", id, k)
		}
	}
}

func TestNamerNeighboursDiffer(t *testing.T) {
	n := NewNamer([16]byte{3})
	seen := map[string]bool{}
	for i := range 1000 {
		seen[n.TaskID(TaskID{1, uint64(i + 1)})[:8]] = true
	}
	if len(seen) < 990 {
		t.Errorf("1,000 neighbours share prefixes: only %d different ones of 8 characters", len(seen))
	}
}

func TestCanMove(t *testing.T) {
	order := []TaskState{StateNew, StatePending, StateAssigned, StateAccepted, StatePreparing, StateReady, StateStarting, StateRunning}
	for i, from := range order {
		for j, to := range order {
			if got := CanMove(from, to); got != (j > i) {
				t.Errorf("CanMove(%s, %s) = %v", from, to, got)
			}
		}
	}
	for _, c := range []struct {
		from, to TaskState
		want     bool
	}{
		{StateRunning, StateFailed, true}, {StateFailed, StateShutdown, false}, {StateComplete, StateFailed, false},
		{StateShutdown, StateOrphaned, true}, {StateNew, TaskState(5), false},
	} {
		if got := CanMove(c.from, c.to); got != c.want {
			t.Errorf("CanMove(%s, %s) = %v", c.from, c.to, got)
		}
	}
}

func BenchmarkNamerID(b *testing.B) {
	n := NewNamer([16]byte{3})
	for b.Loop() {
		n.TaskID(TaskID{1, 12345})
	}
}
