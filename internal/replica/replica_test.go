package replica

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

func entry(t *testing.T, changes ...model.Change) []byte {
	t.Helper()
	data, err := state.EncodeBatch(&model.Batch{Txns: []model.Txn{{Changes: changes}}})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestWatchSeesEveryStep(t *testing.T) {
	r := New()
	_, w := r.Watch()
	defer w.Close()
	for i := range 5 {
		r.Apply(uint64(i+1), entry(t, model.Change{PutNode: &model.Node{ID: model.NodeID(i + 1)}}))
	}
	steps, err := w.Next(t.Context())
	if err != nil || len(steps) != 5 {
		t.Fatalf("%d steps, %v", len(steps), err)
	}
	for i, s := range steps {
		if s.Before.NumNodes() != i || s.After.NumNodes() != i+1 || s.Outcome.Touched[0] != model.NodeKey(model.NodeID(i+1)) {
			t.Errorf("step %d: %d → %d nodes, touched %v", i, s.Before.NumNodes(), s.After.NumNodes(), s.Outcome.Touched)
		}
	}
}

func TestSlowWatchIsToldToLookAtEverything(t *testing.T) {
	r := New()
	_, w := r.Watch()
	defer w.Close()
	e := entry(t, model.Change{PutCluster: &model.Cluster{}})
	for i := range maxPending + 10 {
		r.Apply(uint64(i+1), e)
	}
	steps := w.Take()
	if len(steps) != 10 || steps[0].Outcome != nil || steps[0].Before.Index() != 0 {
		t.Fatalf("%d steps, first %+v", len(steps), steps[0])
	}
	if last := steps[len(steps)-1]; last.After.Index() != maxPending+10 {
		t.Errorf("the last step is %d", last.After.Index())
	}
}

func TestRestoreAndWaitIndex(t *testing.T) {
	r, other := New(), New()
	r.Apply(7, entry(t, model.Change{PutNode: &model.Node{ID: 3}}))
	var buf bytes.Buffer
	if err := r.Snapshot().Encode(&buf); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := other.WaitIndex(t.Context(), 7)
		done <- err
	}()
	if err := other.Restore(&buf); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || other.Snapshot().Node(3) == nil {
		t.Errorf("after the restore: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := other.WaitIndex(ctx, 8); err == nil {
		t.Error("WaitIndex(8) returned at index 7")
	}
	if _, ok := other.Apply(8, []byte{1, 2, 3}).(error); !ok {
		t.Error("a damaged entry gave no error")
	}
}
