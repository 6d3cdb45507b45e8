package agent

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

// The failures that count are Docker's; a success counts at any time.
func TestHealthCounts(t *testing.T) {
	start := time.Unix(1000, 0)
	check := &container.HealthConfig{Test: []string{"CMD", "x"}, Interval: 10 * time.Second, Timeout: time.Second, StartPeriod: 30 * time.Second,
		StartInterval: 2 * time.Second, Retries: 2}
	const none, starting, healthy, failing, unhealthy = model.HealthNone, model.HealthStarting, model.HealthHealthy, model.HealthFailing, model.HealthUnhealthy
	type at struct {
		second, code int
		want         model.Health
	}
	for _, test := range []struct {
		name   string
		before model.Health
		probes []at
	}{
		{"healthy at once", none, []at{{1, 0, healthy}}},
		{"failures of the start period do not count", none, []at{{1, 1, starting}, {10, 1, starting}, {29, 1, starting}, {29, 0, healthy}}},
		{"never healthy", none, []at{{29, 1, starting}, {31, 1, starting}, {33, 1, starting}, {41, 1, unhealthy}}},
		{"one failure takes it out", none, []at{{1, 0, healthy}, {11, 1, failing}, {13, 0, healthy}, {23, 1, failing}, {25, 1, failing}, {33, 1, unhealthy}}},
		{"after the daemon's restart", healthy, []at{{500, 1, failing}, {510, 1, unhealthy}}},
		{"in the start period too, once it was healthy", none, []at{{1, 0, healthy}, {11, 1, failing}, {21, 1, unhealthy}}},
	} {
		h := newHealth(check, start, test.before)
		for _, p := range test.probes {
			end := start.Add(time.Duration(p.second) * time.Second)
			if got := h.take(&container.HealthcheckResult{End: end, ExitCode: p.code}); got != p.want {
				t.Errorf("%s: at %d s: %s, want %s", test.name, p.second, got, p.want)
			}
		}
		if len(h.report().Log) > keptProbes {
			t.Errorf("%s: %d checks kept", test.name, len(h.report().Log))
		}
	}
}

func TestHealthPauses(t *testing.T) {
	h := newHealth(&container.HealthConfig{Interval: 10 * time.Second, StartInterval: 2 * time.Second, Retries: 9}, time.Now(), model.HealthNone)
	var got []string
	for range 7 {
		got = append(got, h.pause().String())
		h.take(&container.HealthcheckResult{End: time.Now(), ExitCode: 1})
	}
	h.take(&container.HealthcheckResult{})
	got = append(got, h.pause().String())
	h.take(&container.HealthcheckResult{End: time.Now(), ExitCode: 1})
	got = append(got, h.pause().String())
	if text := strings.Join(got, " "); text != "100ms 200ms 400ms 800ms 1.6s 2s 2s 10s 2s" {
		t.Error(text)
	}
}

// sick is a container whose checks say what they are told to.
type sick struct {
	code   atomic.Int64
	probes atomic.Int64
}

func (s *sick) program(ctx context.Context, _ string, spec runtime.ExecSpec) int {
	s.probes.Add(1)
	code := int(s.code.Load())
	if code < 0 { // hangs
		<-ctx.Done()
		return 137
	}
	fmt.Fprintf(spec.Stdout, "code %d", code)
	return code
}

