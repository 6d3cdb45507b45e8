package daemon

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/skep-swarm/skep/internal/replica"
)

// settleLimit is how long requests wait for a daemon that starts to know its swarm again, as dockerd's do. Before, a manager could
// only say that it is none.
const settleLimit = 20 * time.Second

// settled is the handler of a daemon that starts: requests wait until it knows its swarm, or for so long that it likely will not.
type settled struct {
	next http.Handler
	done chan struct{}
}

// run settles and waits for ctx to end. know is what the node knows of its swarm, nil when it is in none.
func (s *settled) run(ctx context.Context, know *replica.Replica) error {
	if know != nil {
		limited, cancel := context.WithTimeout(ctx, settleLimit)
		await(limited, know)
		cancel()
	}
	close(s.done)
	<-ctx.Done()
	return nil
}

// await returns when the swarm is known or ctx ends.
func await(ctx context.Context, know *replica.Replica) {
	snap, w := know.Watch()
	defer w.Close()
	for snap.Cluster() == nil {
		if _, err := w.Next(ctx); err != nil {
			return
		}
		snap = know.Snapshot()
	}
}

// ServeHTTP implements http.Handler. A ping asks for the daemon, not for the swarm.
func (s *settled) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasSuffix(r.URL.Path, "/_ping") {
		select {
		case <-s.done:
		case <-r.Context().Done():
			return
		}
	}
	s.next.ServeHTTP(w, r)
}
