package daemon

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/skepapi"
	"github.com/skep-swarm/skep/internal/state"
)

// backend answers the API out of the parts.
type backend struct {
	*host
	*member
	below func() error // ends the member's and the host's layer
}

var (
	_ dockerapi.Backend = (*backend)(nil)
	_ skepapi.Backend   = (*backend)(nil)
)

// State is a snapshot that holds every write acknowledged before the call.
func (b *backend) State(ctx context.Context) (*state.Snapshot, error) {
	a, err := b.manager()
	if err != nil {
		return nil, err
	}
	index, err := a.log.ReadIndex(ctx)
	if err != nil {
		return nil, model.Errorf(model.Unavailable, "rpc error: code = Unavailable desc = the swarm has no leader at the moment (%v). It's possible that too few managers are online. Make sure more than half of the managers are online.", err)
	}
	if err := a.log.Wait(ctx, index); err != nil {
		return nil, err
	}
	s := a.replica.Snapshot()
	if s.Cluster() == nil {
		return nil, model.Errorf(model.Unavailable, "the swarm is just being made: try again in a moment")
	}
	return s, nil
}

// Propose puts a batch into the log.
func (b *backend) Propose(ctx context.Context, batch *model.Batch) (*model.Outcome, error) {
	a, err := b.manager()
	if err != nil {
		return nil, err
	}
	return a.proposer.Propose(ctx, batch)
}

// Watch follows the state of whatever swarm this node is in.
func (b *backend) Watch(ctx context.Context, fn func(dockerapi.Applied)) error {
	for {
		b.mu.Lock()
		a, moved := b.current, b.moved
		b.mu.Unlock()
		if a == nil {
			select {
			case <-moved:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		if a.follow(ctx, fn); ctx.Err() != nil {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil
		}
	}
}

// follow calls fn for each step until the node's part in the swarm ends.
func (a *active) follow(ctx context.Context, fn func(dockerapi.Applied)) {
	_, w := a.replica.Watch()
	defer w.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.done:
			return
		case <-w.Ready():
			for _, s := range w.Take() {
				if s.Outcome != nil {
					fn(dockerapi.Applied{Before: s.Before, After: s.After, Outcome: s.Outcome})
				}
			}
		}
	}
}

// checkPortsTimeout bounds how long a node is asked; one that does not answer has no objection.
const checkPortsTimeout = 2 * time.Second

// CheckPorts asks the ready nodes whether programs of theirs hold the ports.
func (b *backend) CheckPorts(ctx context.Context, list []swarm.PortConfig) ([]dockerapi.PortRefusal, error) {
	a, err := b.manager()
	if err != nil {
		return nil, err
	}
	var ask []model.PortClash
	for _, p := range list {
		if p.PublishedPort != 0 {
			ask = append(ask, model.PortClash{Protocol: protocol(p), Port: uint16(p.PublishedPort)})
		}
	}
	if len(ask) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkPortsTimeout)
	defer cancel()
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		out []dockerapi.PortRefusal
	)
	for n := range a.replica.Snapshot().Nodes() {
		if n.State != swarm.NodeStateReady {
			continue
		}
		wg.Go(func() {
			clashes, err := a.dispatch.CheckPorts(ctx, n.ID, ask)
			if err != nil {
				b.log.Debug("a node was not asked about its ports", "node", n.Hostname(), "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, c := range clashes {
				out = append(out, dockerapi.PortRefusal{Node: n.ID, Protocol: c.Protocol, Port: uint32(c.Port), Message: c.Message})
			}
		})
	}
	wg.Wait()
	return out, nil
}

func protocol(p swarm.PortConfig) string {
	if p.Protocol == "" {
		return "tcp"
	}
	return string(p.Protocol)
}

// Local is what this node is in its swarm.
func (b *backend) Local() dockerapi.Local {
	a := b.active()
	if a == nil {
		return dockerapi.Local{State: swarm.LocalNodeStateInactive}
	}
	l := dockerapi.Local{State: swarm.LocalNodeStateActive, Manager: a.id.Manager, Node: a.id.Node, NodeID: a.id.NodeID, Addr: a.id.addr()}
	s := a.replica.Snapshot()
	if s.Cluster() == nil {
		l.State = swarm.LocalNodeStatePending
		return l
	}
	if k, ok := s.Cluster().Namer().Parse(a.log.Leader()); ok {
		l.Leader = k.Node()
	}
	namer := s.Cluster().Namer()
	for n := range s.Nodes() {
		if n.ManagerAddr != "" {
			l.RemoteManagers = append(l.RemoteManagers, swarm.Peer{NodeID: namer.NodeID(n.ID), Addr: n.ManagerAddr})
		}
	}
	return l
}

// JoinSwarm and UnlockSwarm come with swarms of several nodes.
func (b *backend) JoinSwarm(context.Context, swarm.JoinRequest) error {
	return model.Errorf(model.Unimplemented, "this version of skep runs swarms of one node: joining another one is not supported yet")
}

// UnlockSwarm answers as Docker does for a swarm that is not locked: none can be, yet.
func (b *backend) UnlockSwarm(context.Context, string) error {
	if b.active() == nil {
		return model.Errorf(model.Unavailable, "This node is not part of a swarm")
	}
	return model.Conflictf("swarm is not locked")
}

// SystemInfo is what does not change, and a few counts.
func (b *backend) SystemInfo(ctx context.Context) (dockerapi.SystemInfo, error) {
	i := b.machine.SystemInfo
	list, err := b.ListContainers(ctx)
	if err != nil {
		return i, err
	}
	for _, c := range list {
		if c.PID != 0 {
			i.ContainersRunning++
		} else {
			i.ContainersStopped++
		}
	}
	all, err := b.images.All(ctx)
	if err != nil {
		return i, sorted(err)
	}
	i.Images = len(all)
	if i.RuncVersion == "not installed" {
		i.Warnings = append(i.Warnings, "runc is not installed, so no task can run: apt-get install runc")
	}
	return i, nil
}

// sorted gives containerd's errors the kinds that the API knows.
func sorted(err error) error {
	var known *model.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errdefs.IsNotFound(err):
		return model.NotFoundf("%s", without(err, errdefs.ErrNotFound))
	case errdefs.IsInvalidArgument(err):
		return model.Invalidf("%s", without(err, errdefs.ErrInvalidArgument))
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err):
		return model.Conflictf("%s", without(err, errdefs.ErrConflict))
	case errdefs.IsUnauthorized(err):
		return model.Errorf(model.Unauthorized, "%s", without(err, errdefs.ErrUnauthenticated))
	case errdefs.IsUnavailable(err):
		return model.Errorf(model.Unavailable, "%s", without(err, errdefs.ErrUnavailable))
	}
	return err
}

// without is an error's text without the kind that it was marked with at its end: the status says that.
func without(err, kind error) string { return strings.TrimSuffix(err.Error(), ": "+kind.Error()) }
