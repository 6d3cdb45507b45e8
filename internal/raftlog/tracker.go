package raftlog

import "sync"

// tracker counts goroutines. Unlike a WaitGroup it may be waited for, with a limit,
// while others are still being started. The zero value is ready.
type tracker struct {
	mu      sync.Mutex
	n       int
	waiters []chan struct{}
}

func (t *tracker) run(fn func()) {
	t.mu.Lock()
	t.n++
	t.mu.Unlock()
	go func() {
		defer t.done()
		fn()
	}()
}

func (t *tracker) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n > 0 {
		return
	}
	for _, w := range t.waiters {
		close(w)
	}
	t.waiters = nil
}

// idle is closed when no goroutine is left.
func (t *tracker) idle() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := make(chan struct{})
	if t.n == 0 {
		close(w)
	} else {
		t.waiters = append(t.waiters, w)
	}
	return w
}
