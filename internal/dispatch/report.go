package dispatch

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/skep-swarm/skep/internal/model"
)

const (
	maxQueued    = 4096 // changes that wait to be proposed
	maxWeight    = model.MaxBatchChanges
	maxSize      = model.MaxBatchBytes
	firstRetry   = 50 * time.Millisecond
	longestRetry = 2 * time.Second
	proposeLimit = 30 * time.Second
)

// entry is one node's word, a transaction of its own.
type entry struct {
	change model.Change
	weight int // changes
	size   int // bytes, about
	// done is told the transaction's result, nil for accepted; optional.
	done func(error)
}

// reporter turns what nodes say into batches. While one is being agreed on, the next one fills: a single node waits for
// nobody, and a thousand nodes share few log entries.
type reporter struct {
	propose Proposer
	log     *slog.Logger
	random  io.Reader
	queue   chan entry
}

func newReporter(cfg Config) *reporter {
	return &reporter{propose: cfg.Proposer, log: cfg.Log, random: cfg.Random, queue: make(chan entry, maxQueued)}
}

// add queues an entry; when the queue is full it waits, which holds up the node that speaks.
func (r *reporter) add(ctx context.Context, e entry) error {
	select {
	case r.queue <- e:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *reporter) run(ctx context.Context) {
	var held *entry // did not fit into the last batch
	for {
		var first entry
		if held != nil {
			first, held = *held, nil
		} else {
			select {
			case first = <-r.queue:
			case <-ctx.Done():
				return
			}
		}
		var batch []entry
		batch, held = r.fill(first)
		if err := r.flush(ctx, batch); err != nil {
			return
		}
	}
}

// fill takes what waits behind an entry, as far as it fits into one batch; the one that does not is held.
func (r *reporter) fill(first entry) (batch []entry, held *entry) {
	batch = append(batch, first)
	weight, size := first.weight, first.size
	for weight < maxWeight && size < maxSize {
		select {
		case e := <-r.queue:
			if weight+e.weight > maxWeight || size+e.size > maxSize {
				return batch, &e
			}
			batch, weight, size = append(batch, e), weight+e.weight, size+e.size
		default:
			return batch, nil
		}
	}
	return batch, nil
}

// flush proposes until the batch is known to be applied. Reports of a session that ends meanwhile are
// superseded by its next one.
func (r *reporter) flush(ctx context.Context, entries []entry) error {
	b := &model.Batch{Actor: "agent", Reason: "report", Time: model.Time(time.Now().UnixNano())}
	if _, err := io.ReadFull(r.random, b.ID[:]); err != nil {
		return fmt.Errorf("batch identifier: %w", err)
	}
	for _, e := range entries {
		b.Txns = append(b.Txns, model.Txn{Changes: []model.Change{e.change}})
	}
	for wait := firstRetry; ; wait = min(2*wait, longestRetry) {
		pctx, cancel := context.WithTimeout(ctx, proposeLimit)
		out, err := r.propose.Propose(pctx, b)
		cancel()
		if err == nil {
			for i, e := range entries {
				if e.done != nil && i < len(out.Results) {
					e.done(out.Results[i])
				}
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if model.KindOf(err) == model.Invalid {
			// Repeating it would be refused again and hold up everyone else. Nobody's word is lost for another's.
			if len(entries) > 1 {
				return r.flushEach(ctx, entries)
			}
			r.log.Error("nodes' reports were refused", "err", err)
			for _, e := range entries {
				if e.done != nil {
					e.done(err)
				}
			}
			return nil
		}
		r.log.Warn("nodes' reports could not be written, trying again", "err", err, "in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *reporter) flushEach(ctx context.Context, entries []entry) error {
	for i := range entries {
		if err := r.flush(ctx, entries[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}
