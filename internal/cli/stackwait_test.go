package cli

import (
	"testing"
	"time"
)

// A service whose tasks fail is given up when nothing else gets on, not while it may wait for others.
func TestPatience(t *testing.T) {
	p := patience{seen: map[string]*failures{}}
	now := time.Unix(0, 0)
	look := func(web string, webRuns, dbUp bool) bool {
		now = now.Add(time.Second)
		st := &stackStatus{Services: []stackService{{Name: "web", Desired: 1, LastFailure: web, LastError: "exit 1", Converged: webRuns}, {Name: "db", Desired: 1, Converged: dbUp}}}
		if webRuns {
			st.Services[0].Running = 1
		}
		got := p.over(st, now)
		if len(got) > 0 && (got[0].Name != "web" || got[0].Why != "its tasks keep failing: exit 1") {
			t.Errorf("given up: %+v", got)
		}
		return len(got) > 0
	}
	// It fails while the other one is on its way: the failure at which that one is there is the first that counts.
	for i, task := range []string{"", "1", "2"} {
		if look(task, false, false) {
			t.Errorf("given up at step %d", i)
		}
	}
	for i, task := range []string{"3", "3", "4", "4"} {
		if look(task, false, true) {
			t.Errorf("given up at step %d after the other is up", i)
		}
	}
	if !look("5", false, true) {
		t.Error("not given up")
	}
	// One that runs for a moment in between fails all the same; one that goes on running does not.
	if look("5", true, true) || !look("6", false, true) {
		t.Error("to run for a moment is enough")
	}
	for range 3 {
		look("6", true, true)
	}
	if look("7", false, true) {
		t.Error("a failure after it ran for a while ends the wait")
	}
}
