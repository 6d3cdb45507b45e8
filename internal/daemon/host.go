package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/opencontainers/go-digest"
	"github.com/skep-swarm/skep/internal/agent"
	"github.com/skep-swarm/skep/internal/embedded"
	"github.com/skep-swarm/skep/internal/images"
	"github.com/skep-swarm/skep/internal/keeper"
	"github.com/skep-swarm/skep/internal/netapply"
	"github.com/skep-swarm/skep/internal/netplan"
	skruntime "github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/runtime/containerd"
	"github.com/skep-swarm/skep/internal/vault"
	"github.com/skep-swarm/skep/internal/volumes"
)

// host are the means of this machine, which work with or without a swarm.
type host struct {
	cfg     *Config
	log     *slog.Logger
	machine *machine

	keeper  *keeper.Client
	runtime *containerd.Runtime
	network *netapply.Network
	images  *images.Store
	volumes *volumes.Store
	vault   *vault.Store
	feed    *feed
	api     nodeAPI
}

func newHost(ctx context.Context, cfg *Config, log *slog.Logger) (*host, error) {
	helpers, err := embedded.Write(cfg.data("bin"))
	if err != nil {
		return nil, err
	}
	h := &host{cfg: cfg, log: log, volumes: volumes.New(cfg.data("volumes")), vault: vault.New(cfg.exec("secrets")), feed: newFeed()}
	if h.machine, err = lookAtMachine(ctx, cfg); err != nil {
		return nil, err
	}
	h.keeper = keeper.NewClient(keeper.Config{
		Dir: cfg.exec("keeper"), Binary: helpers.Keeper, Cgroup: "/skep/" + cfg.Instance() + "/keeper", Logger: log.With("part", "keeper"),
	})
	h.runtime, err = containerd.New(containerd.Config{
		Root: cfg.data("containerd"), State: cfg.exec("containerd"), Instance: cfg.Instance(), Shim: helpers.Shim,
		Address: cfg.Containerd, Volumes: h.volumes, Notify: h.feed.happened, Log: log.With("part", "runtime"),
	})
	if err != nil {
		return nil, fmt.Errorf("--exec-root %s: %w", cfg.ExecRoot, err)
	}
	h.network, err = netapply.New(netapply.Config{Dir: cfg.exec("netns"), OnRepair: h.repaired})
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	return h, h.openImages()
}

func (h *host) parts() []func(context.Context) error {
	return []func(context.Context) error{h.runtime.Run, h.keeper.Run, h.network.Run}
}

func (h *host) repaired(what string, err error) {
	if err != nil {
		h.log.Error("the network was disturbed and cannot be repaired", "what", what, "err", err)
		return
	}
	h.log.Warn("the network was disturbed and has been repaired", "what", what)
}

func (h *host) imageUses(ctx context.Context) ([]images.Use, error) {
	list, err := h.runtime.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []images.Use
	for _, c := range list {
		out = append(out, images.Use{Container: c.ID, Image: digest.Digest(c.ImageDigest), Running: c.State == skruntime.Running})
	}
	return out, nil
}

// netNode is this host's side of the gateway network.
func (h *host) netNode() (netplan.Node, error) {
	routes, err := netapply.HostRoutes(0)
	if err != nil {
		return netplan.Node{}, fmt.Errorf("read the host's routes: %w", err)
	}
	instance := h.cfg.Instance()
	link4, err := netplan.ChooseLink4(routes, instance, netplan.Node{Instance: instance}.HostLink())
	if err != nil {
		return netplan.Node{}, fmt.Errorf("host link: %w", err)
	}
	n := netplan.Node{Instance: instance, Link4: link4}
	if readLine("/proc/sys/net/ipv6/conf/all/disable_ipv6") == "0" {
		n.Link6 = netplan.Link6(instance)
	}
	return n, nil
}

// gatewayPool chooses the pool of a new swarm.
func (h *host) gatewayPool() (netip.Prefix, error) {
	routes, err := netapply.HostRoutes(0)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("read the host's routes: %w", err)
	}
	pool, err := netplan.ChoosePool(routes, netplan.DefaultPools(), netplan.Node{Instance: h.cfg.Instance()}.HostLink())
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("gateway network: %w", err)
	}
	return pool, nil
}

// describe is what this node says of itself.
func (h *host) describe(_ context.Context, tls swarm.TLSInfo) (agent.Description, error) {
	routes, err := netapply.HostRoutes(0)
	if err != nil {
		return agent.Description{}, fmt.Errorf("read the host's routes: %w", err)
	}
	d := agent.Description{Node: swarm.NodeDescription{
		Hostname: h.machine.Name,
		Platform: swarm.Platform{Architecture: h.machine.Architecture, OS: "linux"},
		Resources: swarm.Resources{
			NanoCPUs: int64(runtime.NumCPU()) * 1e9, MemoryBytes: h.machine.MemTotal, GenericResources: h.cfg.GenericResources,
		},
		Engine: swarm.EngineDescription{EngineVersion: h.cfg.Version, Labels: h.cfg.Labels, Plugins: []swarm.PluginDescription{
			{Type: "Log", Name: "json-file"}, {Type: "Log", Name: "none"}, {Type: "Volume", Name: "local"},
		}},
		TLSInfo: tls,
	}}
	own := netplan.Node{Instance: h.cfg.Instance()}.HostLink()
	for _, r := range routes {
		if r.Link != own && r.Dst.Bits() > 0 {
			d.Routes = append(d.Routes, r.Dst)
		}
	}
	return d, nil
}

// clear removes everything that tasks left on this host: containers, network, logs' FIFOs and held
// ports. Volumes and images stay.
func (h *host) clear(ctx context.Context) error {
	var errs []error
	list, err := h.runtime.List(ctx)
	errs = append(errs, err)
	for _, c := range list {
		ctl, err := h.runtime.Open(c.ID)
		if err == nil {
			err = ctl.Remove(ctx)
		}
		errs = append(errs, err)
	}
	errs = append(errs, h.vault.Clear(), h.network.Destroy(ctx, h.cfg.Instance()), h.clearKeeper(ctx))
	return errors.Join(errs...)
}

func (h *host) clearKeeper(ctx context.Context) error {
	held, err := h.keeper.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range held.Logs {
		errs = append(errs, h.keeper.Remove(ctx, h.containerDir(id), id))
	}
	if len(held.Ports) > 0 {
		errs = append(errs, h.keeper.Release(ctx, held.Ports))
	}
	return errors.Join(errs...)
}

func (h *host) containerDir(id string) string { return filepath.Join(h.cfg.data("containers"), id) }

// shortRef drops the digest that a name is pinned to.
func shortRef(name string) string {
	short, _, _ := strings.Cut(name, "@")
	return short
}
