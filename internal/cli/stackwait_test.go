package cli

import (
	"fmt"
	"testing"
)

// A service whose tasks fail is given up when nothing else gets on, not while it may wait for others.
func TestPatience(t *testing.T) {
	p := patience{failures: map[string]int{}, last: map[string]string{}}
	look := func(web, db int, dbUp bool) []stackService {
		st := &stackStatus{Services: []stackService{{Name: "web", Desired: 1, LastFailure: fmt.Sprint(web), LastError: "exit 1"}, {Name: "db", Desired: 1, Converged: dbUp}}}
		if db > 0 {
			st.Services[1].LastFailure = fmt.Sprint(db)
		}
		return p.over(st)
	}
	for i := range 2 {
		if got := look(i+1, 0, false); got != nil {
			t.Errorf("failure %d: given up: %+v", i, got)
		}
	}
	// What it waits for is there: it gets three more.
	for i := range 2 {
		if got := look(i+3, 0, true); got != nil {
			t.Errorf("failure %d after the other is up: given up: %+v", i, got)
		}
		if got := look(i+3, 0, true); got != nil {
			t.Errorf("the same failure counts twice: %+v", got)
		}
	}
	if got := look(5, 0, true); len(got) != 1 || got[0].Why != "its tasks keep failing: exit 1" {
		t.Errorf("not given up: %+v", got)
	}
}
