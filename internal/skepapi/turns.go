package skepapi

import (
	"context"
	"sync"
)

// turns lets one deploy at a time work on a stack; the others wait. The zero value is ready.
type turns struct {
	mu   sync.Mutex
	busy map[string]*turn
}

// turn is held by who works on a stack; waiting counts those who want it, the holder included.
type turn struct {
	held    chan struct{}
	waiting int
}

// take waits for a stack's turn until ctx ends. Who got it calls done.
func (t *turns) take(ctx context.Context, stack string) (done func(), err error) {
	t.mu.Lock()
	if t.busy == nil {
		t.busy = map[string]*turn{}
	}
	mine := t.busy[stack]
	if mine == nil {
		mine = &turn{held: make(chan struct{}, 1)}
		t.busy[stack] = mine
	}
	mine.waiting++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if mine.waiting--; mine.waiting == 0 {
			delete(t.busy, stack)
		}
	}
	select {
	case mine.held <- struct{}{}:
		return func() { <-mine.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
