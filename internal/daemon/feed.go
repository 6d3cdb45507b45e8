package daemon

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/runtime"
)

// feedLength is how much news of containers may wait for the API: who tells it cannot wait.
const feedLength = 4096

// feed carries what happens to this node's containers from those who see it to the API.
type feed struct {
	news    chan news
	dropped atomic.Int64
}

// news is an event of a container, or its health.
type news struct {
	runtime.Event
	health container.HealthStatus
}

func newFeed() *feed { return &feed{news: make(chan news, feedLength)} }

func (f *feed) put(n news) {
	select {
	case f.news <- n:
	default:
		f.dropped.Add(1)
	}
}

func (f *feed) happened(e runtime.Event) { f.put(news{Event: e}) }

func (f *feed) healthIs(id string, now container.HealthStatus) {
	f.put(news{Event: runtime.Event{Container: runtime.Container{ID: id}, At: time.Now()}, health: now})
}

// WatchContainers tells the API what happens to containers, from the daemon's start on.
func (b *backend) WatchContainers(ctx context.Context, fn func(dockerapi.ContainerEvent)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-b.feed.news:
			if e, ok := b.containerEvent(ctx, n); ok {
				fn(e)
			}
			if lost := b.feed.dropped.Swap(0); lost > 0 {
				b.log.Warn("events of containers were lost: too many at a time", "count", lost)
			}
		}
	}
}

// containerEvent puts an event into Docker's words; false when its container is gone.
func (b *backend) containerEvent(ctx context.Context, n news) (dockerapi.ContainerEvent, bool) {
	c := n.Container
	if n.health != "" {
		var err error
		if c, err = b.runtime.Container(ctx, c.ID); err != nil {
			return dockerapi.ContainerEvent{}, false
		}
		n.Action = runtime.Action(events.ActionHealthStatus) + ": " + runtime.Action(n.health)
	}
	e := dockerapi.ContainerEvent{Container: b.container(&c, nil, b.snapshot()), Action: events.Action(n.Action), At: n.At, Attrs: map[string]string{}}
	switch n.Action {
	case runtime.ActionKill:
		e.Attrs["signal"] = strconv.Itoa(int(n.Signal))
	case runtime.ActionDie:
		e.Attrs["exitCode"] = strconv.Itoa(c.Exit.Code)
		e.Attrs["execDuration"] = strconv.Itoa(int(max(n.At.Sub(c.StartedAt), 0).Seconds()))
	}
	return e, true
}
