package dockerapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

// statsInterval is the time between two looks at a container's usage.
const statsInterval = time.Second

// containerStats answers what a container uses: once, or each second until the client goes or the container does.
func (s *Server) containerStats(r *request, c *Container) error {
	stream := r.query("stream") == "" || r.bool("stream")
	oneShot := r.bool("one-shot") && !r.version.before(41)
	if stream && oneShot {
		return model.Invalidf("cannot have stream=true and one-shot=true")
	}
	ctl, err := s.backend.Control(c.ID)
	if err != nil {
		return err
	}
	w := &statsWriter{r: r, c: c, ctl: ctl}
	if !stream {
		if err := w.look(r.ctx()); err != nil {
			return err
		}
		if !oneShot && !w.last.Read.IsZero() {
			// A share of the processors is known of two looks only.
			if err := pause(r.ctx(), statsInterval); err != nil {
				return err
			}
			if err := w.look(r.ctx()); err != nil && !errors.Is(err, runtime.ErrNotFound) {
				return err
			}
		}
		return writeJSON(r, http.StatusOK, w.last)
	}
	r.w.Header().Set("Content-Type", "application/json")
	out := newStreamWriter(r.w)
	defer func() { _ = out.Close() }()
	enc := json.NewEncoder(out)
	for {
		err := w.look(r.ctx())
		if errors.Is(err, runtime.ErrNotFound) || r.ctx().Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if enc.Encode(w.last) != nil || pause(r.ctx(), statsInterval) != nil {
			return nil // the client is gone
		}
	}
}

// statsWriter makes answers, each with the processor times of the one before.
type statsWriter struct {
	r    *request
	c    *Container
	ctl  Control
	last container.StatsResponse
}

// look makes the next answer; of a container that does not run it is empty, as Docker's is.
func (w *statsWriter) look(ctx context.Context) error {
	use, err := w.ctl.Usage(ctx)
	before := w.last
	w.last = container.StatsResponse{ID: w.c.ID, Name: "/" + w.c.Name, OSType: "linux"}
	switch {
	case runtime.KindOf(err) == runtime.KindNotRunning:
		return nil
	case errors.Is(err, runtime.ErrNotFound):
		return fmt.Errorf("%w: %w", notFoundf("No such container: %s", w.c.ID), err)
	case err != nil:
		return fmt.Errorf("read what container %s uses: %w", w.c.ID, err)
	}
	fillStats(&w.last, &use)
	w.last.PreRead, w.last.PreCPUStats = before.Read, before.CPUStats
	return nil
}

func fillStats(out *container.StatsResponse, use *runtime.Usage) {
	out.Read = use.At
	out.CPUStats = container.CPUStats{
		CPUUsage: container.CPUUsage{TotalUsage: use.CPU.Total, PercpuUsage: use.CPU.PerCPU, UsageInKernelmode: use.CPU.Kernel,
			UsageInUsermode: use.CPU.User},
		SystemUsage: use.System, OnlineCPUs: uint32(use.OnlineCPUs),
		ThrottlingData: container.ThrottlingData{Periods: use.CPU.Periods, ThrottledPeriods: use.CPU.Throttled, ThrottledTime: use.CPU.Withheld},
	}
	out.MemoryStats = container.MemoryStats{Usage: use.Memory.Usage, MaxUsage: use.Memory.Max, Limit: use.Memory.Limit, Failcnt: use.Memory.Failures,
		Stats: use.Memory.Detail}
	out.PidsStats = container.PidsStats{Current: use.Processes, Limit: use.MaxProcesses}
	for _, b := range use.Block {
		out.BlkioStats.IoServiceBytesRecursive = append(out.BlkioStats.IoServiceBytesRecursive,
			container.BlkioStatEntry{Major: b.Major, Minor: b.Minor, Op: "read", Value: b.ReadBytes},
			container.BlkioStatEntry{Major: b.Major, Minor: b.Minor, Op: "write", Value: b.WrittenBytes})
		out.BlkioStats.IoServicedRecursive = append(out.BlkioStats.IoServicedRecursive,
			container.BlkioStatEntry{Major: b.Major, Minor: b.Minor, Op: "read", Value: b.Reads},
			container.BlkioStatEntry{Major: b.Major, Minor: b.Minor, Op: "write", Value: b.Writes})
	}
	for name, n := range use.Networks {
		if out.Networks == nil {
			out.Networks = map[string]container.NetworkStats{}
		}
		out.Networks[name] = container.NetworkStats{RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
			TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped}
	}
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return cmp.Or(context.Cause(ctx), ctx.Err())
	}
}
