package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/moby/moby/api/types/events"
)

const (
	// eventsKept and eventBytesKept bound the events that are kept, by number (a power of two) and by the memory that
	// they take. They are what a client that comes later can still read, and how far a slow one may fall behind: more
	// than the largest stack's removal and the largest batches make at once.
	eventsKept     = 8192
	eventBytesKept = 8 << 20
	// eventsAtOnce is how many events a reader takes from the log at once.
	eventsAtOnce = 64
)

// eventLog is a bounded ring of events, numbered from 0, that any number of readers go through at
// their own pace: a reader costs the writer nothing, and is cut off only when it is a whole ring behind.
// Its methods may be called concurrently.
type eventLog struct {
	mu    sync.Mutex
	ring  []events.Message // event n is at n modulo its length, which is a power of two and grows to eventsKept
	first uint64           // the number of the oldest event kept
	next  uint64           // the number that the next event gets
	bytes int              // what the kept events take, about
	// wake is closed by the next event or the log's end; it is nil when no reader waits, so that
	// a batch of events wakes the readers once and not once an event.
	wake    chan struct{}
	readers int
	closed  bool
}

func newEventLog() *eventLog { return &eventLog{ring: make([]events.Message, eventsAtOnce)} }

// add appends an event and lets go of the oldest as the bounds ask.
func (l *eventLog) add(m events.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := eventSize(m)
	for l.next > l.first && (l.next-l.first == eventsKept || l.bytes+size > eventBytesKept) {
		l.drop()
	}
	if l.next-l.first == uint64(len(l.ring)) {
		l.grow()
	}
	*l.at(l.next) = m
	l.next++
	l.bytes += size
	l.rouse()
}

func (l *eventLog) at(n uint64) *events.Message { return &l.ring[n&uint64(len(l.ring)-1)] }

func (l *eventLog) drop() {
	m := l.at(l.first)
	l.bytes -= eventSize(*m)
	*m = events.Message{}
	l.first++
}

func (l *eventLog) grow() {
	ring := make([]events.Message, 2*len(l.ring))
	for n := l.first; n < l.next; n++ {
		ring[n&uint64(len(ring)-1)] = *l.at(n)
	}
	l.ring = ring
}

func (l *eventLog) rouse() {
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

// eventSize is about what an event takes in memory.
func eventSize(m events.Message) int {
	n := 192 + len(m.Actor.ID)
	for k, v := range m.Actor.Attributes {
		n += 48 + len(k) + len(v)
	}
	return n
}

// close ends the log: readers get what there is, and then errEventsEnded.
func (l *eventLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.rouse()
}

func (l *eventLog) listeners() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.readers
}

// errEventsEnded is the end of the log.
var errEventsEnded = errors.New("no more events: the daemon stops")

// laggedError is the end for a reader that fell a whole ring behind.
type laggedError struct{ missed uint64 }

func (e laggedError) Error() string {
	return fmt.Sprintf("this client did not keep up and missed %d events: ask again, with 'since' for what is still kept", e.missed)
}

// eventReader is a place in the log. One goroutine uses it.
type eventReader struct {
	log  *eventLog
	next uint64
	buf  [eventsAtOnce]events.Message
}

// read returns a reader of what comes from now on, or with past also of all that is kept. The caller closes it.
func (l *eventLog) read(past bool) *eventReader {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readers++
	r := &eventReader{log: l, next: l.next}
	if past {
		r.next = l.first
	}
	return r
}

func (r *eventReader) close() {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	r.log.readers--
}

// take returns the events that are there, at most eventsAtOnce, valid until the next take; when there are none, a
// channel that is closed when there may be. It fails with laggedError and errEventsEnded.
func (r *eventReader) take() ([]events.Message, <-chan struct{}, error) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.next < l.first {
		return nil, nil, laggedError{missed: l.first - r.next}
	}
	got := r.buf[:0]
	for ; r.next < l.next && len(got) < len(r.buf); r.next++ {
		got = append(got, *l.at(r.next))
	}
	switch {
	case len(got) > 0:
		return got, nil, nil
	case l.closed:
		return nil, nil, errEventsEnded
	case l.wake == nil:
		l.wake = make(chan struct{})
	}
	return nil, l.wake, nil
}

// each hands event after event to send until ctx ends; what was there by then is handed over first. It
// returns nil then, or else send's error or take's.
func (r *eventReader) each(ctx context.Context, send func(events.Message) error) error {
	for {
		ended := ctx.Err() != nil
		got, more, err := r.take()
		if err != nil {
			return err
		}
		for _, m := range got {
			if err := send(m); err != nil {
				return err
			}
		}
		switch {
		case len(got) == len(r.buf):
		case ended:
			return nil
		case len(got) == 0:
			select {
			case <-more:
			case <-ctx.Done():
			}
		}
	}
}
