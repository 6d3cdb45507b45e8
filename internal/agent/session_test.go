package agent

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-swarm/skep/internal/keeper/jsonlog"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/fake"
	"github.com/skep-swarm/skep/internal/wire"
	"github.com/skep-swarm/skep/internal/wire/pb"
)

// What is not acknowledged is said again in the next session, under its number.
func TestReportsAreRepeated(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	m.mute = true
	id := m.assign(1, 1, model.StateRunning)
	h.start(t)
	eventually(t, "container runs", func() bool { return containerState(h.node, ContainerID(externalID(1))) == runtime.Running })
	eventually(t, "a report", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.reports > 0 })
	m.set(func() { m.mute = false })
	m.disconnect()
	m.awaitState(id, model.StateRunning)
}

// A node that lost its memory takes the managers' word for where its tasks stand and leaves them running.
func TestLostMemory(t *testing.T) {
	h := newHost(t)
	m := newScripted(t, h)
	m.template(1, simpleSpec())
	id := m.assign(1, 1, model.StateRunning)
	_, stop := h.start(t)
	m.awaitState(id, model.StateRunning)
	m.disconnect()
	stop()
	if err := removeStore(h.config().Dir); err != nil {
		t.Fatal(err)
	}
	steps := len(h.node.Steps())
	a, _ := h.start(t)
	eventually(t, "the task is known", func() bool { l := a.Tasks(); return len(l) == 1 && l[0].State == model.StateRunning })
	eventually(t, "its network is back", func() bool { return h.net.numTasks() == 1 })
	if more := h.node.Steps()[steps:]; len(more) > 0 {
		t.Errorf("steps were taken: %v", more)
	}
	h.node.End(ContainerID(externalID(1)), runtime.Exit{Code: 9})
	if r := m.awaitState(id, model.StateFailed); r.ExitCode != 9 {
		t.Errorf("%+v", r)
	}
}

// Nothing goes back in time: what is older than what the node has applied is refused with the session.
func TestRefusesOlderWord(t *testing.T) {
	_, m, a, _ := runningTask(t)
	m.set(func() {
		m.tell(&pb.Assignments{At: &pb.Position{Incarnation: 1, Index: m.index - 1}, Complete: true, Node: nodeInfoMessage()})
	})
	eventually(t, "the session ended", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.hellos) > 1
	})
	if l := a.Tasks(); len(l) != 1 {
		t.Errorf("%d tasks are left", len(l))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := m.hellos[1].Applied; got.Index != m.index || m.hellos[1].LastSession != 1 {
		t.Errorf("second hello: applied %v, last session %d", got, m.hellos[1].LastSession)
	}
}

// A swarm that was taken up again may give the name of a task that this node is just removing, because it knew nothing of
// it, to one that it sends here: that begins anew when the former has gone, and the former's state is not taken for its own.
func TestNameGivenAnewWhileItsTaskLeaves(t *testing.T) {
	h, m, a, id := runningTask(t)
	first := m.state(id)
	release := h.node.Block(fake.Stop, ContainerID(externalID(1)))
	m.remove(id)
	m.set(func() { delete(m.states, id) })
	m.assign(1, 1, model.StateRunning)
	eventually(t, "both were heard", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.applied.Index == m.index
	})
	release()
	eventually(t, "another container runs", func() bool {
		r := m.state(id)
		return r.State == model.StateRunning && r.PID != 0 && r.PID != first.PID && containerState(h.node, ContainerID(externalID(1))) == runtime.Running
	})
}

// A task that others declared orphaned is ended here, too.
func TestOrphanedIsStopped(t *testing.T) {
	h, m, _, id := runningTask(t)
	m.set(func() { m.tasks[id].State = uint32(model.StateOrphaned) })
	m.assign(1, 1, model.StateRunning)
	eventually(t, "container ended", func() bool { return containerState(h.node, ContainerID(externalID(1))) == runtime.Exited })
}

