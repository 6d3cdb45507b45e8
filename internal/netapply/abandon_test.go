package netapply

import (
	"context"
	"errors"
	"testing"

	"github.com/skep-swarm/skep/internal/netplan"
)

// TestGivenUpTaskIsNotMade: a task whose turn never came leaves no claim behind, which a repair would fill.
func TestGivenUpTaskIsNotMade(t *testing.T) {
	n := &Network{tasks: map[string]*taskState{}, slots: make(chan struct{}, 1)}
	n.slots <- struct{}{} // all places are taken
	st := &taskState{task: netplan.Task{ID: "0123456789abcdef"}}
	n.tasks[st.task.Name()] = st
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.acquire(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	n.abandon(st)
	if len(n.tasks) != 0 || !st.gone {
		t.Errorf("%d claims are left", len(n.tasks))
	}
	st = &taskState{task: netplan.Task{ID: "0123456789abcdef"}, done: true}
	n.tasks[st.task.Name()] = st
	n.abandon(st)
	if len(n.tasks) != 1 {
		t.Error("a task that has its namespace was forgotten")
	}
}
