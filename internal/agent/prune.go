package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-swarm/skep/internal/keeper/ports"
	"github.com/skep-swarm/skep/internal/netplan"
	"github.com/skep-swarm/skep/internal/runtime"
)

// prune takes away, once, what nobody asked for: containers, logs, files and ports that an earlier process left. Before it is
// known what the node should run, from disk or from a manager, it takes nothing.
func (a *Agent) prune(ctx context.Context) {
	select {
	case <-a.knowing:
	case <-ctx.Done():
		return
	}
	wait := firstBackoff
	for {
		err := a.pruneOnce(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		a.cfg.Log.Warn("what nobody asked for could not be taken away, trying again", "err", err, "in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, maxBackoff)
	}
}

func (a *Agent) pruneOnce(ctx context.Context) error {
	// Listed before the tasks are looked at: what is made meanwhile belongs to a task that is known by then.
	list, err := a.cfg.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	held, err := a.cfg.Keeper.List(ctx)
	if err != nil {
		return err
	}
	files, err := a.cfg.Files.List()
	if err != nil {
		return err
	}
	wanted, ended := a.containers()
	var errs []error
	for _, c := range list {
		if _, known := c.Labels["com.docker.swarm.task.id"]; known && !wanted[c.ID] {
			errs = append(errs, a.removeContainer(ctx, c.ID))
		}
	}
	for _, id := range held.Logs {
		if !wanted[id] || ended[id] {
			errs = append(errs, a.cfg.Keeper.Close(ctx, id))
		}
	}
	errs = append(errs, a.pruneContainers(ctx, wanted), a.pruneFiles(files, wanted, ended), a.net.prunePorts(ctx, held.Ports),
		a.names.prune(ctx, a.overlays, held, wanted, ended))
	return errors.Join(errs...)
}

// containers are those of the node's tasks, and which of them belong to tasks that have ended.
func (a *Agent) containers() (wanted, ended map[string]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wanted, ended = map[string]bool{}, map[string]bool{}
	for _, t := range a.byID {
		wanted[t.container] = true
		if _, _, st := t.snapshot(); st.State.Terminal() {
			ended[t.container] = true
		}
	}
	return wanted, ended
}

func (a *Agent) removeContainer(ctx context.Context, id string) error {
	if err := a.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer a.slots.Release(1)
	rt, err := a.cfg.Runtime.Open(id)
	if err == nil {
		err = rt.Remove(ctx)
	}
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return fmt.Errorf("remove container %.12s: %w", id, err)
	}
	return nil
}

// pruneContainers removes the files of containers that are not wanted.
func (a *Agent) pruneContainers(ctx context.Context, wanted map[string]bool) error {
	entries, err := os.ReadDir(a.cfg.Containers)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list files of containers: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if len(e.Name()) != 64 || wanted[e.Name()] {
			continue
		}
		dir := filepath.Join(a.cfg.Containers, e.Name())
		errs = append(errs, a.cfg.Keeper.Remove(ctx, dir, e.Name()), os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// pruneFiles removes the secrets and configs of containers that are not wanted or have ended.
func (a *Agent) pruneFiles(list []string, wanted, ended map[string]bool) error {
	var errs []error
	for _, id := range list {
		if !wanted[id] || ended[id] {
			errs = append(errs, a.cfg.Files.Remove(id))
		}
	}
	return errors.Join(errs...)
}

// prunePorts releases held ports that neither the tables nor a task has.
func (n *network) prunePorts(ctx context.Context, held []ports.Port) error {
	n.holding.Lock()
	defer n.holding.Unlock()
	var list []ports.Port
	n.mu.Lock()
	for _, p := range held {
		key, ok := keyOf(p)
		_, owned := n.owners[key]
		_, row := n.rows[key]
		if !ok || !owned && !row && !n.held[key] {
			list = append(list, p)
		}
	}
	n.mu.Unlock()
	return n.cfg.Keeper.Release(ctx, list)
}

func keyOf(p ports.Port) (netplan.PortKey, bool) {
	switch p.Proto {
	case "tcp":
		return netplan.PortKey{Proto: netplan.TCP, Number: p.Port}, p.HostIP == ""
	case "udp":
		return netplan.PortKey{Proto: netplan.UDP, Number: p.Port}, p.HostIP == ""
	}
	return netplan.PortKey{}, false
}
