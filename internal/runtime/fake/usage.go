package fake

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	"github.com/skep-swarm/skep/internal/runtime"
)

// Signal implements runtime.Controller: what ends programs ends this one, unless it ignores its stop signal; what does not is
// noted as a step.
func (c *controller) Signal(ctx context.Context, sig syscall.Signal) error {
	n := c.r.node
	if err := n.enter(ctx, Signal, c.id); err != nil {
		return err
	}
	found, err := c.runs()
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if found.State != runtime.Running {
		return nil
	}
	switch sig {
	case syscall.SIGKILL:
		n.end(found, runtime.Exit{Code: 128 + int(sig)})
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
		if !found.behaviour.IgnoresStop {
			n.end(found, found.behaviour.Exit)
		}
	}
	return nil
}

// Usage implements runtime.Controller: a container has used a tenth of a processor of two since it started.
func (c *controller) Usage(ctx context.Context) (runtime.Usage, error) {
	if err := ctx.Err(); err != nil {
		return runtime.Usage{}, context.Cause(ctx)
	}
	found, err := c.runs()
	if err != nil {
		return runtime.Usage{}, err
	}
	n := c.r.node
	n.mu.Lock()
	defer n.mu.Unlock()
	ran := uint64(n.now().Sub(found.StartedAt))
	return runtime.Usage{
		At: n.now(), CPU: runtime.CPUUsage{Total: ran/10 + 1, User: ran / 10}, System: uint64(n.now().UnixNano()) * 2, OnlineCPUs: 2,
		Memory:    runtime.MemoryUsage{Usage: 3 << 20, Limit: 1 << 30, Detail: map[string]uint64{"inactive_file": 1 << 20}},
		Processes: 1, Networks: map[string]runtime.InterfaceUsage{"eth0": {RxBytes: 1000, TxBytes: 2000}},
		Block: []runtime.BlockUsage{{Major: 8, ReadBytes: 4096, WrittenBytes: 8192, Reads: 1, Writes: 2}},
	}, nil
}

// Processes implements runtime.Controller: there is the first one alone.
func (c *controller) Processes(ctx context.Context) ([]int, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	found, err := c.runs()
	if err != nil {
		return nil, err
	}
	c.r.node.mu.Lock()
	defer c.r.node.mu.Unlock()
	return []int{found.PID}, nil
}

// Root implements runtime.Controller.
func (c *controller) Root(ctx context.Context) (*os.File, func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	if c.find() == nil {
		return nil, nil, notFound(c.id)
	}
	path := os.DevNull
	if c.r.node.Files != nil {
		path = c.r.node.Files(c.id)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	return dir, func() { _ = dir.Close() }, nil
}

// Layers implements runtime.Controller: the container's root is its upper directory, over "lower" beside it.
func (c *controller) Layers(ctx context.Context) (runtime.Layers, error) {
	if err := ctx.Err(); err != nil {
		return runtime.Layers{}, context.Cause(ctx)
	}
	if c.find() == nil {
		return runtime.Layers{}, notFound(c.id)
	}
	if c.r.node.Files == nil {
		return runtime.Layers{Upper: os.DevNull, Lower: []string{os.DevNull}}, nil
	}
	upper := c.r.node.Files(c.id)
	return runtime.Layers{Upper: upper, Lower: []string{filepath.Join(filepath.Dir(upper), "lower")}}, nil
}

// runs returns the container when it runs.
func (c *controller) runs() (*container, error) {
	found := c.find()
	if found == nil {
		return nil, notFound(c.id)
	}
	c.r.node.mu.Lock()
	defer c.r.node.mu.Unlock()
	if found.State != runtime.Running {
		return nil, runtime.NotRunning(c.id)
	}
	return found, nil
}