func TestLogsAndQuestions(t *testing.T) {
	h, m, _, id := runningTask(t)
	cid := ContainerID(externalID(1))
	w := jsonlog.NewWriter(jsonlog.Path(h.config().Containers+"/"+cid, cid), jsonlog.Config{}, &jsonlog.Buffers{})
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	say := func(text string) {
		w.Append("stdout", []byte(text), true, time.Now())
		w.Flush(time.Now())
	}
	say("one")
	say("two")
	read := func(token string, req *pb.LogsRequest) (next func() string) {
		ch := make(chan pb.Dispatch_StreamServer, 1)
		m.set(func() {
			m.streams[token] = ch
			m.out <- &pb.ToAgent{Kind: &pb.ToAgent_OpenStream{OpenStream: &pb.OpenStream{Token: []byte(token), Kind: &pb.OpenStream_Logs{Logs: req}}}}
		})
		s := <-ch
		var lines []string
		return func() string {
			for len(lines) == 0 {
				f, err := s.Recv()
				if err != nil {
					return "error"
				}
				if c := f.GetClose(); c != nil {
					return "end " + c.Error
				}
				for _, e := range f.GetLogEntries().GetEntries() {
					lines = append(lines, string(e.Line))
				}
			}
			l := lines[0]
			lines = lines[1:]
			return l
		}
	}
	ref := []*pb.TaskRef{wire.Ref(id), wire.Ref(model.TaskID{Service: 9, Num: 9})}
	next := read("tail", &pb.LogsRequest{Tasks: ref, Tail: 1})
	if got := next() + "," + next(); got != "two,end " {
		t.Errorf("tail: %q", got)
	}
	next = read("follow", &pb.LogsRequest{Tasks: ref, Tail: -1, Follow: true})
	if got := next() + "," + next(); got != "one,two" {
		t.Errorf("from the beginning: %q", got)
	}
	say("three")
	if got := next(); got != "three" {
		t.Errorf("followed: %q", got)
	}
	if err := w.Close(time.Now()); err != nil {
		t.Fatal(err)
	}
	// The log of a task that has ended is complete: its followers are done.
	m.assign(1, 1, model.StateShutdown)
	if got := next(); got != "end " {
		t.Errorf("after the end: %q", got)
	}
	m.set(func() {
		m.out <- &pb.ToAgent{Kind: &pb.ToAgent_Ask{Ask: &pb.Ask{Id: 5}}}
	})
	if r := <-m.askReply; r.Id != 5 || !strings.Contains(r.Error, "does not know the question") {
		t.Errorf("a question of a later version: %v", r)
	}
}

// In virtual time: a manager that falls silent is left after three periods, and the node comes back by itself.
func TestSilentManagerIsLeft(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.dir = dir
		m := newScripted(t, h)
		m.template(1, simpleSpec())
		id := m.assign(1, 1, model.StateRunning)
		a, stop := h.start(t)
		time.Sleep(10 * time.Second)
		if !a.Status().Connected || m.state(id).State != model.StateRunning {
			t.Fatalf("after 10 s: %+v, task %s", a.Status(), m.state(id).State)
		}
		m.set(func() { m.silent = true })
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		m.mu.Lock()
		if len(m.hellos) != 1 {
			t.Errorf("%d sessions while the lease still held", len(m.hellos))
		}
		m.silent = false
		m.mu.Unlock()
		m.set(func() { m.silent = true })
		time.Sleep(time.Minute)
		m.set(func() { m.silent = false })
		time.Sleep(20 * time.Second)
		m.mu.Lock()
		if n := len(m.hellos); n < 5 || n > 30 {
			t.Errorf("%d sessions in a minute of silence", n)
		}
		m.mu.Unlock()
		if !a.Status().Connected || containerState(h.node, ContainerID(externalID(1))) != runtime.Running {
			t.Errorf("afterwards: %+v", a.Status())
		}
		stop()
		m.disconnect()
		m.srv.Stop()
	})
}

// BenchmarkHundredTasks is the agent's own cost of a hundred tasks, from assignment to running and to nothing left.
func BenchmarkHundredTasks(b *testing.B) {
	h := newHost(b)
	m := newScripted(b, h)
	m.template(1, simpleSpec())
	a, _ := h.start(b)
	eventually(b, "connected", m.connected)
	base := uint64(0)
	for b.Loop() {
		var ids []model.TaskID
		for n := range uint64(100) {
			ids = append(ids, m.assign(base+n+1, 1, model.StateRunning))
		}
		for _, id := range ids {
			m.awaitState(id, model.StateRunning)
		}
		for _, id := range ids {
			m.remove(id)
		}
		eventually(b, "gone", func() bool { return len(a.Tasks()) == 0 })
		if l := len(h.node.Containers()); l != 0 {
			b.Fatal(fmt.Sprint(l, " containers are left"))
		}
		base += 100
	}
}
