package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/agent"
	"github.com/skep-swarm/skep/internal/dispatch"
	"github.com/skep-swarm/skep/internal/manager"
	"github.com/skep-swarm/skep/internal/pki"
	"github.com/skep-swarm/skep/internal/raftlog"
	"github.com/skep-swarm/skep/internal/replica"
	"github.com/skep-swarm/skep/internal/wire"
	"google.golang.org/grpc"
)

// active is this node's part in one swarm.
type active struct {
	h  *host
	id *identity

	replica  *replica.Replica
	log      *raftlog.Log
	proposer *manager.Proposer
	manager  *manager.Manager
	dispatch *dispatch.Server
	agent    *agent.Agent

	stopped chan struct{} // closed by stop
	done    chan struct{} // closed when run has returned
	halt    func()
}

// newActive opens the parts; found says that the swarm is new.
func newActive(h *host, id *identity, found bool) (*active, error) {
	a := &active{h: h, id: id, replica: replica.New(), stopped: make(chan struct{}), done: make(chan struct{})}
	a.halt = sync.OnceFunc(func() { close(a.stopped) })
	var err error
	a.log, err = raftlog.Open(raftlog.Config{
		Dir: h.cfg.data("raft"), DataRoot: h.cfg.DataRoot, NodeID: id.NodeID, Key: id.RaftKey, Bootstrap: found, Logger: h.log.With("part", "log"),
	}, manager.Machine{Replica: a.replica})
	if err != nil {
		return nil, err
	}
	a.proposer = &manager.Proposer{Log: a.log}
	a.manager = manager.New(manager.Config{
		State: a.replica, Proposer: a.proposer, Leadership: a.log.Leadership(), LeasePeriod: a.leasePeriod, Log: h.log.With("part", "manager"),
	})
	a.dispatch, err = dispatch.New(dispatch.Config{State: a.replica, Proposer: a.proposer, Lease: a.lease, Log: h.log.With("part", "dispatch")})
	if err == nil {
		err = a.openAgent()
	}
	if err != nil {
		return nil, errors.Join(err, a.log.Close())
	}
	return a, nil
}

func (a *active) openAgent() error {
	node, err := a.h.netNode()
	if err != nil {
		return err
	}
	a.agent, err = agent.New(agent.Config{
		Dir: a.h.cfg.data("agent"), Containers: a.h.cfg.data("containers"), Node: node,
		Managers: wire.NewManagers(a.clientTLS(), a.localAddr()),
		Runtime:  a.h.runtime, Network: a.h.network, Keeper: a.h.keeper, Files: a.h.vault, Images: a.h.images, API: a.h.api.serve, OnHealth: a.h.feed.healthIs,
		Describe: func(ctx context.Context) (agent.Description, error) { return a.h.describe(ctx, a.tlsInfo()) },
		Log:      a.h.log.With("part", "agent"), Version: a.h.cfg.Version,
	})
	return err
}

func (a *active) leasePeriod() time.Duration { return dispatch.LeasePeriod(a.replica.Snapshot()) }

func (a *active) lease(l dispatch.Lease) {
	if l.Up {
		addr := l.Addr
		if ip, err := netip.ParseAddr(addr); err == nil && ip.IsLoopback() {
			addr = "" // this node itself: its advertised address stays what others know it by
		}
		a.manager.NodeUp(l.Node, addr)
		return
	}
	a.manager.NodeDown(l.Node, l.Message)
}

func (a *active) tlsInfo() swarm.TLSInfo {
	i := a.id.creds.Load().TLSInfo()
	return swarm.TLSInfo{TrustRoot: string(i.TrustRoot), CertIssuerSubject: i.CertIssuerSubject, CertIssuerPublicKey: i.CertIssuerPublicKey}
}

// localAddr is where this node's agent reaches its own manager.
func (a *active) localAddr() string {
	host, port, err := net.SplitHostPort(a.id.ListenAddr)
	if err != nil {
		return a.id.ListenAddr
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

// stop ends run; it may be called more than once.
func (a *active) stop() { a.halt() }

// run runs the parts until ctx ends or stop is called (then it returns nil), or one fails.
func (a *active) run(ctx context.Context) error {
	defer close(a.done)
	ln, err := net.Listen("tcp", a.id.ListenAddr)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for other nodes: %w", err), a.log.Close())
	}
	mux := wire.NewMux(ln, pki.ServerTLS(a.id.creds.Load, time.Now, false, wire.ProtoGRPC, wire.ProtoRaft), wire.MuxConfig{})
	nodes, strangers := wire.NewServer(), wire.NewOpenServer()
	a.dispatch.Register(nodes)
	a.dispatch.RegisterOpen(strangers)
	// The log goes last: who ends before it may still want to write.
	lower := startLayer(ctx, a.log.Run)
	upper := startLayer(ctx, mux.Run, a.manager.Run, a.dispatch.Run, a.agent.Run, a.renew,
		func(ctx context.Context) error { return serve(ctx, nodes, mux.Listener(wire.ProtoGRPC)) },
		func(ctx context.Context) error { return serve(ctx, strangers, mux.Strangers(wire.ProtoGRPC)) })
	select {
	case <-ctx.Done():
	case <-a.stopped:
	case <-lower.failed:
	case <-upper.failed:
	}
	return errors.Join(upper.stop(), lower.stop())
}

func serve(ctx context.Context, srv *grpc.Server, l net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve nodes: %w", err)
	case <-ctx.Done():
		srv.Stop()
		<-done
		return nil
	}
}

// awaitLeader waits until this node leads its swarm.
func (a *active) awaitLeader(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for a.log.Leader() != a.id.NodeID {
		select {
		case <-tick.C:
		case <-a.done:
			return errors.New("this node's part in the swarm ended; see the daemon's log")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// awaitReady waits until this node's own agent has reported for duty.
func (a *active) awaitReady(ctx context.Context) error {
	snap, watch := a.replica.Watch()
	defer watch.Close()
	for {
		if n := snap.Node(a.id.Node); n != nil && n.State == swarm.NodeStateReady && n.DescVersion > n.SpecVersion {
			return nil
		}
		select {
		case <-watch.Ready():
			watch.Take()
			snap = a.replica.Snapshot()
		case <-a.done:
			return errors.New("this node's part in the swarm ended; see the daemon's log")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
