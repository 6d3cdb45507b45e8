package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"maps"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/images"
	"github.com/skep-swarm/skep/internal/keeper/jsonlog"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/state"
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
	byDigest := map[string]*knownImage{}
	for i := range all {
		byDigest[all[i].Digest] = readImage(&all[i])
	}
	snap := b.snapshot()
	health := map[string]*container.Health{}
	if a := b.active(); a != nil {
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

// knownImage is an image with its configuration read.
type knownImage struct {
	id     string
	config *dockerspec.DockerOCIImageConfig // nil when it cannot be read
}

func readImage(img *images.Image) *knownImage {
	out := &knownImage{id: img.ID, config: new(dockerspec.DockerOCIImageConfig)}
	if len(img.Config) > 0 && json.Unmarshal(img.Config, out.config) != nil {
		out.config = nil
	}
	return out
}

// snapshot is what is known of the swarm now; nil without one.
func (b *backend) snapshot() *state.Snapshot {
	if a := b.active(); a != nil {
		return a.replica.Snapshot()
	}
	return nil
}

func (b *backend) container(c *runtime.Container, byDigest map[string]*knownImage, snap *state.Snapshot) dockerapi.Container {
	out := dockerapi.Container{
		ID: c.ID, Name: c.Name, Image: shortRef(c.Image), Labels: c.Labels, State: apiState(c.State), PID: c.PID, ExitCode: c.Exit.Code,
		OOMKilled: c.Exit.OOMKilled, Error: c.Exit.Err, Created: c.CreatedAt, Started: c.StartedAt, Finished: c.Exit.At,
		Healthcheck: c.Healthcheck,
		Hostname:    c.ID[:min(12, len(c.ID))], LogPath: jsonlog.Path(b.containerDir(c.ID), c.ID),
	}
	img := byDigest[c.ImageDigest]
	if img != nil {
		out.ImageID, out.ImageConfig = img.id, img.config
		if img.config != nil && len(img.config.Labels) > 0 {
			out.Labels = maps.Clone(img.config.Labels)
			maps.Copy(out.Labels, c.Labels)
		}
	}
	b.addTask(&out, c.TaskID, snap)
	b.addMounts(&out, c)
	return out
}

// addMounts says what a container really mounts: a spec leaves names out or has placeholders in them, and one that is forgotten
// already still has its volumes in use.
func (b *backend) addMounts(out *dockerapi.Container, c *runtime.Container) {
	for _, m := range c.Mounts {
		p := container.MountPoint{Type: m.Type, Name: m.Name, Source: m.Source, Destination: m.Target, RW: !m.ReadOnly, Propagation: mount.Propagation(m.Propagation)}
		if m.Type == mount.TypeVolume {
			p.Driver, p.Mode = "local", "z"
		}
		out.Mounts = append(out.Mounts, p)
	}
	if c.Mounts != nil {
		return
	}
	for _, name := range c.Volumes { // a container of an earlier version
		out.Mounts = append(out.Mounts, container.MountPoint{Type: mount.TypeVolume, Name: name, Driver: "local", Source: b.cfg.data("volumes", name, "_data"), RW: true})
	}
}

// addTask adds what only the task's spec tells.
func (b *backend) addTask(out *dockerapi.Container, taskID string, snap *state.Snapshot) {
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
	if svc := snap.Service(t.ID.Service); svc != nil {
		out.ServicePorts = svc.Ports
	}
	out.LogDriver = tpl.Task.Typed.LogDriver
	if c := snap.Cluster(); out.LogDriver == nil && c.Spec.Typed != nil {
		out.LogDriver = c.Spec.Typed.TaskDefaults.LogDriver
	}
	out.Networks = dockerapi.NetworksOf(snap, t, tpl)
	spec := out.Task.ContainerSpec
	if spec == nil {
		return
	}
	if spec.Hostname != "" {
		out.Hostname = spec.Hostname
	}
	out.Command = command(spec.Command, spec.Args, out.ImageConfig)
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
func command(cmd, args []string, conf *dockerspec.DockerOCIImageConfig) []string {
	if len(cmd) == 0 && conf != nil {
		cmd = conf.Entrypoint
		if len(args) == 0 {
			args = conf.Cmd
		}
	}
	return append(append([]string(nil), cmd...), args...)
}

// InspectContainer is what was made of a container's spec and image.
func (b *backend) InspectContainer(ctx context.Context, id string) (runtime.Details, error) {
	d, err := b.runtime.Details(ctx, id)
	return d, noContainer(id, err)
}

// ContainerSize is how many bytes a container has written, and how many it and its image hold.
func (b *backend) ContainerSize(ctx context.Context, id string) (written, whole int64, err error) {
	written, whole, err = b.runtime.Size(ctx, id)
	return written, whole, noContainer(id, err)
}

// noContainer gives the runtime's word for it the kind that the API knows.
func noContainer(id string, err error) error {
	if errors.Is(err, runtime.ErrNotFound) {
		return model.NotFoundf("No such container: %s", id)
	}
	return sorted(err)
}
