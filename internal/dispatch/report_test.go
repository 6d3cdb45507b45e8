package dispatch

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// boundedLog takes proposals of at most limit bytes, as the real one does.
type boundedLog struct {
	limit int

	mu      sync.Mutex
	sizes   []int
	written []model.NodeID
}

func (l *boundedLog) Propose(_ context.Context, b *model.Batch) (*model.Outcome, error) {
	data, err := state.EncodeBatch(b)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sizes = append(l.sizes, len(data))
	if len(data) > l.limit {
		return nil, model.Invalidf("proposal of %d bytes is too large", len(data))
	}
	for _, t := range b.Txns {
		l.written = append(l.written, t.Changes[0].Report.Node)
	}
	return &model.Outcome{Results: make([]error, len(b.Txns))}, nil
}

// reportAll hands entries to a reporter as if they had come while it was busy, and returns what became of each.
func reportAll(t *testing.T, l *boundedLog, entries []entry) []error {
	t.Helper()
	r := newReporter(Config{Proposer: l, Log: slog.New(slog.DiscardHandler), Random: rand.Reader})
	results := make([]error, len(entries))
	var told sync.WaitGroup
	for i, e := range entries {
		told.Add(1)
		e.done = func(err error) { results[i] = err; told.Done() }
		r.queue <- e
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.run(ctx) }()
	told.Wait()
	cancel()
	<-ended
	return results
}

func reportEntry(node model.NodeID, size int) entry {
	r := &model.Report{Node: node, Session: 1, Seq: 1, Tasks: []model.TaskReport{{Message: strings.Repeat("x", size)}}}
	return entry{change: model.Change{Report: r}, weight: 2, size: size}
}

// One node's word that the log cannot take must not take the others' with it.
func TestARefusedReportIsRefusedAlone(t *testing.T) {
	l := &boundedLog{limit: 4 << 20}
	big := reportEntry(2, 5<<20)
	big.size = 1 // as if it had been weighed wrong
	results := reportAll(t, l, []entry{reportEntry(1, 10), big, reportEntry(3, 10)})
	if results[0] != nil || results[2] != nil || model.KindOf(results[1]) != model.Invalid {
		t.Errorf("results: %v", results)
	}
	if len(l.written) != 2 || l.written[0] != 1 || l.written[1] != 3 {
		t.Errorf("written: %v", l.written)
	}
}

// A thousand nodes that describe themselves at once make batches that the log takes.
func TestBatchesOfReportsAreBoundedInBytes(t *testing.T) {
	l := &boundedLog{limit: model.MaxBatchBytes + 64<<10}
	var entries []entry
	for i := range 200 {
		entries = append(entries, reportEntry(model.NodeID(i+1), 100<<10))
	}
	for i, err := range reportAll(t, l, entries) {
		if err != nil {
			t.Errorf("report %d: %v", i, err)
		}
	}
	if len(l.written) != len(entries) || len(l.sizes) > 25 {
		t.Errorf("%d of %d written in %d batches", len(l.written), len(entries), len(l.sizes))
	}
	for i, id := range l.written {
		if id != model.NodeID(i+1) {
			t.Fatalf("written out of order: %v", l.written)
		}
	}
}
