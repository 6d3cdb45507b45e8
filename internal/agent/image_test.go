package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/skep-swarm/skep/internal/images"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	"google.golang.org/grpc/test/bufconn"
)

var _ Images = (*images.Store)(nil)

// fakeImages is a node's images; a pull gives what the registry has to who knows the password.
type fakeImages struct {
	mu       sync.Mutex
	here     map[string]bool
	password string
	gate     chan struct{} // pulls wait for it, when it is not nil
	pulls    int
	ended    int // pulls that were given up
}

func (f *fakeImages) Has(_ context.Context, name, digest string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.here[name+digest], nil
}

func (f *fakeImages) Ensure(ctx context.Context, name, digest string, auth []byte) error {
	f.mu.Lock()
	f.pulls++
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			f.mu.Lock()
			defer f.mu.Unlock()
			f.ended++
			return ctx.Err()
		}
	}
	if string(auth) != f.password {
		return errors.New("No such image: " + name + " (pull failed: pull access denied)")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.here[name+digest] = true
	return nil
}

func (f *fakeImages) counts() (pulls, ended int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pulls, f.ended
}

func startWith(t *testing.T, h *host, store Images) (a *Agent, stop func()) {
	t.Helper()
	h.images = store
	return h.start(t)
}

func TestPullsImages(t *testing.T) {
	h := newHost(t)
	store := &fakeImages{here: map[string]bool{}, password: `{"password":"hunter2"}`}
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	m.auth = []byte(store.password)
	startWith(t, h, store)
	m.awaitState(m.assign(1, 1, model.StateRunning), model.StateRunning)
	m.awaitState(m.assign(2, 1, model.StateRunning), model.StateRunning)
	if pulls, _ := store.counts(); pulls != 1 {
		t.Errorf("%d pulls of one image", pulls)
	}
	// What the node was told is on its disk, and the password is not.
	err := filepath.Walk(filepath.Join(h.dir, "agent"), func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte("hunter2")) {
			t.Errorf("the password is in %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestPullRefused(t *testing.T) {
	h := newHost(t)
	store := &fakeImages{here: map[string]bool{}, password: "right"}
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	startWith(t, h, store)
	r := m.awaitState(m.assign(1, 1, model.StateRunning), model.StateRejected)
	if r.Err != "No such image: busybox (pull failed: pull access denied)" {
		t.Errorf("rejected: %+v", r)
	}
}

// TestPullGivenUp: a task that is no longer wanted ends its pull, and one whose pull hangs keeps nobody else from starting.
func TestPullGivenUp(t *testing.T) {
	h := newHost(t)
	store := &fakeImages{here: map[string]bool{}, gate: make(chan struct{})}
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	startWith(t, h, store)
	var waiting []model.TaskID
	for n := range uint64(20) { // more than work at the same time
		waiting = append(waiting, m.assign(n+1, 1, model.StateRunning))
	}
	eventually(t, "pulls", func() bool { p, _ := store.counts(); return p == len(waiting) })
	store.mu.Lock()
	store.here[testImage] = true
	store.mu.Unlock()
	m.awaitState(m.assign(100, 1, model.StateRunning), model.StateRunning)
	m.assign(1, 1, model.StateShutdown)
	m.awaitState(waiting[0], model.StateShutdown)
	if _, ended := store.counts(); ended != 1 {
		t.Errorf("%d pulls were given up", ended)
	}
	close(store.gate)
	m.awaitState(waiting[1], model.StateRunning)
}

// TestPullAfterRestart: an agent that starts again has forgotten the credentials, and waits until it is told them again
// rather than failing the task.
func TestPullAfterRestart(t *testing.T) {
	h := newHost(t)
	store := &fakeImages{here: map[string]bool{}, password: "right", gate: make(chan struct{})}
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	m.auth = []byte("right")
	_, stop := startWith(t, h, store)
	id := m.assign(1, 1, model.StateRunning)
	eventually(t, "a pull", func() bool { p, _ := store.counts(); return p == 1 })
	stop()
	m.srv.Stop()

	h.ln = bufconn.Listen(1 << 20) // nobody answers there yet
	close(store.gate)
	a, _ := startWith(t, h, store)
	eventually(t, "the task is taken up", func() bool { return len(a.Tasks()) == 1 })
	if s := a.Tasks()[0].State; s != model.StatePreparing {
		t.Errorf("the task is %s before a manager answered", s)
	}
	next := newScripted(t, h)
	next.template(1, simpleSpec())
	next.auth = []byte("right")
	next.index, next.session = m.index, m.session
	next.assign(1, 1, model.StateRunning)
	next.awaitState(id, model.StateRunning)
	if runtime.Running != containerState(h.node, ContainerID(externalID(1))) {
		t.Error("no container")
	}
}
