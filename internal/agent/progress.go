package agent

import (
	"context"

	"github.com/skep-swarm/skep/internal/model"
)

// progress is how far the kernel follows what should be. network.mu guards it.
type progress struct {
	settled chan struct{} // closed when anything here changes, or a layer, or network.applied
	begun   uint64        // passes so far
	done    uint64        // the last of them that did all that concerns the whole node
	why     error         // why the last one did not; nil when it did
}

func newProgress() progress { return progress{settled: make(chan struct{})} }

// tell wakes all who wait for settled.
func (p *progress) tell() {
	close(p.settled)
	p.settled = make(chan struct{})
}

// awaitPass returns true when a pass that began after the call has brought the kernel in line: all that concerns the whole node,
// and the networks in need up to the given place of their tables.
func (n *network) awaitPass(ctx context.Context, need map[model.NetworkID]place) bool {
	var want uint64
	n.change(func() { want = n.progress.begun + 1 }) // a pass under way may have read the tables before
	for {
		n.mu.Lock()
		reached, settled := n.progress.done >= want, n.progress.settled
		for id, at := range need {
			reached = reached && !n.layers[id].olderThan(at)
		}
		n.mu.Unlock()
		if reached {
			return true
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return false
		}
	}
}
