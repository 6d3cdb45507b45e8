package dockerapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/volume"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/runtime"
)

// The fake node's images, containers and volumes.

func (f *fake) ListImages(context.Context) ([]Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := slices.Clone(f.images)
	for i := range out {
		out[i].Names = slices.Clone(out[i].Names)
	}
	return out, nil
}

// LoadImages takes the archive's text as the image's name.
func (f *fake) LoadImages(_ context.Context, archive io.Reader, progress func(string)) ([]Image, error) {
	data, err := io.ReadAll(archive)
	if err != nil {
		return nil, err
	}
	name := string(data)
	if name == "broken" {
		return nil, model.Invalidf("invalid tar header")
	}
	sum := sha256.Sum256(data)
	img := Image{ID: "sha256:" + hex.EncodeToString(sum[:]), Digest: "sha256:" + hex.EncodeToString(sum[:]), Names: []string{name}, Size: 4 << 20,
		Created: f.now().Truncate(24 * time.Hour), OS: "linux", Architecture: "amd64", Layers: []string{"sha256:aa"},
		Config:  json.RawMessage(`{"Cmd":["/bin/web"],"Env":["PATH=/bin"]}`),
		History: []ImageLayer{{Created: f.now().Add(-time.Hour), CreatedBy: "COPY web /bin/web", Size: 4 << 20}}}
	f.mu.Lock()
	f.images = append(f.images, img)
	f.mu.Unlock()
	progress("Loaded image: " + familiar(name) + "\n")
	return []Image{img}, nil
}

func (f *fake) TagImage(_ context.Context, id, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.images, func(i Image) bool { return i.ID == id })
	f.images[i].Names = append(f.images[i].Names, name)
	return nil
}

func (f *fake) UntagImage(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.images {
		f.images[i].Names = slices.DeleteFunc(f.images[i].Names, func(n string) bool { return n == name })
	}
	return nil
}

func (f *fake) DeleteImage(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images = slices.DeleteFunc(f.images, func(i Image) bool { return i.ID == id })
	return nil
}

func (f *fake) ListContainers(context.Context) ([]Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.snap.Cluster() == nil {
		return nil, nil
	}
	namer := f.snap.Cluster().Namer()
	var out []Container
	for t := range f.snap.TasksOnNode(f.Local().Node) {
		tmpl := f.snap.Template(t.Template)
		id := containerID(namer.TaskID(t.ID))
		c := Container{ID: id, Name: taskName(namer, tmpl.ServiceName, t), Image: tmpl.Task.Typed.ContainerSpec.Image, Labels: taskLabels(namer, tmpl.ServiceName, t),
			State: container.StateRunning, PID: int(t.PID), Created: wallTime(t.CreatedAt), Started: wallTime(t.CreatedAt), Command: []string{"/bin/web", "-v"},
			Hostname: id[:12], Task: tmpl.Task.Typed, Ports: f.snap.Service(t.ID.Service).Ports}
		c.Networks = NetworksOf(f.snap, t, tmpl)
		if t.State.Terminal() {
			c.State, c.PID, c.Finished = container.StateExited, 0, wallTime(t.StatusAt)
		}
		out = append(out, c)
	}
	return out, nil
}

func (f *fake) ListVolumes(context.Context) ([]volume.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.vols), nil
}

func (f *fake) CreateVolume(_ context.Context, req volume.CreateRequest) (volume.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := volume.Volume{Name: req.Name, Driver: "local", Scope: "local", Labels: req.Labels, Mountpoint: "/var/lib/skep/volumes/" + req.Name + "/_data"}
	f.vols = append(f.vols, v)
	return v, nil
}

func (f *fake) RemoveVolume(_ context.Context, name string, _ bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.vols)
	f.vols = slices.DeleteFunc(f.vols, func(v volume.Volume) bool { return v.Name == name })
	if len(f.vols) == n {
		return model.NotFoundf("get %s: no such volume", name)
	}
	return nil
}

func (f *fake) VolumeSize(context.Context, string) (int64, error) { return 1000, nil }

func (f *fake) ContainerSize(context.Context, string) (written, whole int64, err error) {
	return 3000, 4<<20 + 3000, nil
}

func (f *fake) InspectContainer(_ context.Context, id string) (runtime.Details, error) {
	return runtime.Details{Args: []string{"/bin/web", "-v"}, Env: []string{"PATH=/bin", "HOSTNAME=" + id[:12], "A=b"}, Dir: "/srv", Hostname: id[:12], NetNS: "/run/netns/x"}, nil
}

// taskLabels are those that Docker puts on a task's container.
func taskLabels(n model.Namer, service string, t *model.Task) map[string]string {
	return map[string]string{
		"com.docker.swarm.node.id":      n.NodeID(t.Node),
		"com.docker.swarm.service.id":   n.ServiceID(t.ID.Service),
		"com.docker.swarm.service.name": service,
		"com.docker.swarm.task":         "",
		"com.docker.swarm.task.id":      n.TaskID(t.ID),
		"com.docker.swarm.task.name":    taskName(n, service, t),
	}
}
