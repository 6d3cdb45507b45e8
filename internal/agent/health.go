package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

const (
	maxProbes      = 8                      // health checks that begin at a time on a node: each starts a program
	slowProbe      = time.Second            // one that takes longer, for it waits for something, holds up no others
	maxProbeOutput = 4 << 10                // bytes kept of what a check says, as Docker keeps
	keptProbes     = 5                      // checks remembered, as Docker remembers
	firstProbe     = 100 * time.Millisecond // after the start; the pauses double from there
	maxStreak      = 1 << 20
)

// health is what the checks of one container said. What counts is Docker's: a check every interval, retries failures in a row end
// the task, failures within the start period do not count. Between those checks a container that is not healthy is looked at more
// often, and only a success counts then: it gets its traffic as soon as it can serve. Safe for concurrent use.
type health struct {
	check *container.HealthConfig

	mu      sync.Mutex
	grace   time.Time // failures before do not count
	counted time.Time // when a failure counted last
	tries   int       // before the first success
	status  model.Health
	streak  int
	log     []*container.HealthcheckResult
}

// newHealth begins with a container that started then; one that was healthy in an earlier process of the daemon is still.
func newHealth(check *container.HealthConfig, started time.Time, before model.Health) *health {
	h := &health{check: check, grace: started.Add(max(check.StartPeriod, check.Interval)), status: before}
	if h.status == model.HealthNone {
		h.status = model.HealthStarting
	}
	return h
}

// pause is how long to wait before the next check.
func (h *health) pause() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	often := min(h.check.Interval, h.check.StartInterval)
	switch h.status {
	case model.HealthHealthy:
		return h.check.Interval
	case model.HealthStarting:
		return min(firstProbe<<min(h.tries, 10), often)
	}
	return often
}

// take notes the result of one check and returns the health after it.
func (h *health) take(r *container.HealthcheckResult) model.Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, r)
	if len(h.log) > keptProbes {
		h.log = h.log[1:]
	}
	h.tries++
	if r.ExitCode == 0 {
		h.status, h.streak, h.counted = model.HealthHealthy, 0, time.Time{}
		return h.status
	}
	if r.End.Before(h.grace) && h.status == model.HealthStarting || r.End.Before(h.counted.Add(h.check.Interval)) {
		return h.status
	}
	h.counted = r.End
	h.streak = min(h.streak+1, maxStreak)
	switch {
	case h.streak >= h.check.Retries:
		h.status = model.HealthUnhealthy
	case h.status == model.HealthHealthy:
		h.status = model.HealthFailing
	}
	return h.status
}

// why is the last check's output in a line.
func (h *health) why() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.log) == 0 {
		return "unhealthy container"
	}
	last := h.log[len(h.log)-1]
	text := strings.Join(strings.Fields(last.Output), " ")
	if len(text) > 200 {
		text = text[:200] + "…"
	}
	if text == "" {
		text = fmt.Sprintf("exit code %d", last.ExitCode)
	}
	return fmt.Sprintf("unhealthy container: %d health checks failed, the last one with: %s", h.streak, strings.ToValidUTF8(text, "?"))
}

// report is the health as Docker's inspect shows it.
func (h *health) report() *container.Health {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return &container.Health{Status: apiHealth(h.status), FailingStreak: h.streak, Log: append([]*container.HealthcheckResult{}, h.log...)}
}

// apiHealth is Docker's word. It has none for a container that begins to fail: the streak says it.
func apiHealth(h model.Health) container.HealthStatus {
	if h == model.HealthFailing {
		return container.Healthy
	}
	return container.HealthStatus(h.String())
}

// watched is what came of watching a container.
type watched struct {
	exit runtime.Exit
	up   bool
}

// watch checks a running container's health until it has ended, or, when first is set, until a check has succeeded. A container that
// is not healthy any more is stopped.
func (c *controller) watch(ctx context.Context, rt runtime.Controller, h *health, first bool) (watched, error) {
	type end struct {
		exit runtime.Exit
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan end, 1)
	var waiter sync.WaitGroup
	waiter.Go(func() {
		exit, err := rt.Wait(ctx)
		ended <- end{exit, err}
	})
	defer waiter.Wait()
	defer cancel()
	for {
		timer := time.NewTimer(h.pause())
		select {
		case e := <-ended:
			timer.Stop()
			return watched{exit: e.exit}, e.err
		case <-timer.C:
		}
		result := c.probe(ctx, rt, h.check)
		if result == nil {
			e := <-ended // the context or the container has ended
			return watched{exit: e.exit}, e.err
		}
		now := h.take(result)
		c.t.setHealth(now)
		switch {
		case now == model.HealthHealthy && first:
			return watched{up: true}, nil
		case now == model.HealthUnhealthy:
			if err := c.Stop(ctx); err != nil {
				return watched{}, err
			}
			e := <-ended
			e.exit.Err = h.why()
			return watched{exit: e.exit}, e.err
		}
	}
}

// probe runs one check; nil when the context or the container ended meanwhile.
func (c *controller) probe(ctx context.Context, rt runtime.Controller, check *container.HealthConfig) *container.HealthcheckResult {
	if c.a.probes.Acquire(ctx, 1) != nil {
		return nil
	}
	release := sync.OnceFunc(func() { c.a.probes.Release(1) })
	defer release()
	defer time.AfterFunc(slowProbe, release).Stop()
	args := check.Test[1:]
	if check.Test[0] == "CMD-SHELL" {
		args = []string{"/bin/sh", "-c", strings.Join(args, " ")}
	}
	out := &tail{left: maxProbeOutput}
	r := &container.HealthcheckResult{Start: time.Now(), ExitCode: -1}
	limited, cancel := context.WithTimeout(ctx, check.Timeout)
	defer cancel()
	p, err := rt.Exec(limited, runtime.ExecSpec{ID: "probe" + strconv.FormatInt(r.Start.UnixNano(), 36), Args: args, Stdout: out, Stderr: out})
	if err == nil {
		r.ExitCode, err = p.Wait(limited)
		if limited.Err() != nil && ctx.Err() == nil {
			//lint:ignore ST1005 Docker's words
			err = errors.Join(fmt.Errorf("Health check exceeded timeout (%v)", check.Timeout), c.end(ctx, p))
			r.ExitCode = -1
		}
	}
	if ctx.Err() != nil {
		if p != nil {
			_ = c.end(context.WithoutCancel(ctx), p)
		}
		return nil
	}
	if runtime.KindOf(err) == runtime.KindNotRunning || errors.Is(err, runtime.ErrNotFound) {
		return nil
	}
	r.End, r.Output = time.Now(), out.String()
	if err != nil {
		r.Output += err.Error()
	}
	return r
}

// end kills a check that takes too long.
func (c *controller) end(ctx context.Context, p runtime.Process) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := p.Signal(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	_, err := p.Wait(ctx)
	return err
}

// tail is a buffer that drops what is over its size. Safe for concurrent use.
type tail struct {
	mu   sync.Mutex
	text strings.Builder
	left int
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := min(len(b), t.left)
	t.text.Write(b[:n])
	t.left -= n
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(t.text.String(), "?")
}
