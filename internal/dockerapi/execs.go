package dockerapi

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

const (
	// maxExecs is how many further processes the API knows at a time, those included that have not begun or have ended. One that
	// has ended gives way.
	maxExecs = 1000
	// execUnused is how long a process may wait to be started, execKept how long its exit code can be asked for.
	execUnused = 10 * time.Minute
	execKept   = 5 * time.Minute
)

// execSession is one further process of a container, from its creation to some time after its end.
type execSession struct {
	id, container string
	// attrs are the container's attributes for events.
	attrs                 map[string]string
	spec                  runtime.ExecSpec
	stdin, stdout, stderr bool
	detachKeys            []byte
	made                  time.Time

	mu      sync.Mutex
	begun   bool
	process runtime.Process // nil until it runs
	code    *int            // set when it has ended
	ended   time.Time
	started chan struct{} // closed when process or code is set
}

func (e *execSession) running() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.process != nil && e.code == nil
}

// begin takes the one chance to start it.
func (e *execSession) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.code != nil:
		return model.Conflictf("Error: Exec command %s has already run", e.id)
	case e.begun:
		return model.Conflictf("Error: Exec command %s is already running", e.id)
	}
	e.begun = true
	return nil
}

func (e *execSession) runs(p runtime.Process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.process = p
	close(e.started)
}

func (e *execSession) end(code int, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.process == nil {
		close(e.started)
	}
	e.code, e.ended = &code, at
}

// execTable holds the further processes that clients asked for. Safe for concurrent use.
type execTable struct {
	now  func() time.Time
	rand io.Reader

	mu     sync.Mutex
	all    map[string]*execSession
	closed bool
	ending context.Context // ends when stop is called
	cancel context.CancelFunc
	wg     sync.WaitGroup // those who watch a process
}

func newExecTable(now func() time.Time, rand io.Reader) *execTable {
	t := &execTable{now: now, rand: rand, all: map[string]*execSession{}}
	t.ending, t.cancel = context.WithCancel(context.Background())
	return t
}

// add gives the session its ID: any manager reads the node's number from its last 16 digits.
func (t *execTable) add(e *execSession, node model.NodeID) error {
	var raw [32]byte
	if _, err := io.ReadFull(t.rand, raw[:24]); err != nil {
		return fmt.Errorf("make an exec ID: %w", err)
	}
	binary.BigEndian.PutUint64(raw[24:], uint64(node))
	e.id, e.made, e.started = hex.EncodeToString(raw[:]), t.now(), make(chan struct{})
	e.spec.ID = e.id
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if len(t.all) >= maxExecs && !t.giveWay() {
		return model.Errorf(model.Exhausted, "this node keeps %d exec instances, which is its limit: try again in some minutes", maxExecs)
	}
	t.all[e.id] = e
	return nil
}

// expire forgets what nobody asks for any more; t.mu is held.
func (t *execTable) expire() {
	now := t.now()
	for id, e := range t.all {
		e.mu.Lock()
		old := !e.begun && now.Sub(e.made) > execUnused || e.code != nil && now.Sub(e.ended) > execKept
		e.mu.Unlock()
		if old {
			delete(t.all, id)
		}
	}
}

// giveWay forgets the one that ended first, whose exit code its client has asked for most likely; false when none has ended. t.mu is
// held.
func (t *execTable) giveWay() bool {
	first, since := "", time.Time{}
	for id, e := range t.all {
		if at, ended := e.endedAt(); ended && (first == "" || at.Before(since)) {
			first, since = id, at
		}
	}
	delete(t.all, first)
	return first != ""
}

// endedAt is when it ended; false while it has not.
func (e *execSession) endedAt() (time.Time, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ended, e.code != nil
}

func (t *execTable) get(id string) (*execSession, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	e := t.all[id]
	if e == nil {
		return nil, notFoundf("No such exec instance: %s", id)
	}
	return e, nil
}

// of are the processes of a container that run or will.
func (t *execTable) of(container string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for id, e := range t.all {
		e.mu.Lock()
		if e.container == container && e.code == nil {
			out = append(out, id)
		}
		e.mu.Unlock()
	}
	return out
}

// execNode is the node that an exec ID names.
func execNode(id string) model.NodeID {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != 32 {
		return 0
	}
	return model.NodeID(binary.BigEndian.Uint64(raw[24:]))
}

// enter lets one more process be watched, unless the daemon ends.
func (t *execTable) enter() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return model.Errorf(unavailable, "the daemon is ending")
	}
	t.wg.Add(1)
	return nil
}

// stop ends all processes and waits for those who watch them.
func (t *execTable) stop() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
}
