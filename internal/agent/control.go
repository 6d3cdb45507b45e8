package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/keeper"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/wire"
)

// controller takes a task's steps through the node's means. Only the task's goroutine calls it.
type controller struct {
	a  *Agent
	t  *task
	rt runtime.Controller // nil until it is needed
}

// slot waits for one of the places of those who work at the same time, and returns what gives it back.
func (c *controller) slot(ctx context.Context) (func(), error) {
	if err := c.a.slots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return func() { c.a.slots.Release(1) }, nil
}

// Prepare implements actions: addresses and files, ports, network, logs, container, in this order, each as cheap to
// repeat as to find done.
func (c *controller) Prepare(ctx context.Context) ([]swarm.PortConfig, error) {
	msg, tpl, st := c.t.snapshot()
	if tpl == nil {
		return nil, runtime.Invalid("the task's template is unknown")
	}
	gw, err := gatewayTask(c.t.container, msg)
	if err == nil {
		gw.Nets, err = attachments(msg)
	}
	if err != nil {
		return nil, runtime.Invalid("the task's addresses: %v", err)
	}
	spec, err := c.a.buildSpec(msg, tpl)
	if err != nil {
		return nil, err
	}
	if err := c.ensureImage(ctx, msg, tpl); err != nil {
		return nil, err
	}
	if err := c.deliver(ctx, &spec, msg, tpl); err != nil {
		return nil, err
	}
	if gw.Addr4.IsValid() {
		// Without its part of the gateway network the node can start nothing that needs an address.
		if err := c.a.net.wait(ctx); err != nil {
			return nil, temporary{err}
		}
		if err := c.a.net.awaitOverlays(ctx, gw.Nets); err != nil {
			return nil, err
		}
		if !c.a.net.ip6() {
			gw.Addr6 = netip.Addr{}
		}
	}
	wanted := tpl.hostPorts
	if spec.NetNS == runtime.HostNetNS {
		wanted = nil // it listens on the host itself: a port that was held for it would be in its way
	}
	release, err := c.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	hostPorts, err := c.a.net.claim(ctx, c.t.id, gw, wanted, st.HostPorts)
	if err != nil {
		return nil, err
	}
	if gw.Addr4.IsValid() {
		if spec.NetNS, err = c.a.net.addTask(ctx, c.t.id, gw); err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
		if err := c.a.names.start(ctx, c.a, c.t.id, c.t.container, spec.NetNS, msg, tpl); err != nil {
			return nil, temporary{err}
		}
	}
	if err := c.a.writeFiles(&spec, gw); err != nil {
		return nil, fmt.Errorf("prepare files of the container: %w", err)
	}
	files, err := c.a.cfg.Keeper.Open(ctx, logSpec(c.a.containerDir(spec.ID), spec, tpl))
	if err != nil {
		return nil, err
	}
	spec.Stdout, spec.Stderr = files.Stdout, files.Stderr
	rt, err := c.a.cfg.Runtime.Controller(spec)
	if err != nil {
		return nil, err
	}
	c.rt = rt
	return hostPorts, rt.Prepare(ctx)
}

// gatewayTask is what the gateway network needs to know of a task.
func gatewayTask(container string, m interface {
	GetGateway4() []byte
	GetGateway6() []byte
}) (netplan.Task, error) {
	a4, err := wire.Addr(m.GetGateway4())
	if err != nil {
		return netplan.Task{}, err
	}
	a6, err := wire.Addr(m.GetGateway6())
	if err != nil {
		return netplan.Task{}, err
	}
	return netplan.Task{ID: container, Addr4: a4, Addr6: a6}, nil
}

func logSpec(dir string, spec runtime.Spec, tpl *template) keeper.LogSpec {
	l := keeper.LogSpec{ContainerID: spec.ID, Dir: dir, Driver: tpl.msg.LogDriver, Options: tpl.msg.LogOptions,
		Labels: spec.Labels, ContainerName: spec.Name, ImageID: spec.ImageDigest}
	if d := spec.Task.LogDriver; d != nil {
		l.Driver, l.Options = d.Name, d.Options
	}
	if cs := spec.Task.ContainerSpec; cs != nil {
		l.TTY, l.Env, l.ImageName = cs.TTY, cs.Env, cs.Image
	}
	return l
}

// container returns the runtime's controller, by the container's ID alone when it was not prepared in this process.
func (c *controller) container() (runtime.Controller, error) {
	if c.rt != nil {
		return c.rt, nil
	}
	rt, err := c.a.cfg.Runtime.Open(c.t.container)
	if err != nil {
		return nil, err
	}
	c.rt = rt
	return rt, nil
}