// A task with a check is running when it is healthy, says so when it is not, and ends then.
func TestHealthOfTask(t *testing.T) {
	h := newHost(t)
	s := &sick{}
	s.code.Store(1)
	h.node.Program = s.program
	m := newScripted(t, h)
	spec := simpleSpec()
	spec.ContainerSpec.Healthcheck = &container.HealthConfig{Test: []string{"CMD-SHELL", "x"}, Interval: 20 * time.Millisecond, Timeout: 10 * time.Second,
		StartPeriod: time.Hour, StartInterval: 10 * time.Millisecond, Retries: 2}
	m.template(1, spec)
	id := m.assign(1, 1, model.StateRunning)
	_, stop := h.start(t)
	m.awaitState(id, model.StateStarting)
	eventually(t, "some checks", func() bool { return s.probes.Load() > 2 })
	if st := m.state(id); st.State != model.StateStarting || st.Health != model.HealthStarting {
		t.Errorf("before it is healthy: %+v", st)
	}
	s.code.Store(0)
	if st := m.awaitState(id, model.StateRunning); st.Health != model.HealthHealthy {
		t.Errorf("running and %s", st.Health)
	}
	// Another daemon goes on with what this one knew, and does not begin with a start period.
	stop()
	a, _ := h.start(t)
	m.awaitState(id, model.StateRunning)
	eventually(t, "checks by the next daemon", func() bool { l := a.Tasks(); return len(l) == 1 && l[0].Health != nil && len(l[0].Health.Log) > 0 })
	s.code.Store(3)
	if r := m.awaitState(id, model.StateFailed); !strings.Contains(r.Err, "unhealthy container: 2 health checks failed, the last one with: code 3") {
		t.Errorf("%+v", r)
	}
}

// A check that hangs is killed and fails.
func TestHealthCheckHangs(t *testing.T) {
	h := newHost(t)
	s := &sick{}
	s.code.Store(-1)
	h.node.Program = s.program
	m := newScripted(t, h)
	spec := simpleSpec()
	spec.ContainerSpec.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "x"}, Interval: 10 * time.Millisecond, Timeout: 20 * time.Millisecond,
		StartInterval: 10 * time.Millisecond, Retries: 2}
	m.template(1, spec)
	id := m.assign(1, 1, model.StateRunning)
	h.start(t)
	if r := m.awaitState(id, model.StateFailed); !strings.Contains(r.Err, "Health check exceeded timeout (20ms)") {
		t.Errorf("%+v", r)
	}
}

// Checks that hang hold up those of their own tasks only.
func TestSlowHealthChecks(t *testing.T) {
	h := newHost(t)
	healthy := ContainerID(externalID(maxProbes + 1))
	var hung atomic.Int64
	h.node.Program = func(ctx context.Context, container string, _ runtime.ExecSpec) int {
		if container != healthy {
			hung.Add(1)
			<-ctx.Done()
		}
		return 0
	}
	m := newScripted(t, h)
	spec := simpleSpec()
	spec.ContainerSpec.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "x"}, Interval: time.Hour, Timeout: time.Hour, Retries: 1}
	m.template(1, spec)
	h.start(t)
	for i := range uint64(maxProbes) {
		m.assign(i+1, 1, model.StateRunning)
	}
	eventually(t, "all places are taken", func() bool { return hung.Load() == maxProbes })
	m.awaitState(m.assign(maxProbes+1, 1, model.StateRunning), model.StateRunning)
}

// Managers that were taken back to a moment when a task's checks failed hear that they do not any more.
func TestHealthOfTheMomentIsTold(t *testing.T) {
	h := newHost(t)
	h.node.Program = new(sick).program
	m := newScripted(t, h)
	spec := simpleSpec()
	spec.ContainerSpec.Healthcheck = &container.HealthConfig{Test: []string{"CMD-SHELL", "x"}, Interval: time.Hour, Timeout: 10 * time.Second,
		StartPeriod: time.Hour, StartInterval: 10 * time.Millisecond, Retries: 2}
	m.template(1, spec)
	id := m.assign(1, 1, model.StateRunning)
	h.start(t)
	m.awaitState(id, model.StateRunning)
	m.set(func() {
		m.tasks[id].Health = uint32(model.HealthFailing)
		old := m.states[id]
		old.Health = model.HealthFailing
		m.states[id] = old
	})
	m.disconnect()
	eventually(t, "the managers know better", func() bool { return m.state(id).Health == model.HealthHealthy })
}
