package manager

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-swarm/skep/internal/model"
)

// TestHostClockPutRight: a host whose clock was a day ahead when it wrote to the log still restarts a task after
// its delay, not after a day.
func TestHostClockPutRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.m.NodeUp(1, "192.0.2.1")
		s.service("web", 1, `{"RestartPolicy":{"Delay":7000000000}}`)
		s.run()
		failed := &model.Report{Node: 1, Session: 1, Seq: 100,
			Tasks: []model.TaskReport{{Task: model.TaskID{Service: 1, Num: 1}, State: model.StateFailed, Err: "task: non-zero exit (1)"}}}
		ahead := model.Time(time.Now().Add(24 * time.Hour).UnixNano())
		if _, err := s.prop.Propose(t.Context(), &model.Batch{Actor: "test", Time: ahead, Txns: []model.Txn{{Changes: []model.Change{{Report: failed}}}}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		second := s.r.Snapshot().Task(model.TaskID{Service: 1, Num: 2})
		if second == nil || second.Desired != model.StateReady {
			t.Fatalf("six seconds after the failure: %+v", second)
		}
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if second = s.r.Snapshot().Task(second.ID); second.Desired != model.StateRunning {
			t.Errorf("after the delay the task is desired %s", second.Desired)
		}
	})
}

func TestClockGoesOn(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	sec := func(s int64) model.Time { return model.Time(s * 1e9) }
	var c Clock
	for i, step := range []struct {
		host  time.Time
		state model.Time
		want  model.Time
	}{
		{at(100), 0, sec(100)},
		{at(101), sec(500), sec(500)}, // the state is ahead
		{at(103), sec(500), sec(502)}, // and time goes on from there
		{at(103), sec(500), sec(502)},
		{at(900), sec(502), sec(1299)}, // never slower than what passed
		{at(901), sec(2000), sec(2000)},
	} {
		if got := c.now(step.host, step.state); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got/1e9, step.want/1e9)
		}
	}
}
