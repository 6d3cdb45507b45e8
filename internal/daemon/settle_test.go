package daemon

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/state"
)

// A request to a daemon that starts is answered when it knows its swarm, and not before; a ping is at once.
func TestRequestsWaitForTheSwarm(t *testing.T) {
	for _, c := range []struct {
		name string
		in   bool          // a swarm
		know time.Duration // when it is known; 0 is never
		want time.Duration // when the request is answered
	}{
		{"no swarm", false, 0, 0},
		{"a leader is found", true, 3 * time.Second, 3 * time.Second},
		{"no leader", true, 0, settleLimit},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var know *replica.Replica
				if c.in {
					know = replica.New()
				}
				s := &settled{next: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }), done: make(chan struct{})}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- s.run(ctx, know) }()
				if c.know > 0 {
					b, err := state.EncodeBatch(&model.Batch{Txns: []model.Txn{{Changes: []model.Change{{PutCluster: &model.Cluster{}}}}}})
					if err != nil {
						t.Fatal(err)
					}
					time.AfterFunc(c.know, func() { know.Apply(1, b) })
				}
				start := time.Now()
				ask := func(path string) time.Duration {
					w := httptest.NewRecorder()
					s.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
					if w.Body.String() != "ok" {
						t.Errorf("%s: %q", path, w.Body)
					}
					return time.Since(start)
				}
				if took := ask("/v1.50/_ping"); took != 0 {
					t.Errorf("a ping took %v", took)
				}
				if took := ask("/v1.50/services"); took != c.want {
					t.Errorf("answered after %v, want %v", took, c.want)
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
