package daemon

import (
	"context"
	"encoding/json"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"
	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/images"
	"github.com/skep-swarm/skep/internal/keeper/jsonlog"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/state"
	"github.com/skep-swarm/skep/internal/volumes"
)

// ListContainers lists this node's containers with what the state knows of their tasks.
func (b *backend) ListContainers(ctx context.Context) ([]dockerapi.Container, error) {
	list, err := b.runtime.List(ctx)
	if err != nil {
		return nil, sorted(err)
	}
	all, err := b.images.All(ctx)
	if err != nil {
		return nil, sorted(err)
	}
	byDigest := map[string]*images.Image{}
	for i := range all {
		byDigest[all[i].Digest] = &all[i]
	}
	var snap *state.Snapshot
	health := map[string]*container.Health{}
	if a := b.active(); a != nil {
		snap = a.replica.Snapshot()
		for _, t := range a.agent.Tasks() {
			health[t.ContainerID] = t.Health
		}
	}
	out := make([]dockerapi.Container, 0, len(list))
	for i := range list {
		c := b.container(&list[i], byDigest, snap)
		if c.Healthcheck != nil {
			c.Health = health[c.ID]
		}
		out = append(out, c)
	}
	return out, nil
}

func (b *backend) container(c *runtime.Container, byDigest map[string]*images.Image, snap *state.Snapshot) dockerapi.Container {
	out := dockerapi.Container{
		ID: c.ID, Name: c.Name, Image: shortRef(c.Image), Labels: c.Labels, State: apiState(c.State), PID: c.PID, ExitCode: c.Exit.Code,
		OOMKilled: c.Exit.OOMKilled, Error: c.Exit.Err, Created: c.CreatedAt, Started: c.StartedAt, Finished: c.Exit.At,
		Healthcheck: c.Healthcheck,
		Hostname:    c.ID[:min(12, len(c.ID))], LogPath: jsonlog.Path(b.containerDir(c.ID), c.ID),
	}
	img := byDigest[c.ImageDigest]
	if img != nil {
		out.ImageID = img.ID
	}
	b.addTask(&out, c.TaskID, img, snap)
	b.nameVolumes(&out, c.Volumes)
	return out
}

// nameVolumes says which volumes a container really mounts: a spec leaves names out or has placeholders in them, and
// one that is forgotten already still has its volumes in use.
func (b *backend) nameVolumes(out *dockerapi.Container, names []string) {
	for i := range out.Mounts {
		if p := &out.Mounts[i]; p.Type == mount.TypeVolume && len(names) > 0 {
			p.Name, p.Driver, p.Source = names[0], "local", b.cfg.data("volumes", names[0], "_data")
			names = names[1:]
		}
	}
	for _, name := range names {
		out.Mounts = append(out.Mounts, container.MountPoint{Type: mount.TypeVolume, Name: name, Driver: "local", Source: b.cfg.data("volumes", name, "_data"), RW: true})
	}
}

// addTask adds what only the task's spec tells.
func (b *backend) addTask(out *dockerapi.Container, taskID string, img *images.Image, snap *state.Snapshot) {
	if snap == nil || snap.Cluster() == nil {
		return
	}
	k, ok := snap.Cluster().Namer().Parse(taskID)
	if !ok || k.Kind != model.KindTask {
		return
	}
	t := snap.Task(k.Task())
	if t == nil {
		return
	}
	tpl := snap.Template(t.Template)
	if tpl == nil || tpl.Task.Typed == nil {
		return
	}
	out.Task = tpl.Task.Typed
	out.Ports = append(out.Ports, t.HostPorts...)
	if t.Gateway4.IsValid() {
		out.Addresses = append(out.Addresses, netip.PrefixFrom(t.Gateway4, 24))
	}
	if t.Gateway6.IsValid() {
		out.Addresses = append(out.Addresses, netip.PrefixFrom(t.Gateway6, 64))
	}
	out.Networks = dockerapi.NetworksOf(snap, t, tpl)
	spec := out.Task.ContainerSpec
	if spec == nil {
		return
	}
	if spec.Hostname != "" {
		out.Hostname = spec.Hostname
	}
	out.Command = command(spec.Command, spec.Args, img)
	for _, m := range spec.Mounts {
		p := container.MountPoint{Type: m.Type, Source: m.Source, Destination: m.Target, RW: !m.ReadOnly}
		out.Mounts = append(out.Mounts, p)
	}
}

func apiState(s runtime.State) container.ContainerState {
	switch s {
	case runtime.Created:
		return container.StateCreated
	case runtime.Running:
		return container.StateRunning
	}
	return container.StateExited
}

// command is what runs: the spec's command replaces the image's entry point and, when it is set, its
// arguments too.
func command(cmd, args []string, img *images.Image) []string {
	var conf struct{ Entrypoint, Cmd []string }
	if img != nil && json.Unmarshal(img.Config, &conf) != nil {
		return nil
	}
	if len(cmd) == 0 {
		cmd = conf.Entrypoint
		if len(args) == 0 {
			args = conf.Cmd
		}
	}
	return append(append([]string(nil), cmd...), args...)
}

// ListVolumes lists this node's volumes.
func (b *backend) ListVolumes(ctx context.Context) ([]volume.Volume, error) {
	list, err := b.volumes.List(ctx)
	if err != nil {
		return nil, sorted(err)
	}
	out := make([]volume.Volume, 0, len(list))
	for _, v := range list {
		out = append(out, apiVolume(v))
	}
	return out, nil
}

func apiVolume(v volumes.Volume) volume.Volume {
	return volume.Volume{Name: v.Name, Driver: "local", Mountpoint: v.Mountpoint, Labels: v.Labels, Scope: "local", CreatedAt: v.CreatedAt.UTC().Format("2006-01-02T15:04:05Z07:00"), Options: map[string]string{}}
}

// CreateVolume makes a local volume; one of the name that exists is returned.
func (b *backend) CreateVolume(ctx context.Context, req volume.CreateRequest) (volume.Volume, error) {
	if req.Driver != "" && req.Driver != "local" {
		return volume.Volume{}, model.NotFoundf("create %s: error looking up volume plugin %s: plugin \"%s\" not found", req.Name, req.Driver, req.Driver)
	}
	if len(req.DriverOpts) > 0 {
		return volume.Volume{}, model.Errorf(model.Unimplemented, "volume options (%d given) are not supported yet: leave --opt out, or bind a directory that is mounted on the host", len(req.DriverOpts))
	}
	v, err := b.volumes.Create(ctx, req.Name, req.Labels)
	if err != nil {
		return volume.Volume{}, sorted(err)
	}
	return apiVolume(v), nil
}

// RemoveVolume removes a volume and what is in it.
func (b *backend) RemoveVolume(ctx context.Context, name string, force bool) error {
	if _, err := b.volumes.Inspect(ctx, name); errdefs.IsNotFound(err) && !force {
		return model.NotFoundf("get %s: no such volume", name)
	}
	return sorted(b.volumes.Remove(ctx, name))
}