// Start implements actions.
func (c *controller) Start(ctx context.Context) (int, error) {
	rt, err := c.container()
	if err != nil {
		return 0, err
	}
	release, err := c.slot(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	pid, err := rt.Start(ctx)
	if err == nil {
		c.a.net.started(c.t.id, pid)
	}
	return pid, err
}

// Healthy implements actions.
func (c *controller) Healthy(ctx context.Context) (runtime.Exit, bool, error) {
	rt, err := c.container()
	if err != nil {
		return runtime.Exit{}, false, err
	}
	h, err := c.health(ctx, rt)
	if err != nil || h == nil {
		return runtime.Exit{}, err == nil, err
	}
	c.t.setHealth(model.HealthStarting)
	w, err := c.watch(ctx, rt, h, true)
	return w.exit, w.up, err
}

// Wait implements actions.
func (c *controller) Wait(ctx context.Context) (runtime.Exit, error) {
	rt, err := c.container()
	if err != nil {
		return runtime.Exit{}, err
	}
	h, err := c.health(ctx, rt)
	if err != nil {
		return runtime.Exit{}, err
	}
	if h == nil {
		return rt.Wait(ctx)
	}
	w, err := c.watch(ctx, rt, h, false)
	return w.exit, err
}

// health is the record of the container's checks, nil when it has none.
func (c *controller) health(ctx context.Context, rt runtime.Controller) (*health, error) {
	c.t.mu.Lock()
	h, before := c.t.health, c.t.st.Health
	if before == model.HealthNone && c.t.st.State == model.StateRunning {
		before = model.HealthHealthy // the node lost its memory: a task with a check runs only when it was healthy
	}
	c.t.mu.Unlock()
	if h != nil {
		return h, nil
	}
	st, err := rt.Status(ctx)
	if err != nil || st.Healthcheck == nil {
		return nil, err
	}
	h = newHealth(st.Healthcheck, st.StartedAt, before)
	c.t.mu.Lock()
	c.t.health = h
	c.t.mu.Unlock()
	return h, nil
}

// Ended implements actions.
func (c *controller) Ended(ctx context.Context) (runtime.Exit, bool) {
	rt, err := c.container()
	if err != nil {
		return runtime.Exit{}, false
	}
	st, err := rt.Status(ctx)
	if err != nil || st.State != runtime.Exited {
		return runtime.Exit{}, false
	}
	return st.Exit, true
}

// Stop implements actions. It takes no slot: most of its time is the grace period.
func (c *controller) Stop(ctx context.Context) error {
	c.withdraw(ctx)
	return c.stop(ctx)
}

func (c *controller) stop(ctx context.Context) error {
	rt, err := c.container()
	if err == nil {
		err = rt.Stop(ctx)
	}
	if errors.Is(err, runtime.ErrNotFound) {
		return nil
	}
	return err
}

// Release implements doer. The container stays until the task is removed, as do its logs.
func (c *controller) Release(ctx context.Context) error {
	c.awaitUnserved(ctx)
	release, err := c.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	// An orphaned task, or one that another word ended, may still run.
	if err := c.stop(ctx); err != nil {
		return err
	}
	err = errors.Join(c.a.cfg.Files.Remove(c.t.container), c.a.cfg.Keeper.Close(ctx, c.t.container),
		c.a.cfg.Keeper.CloseNames(ctx, c.t.container), c.a.net.drop(ctx, c.t.id, c.t.container))
	if err != nil {
		return fmt.Errorf("clean up after container %s: %w", c.t.container[:12], err)
	}
	return nil
}

// Remove implements doer.
func (c *controller) Remove(ctx context.Context) error {
	release, err := c.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	rt, err := c.container()
	if err == nil {
		err = rt.Remove(ctx)
	}
	if errors.Is(err, runtime.ErrNotFound) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("remove container %s: %w", c.t.container[:12], err)
	}
	dir := c.a.containerDir(c.t.container)
	return errors.Join(c.a.cfg.Files.Remove(c.t.container), c.a.cfg.Keeper.CloseNames(ctx, c.t.container),
		c.a.net.drop(ctx, c.t.id, c.t.container), c.a.cfg.Keeper.Remove(ctx, dir, c.t.container), os.RemoveAll(dir))
}

func (a *Agent) containerDir(id string) string { return filepath.Join(a.cfg.Containers, id) }

// taskName is a container's name as Docker gives it: service.slot.task, or service.node.task for a global one.
func taskName(service, slot, task string) string { return service + "." + slot + "." + task }

var _ doer = (*controller)(nil)
