package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-swarm/skep/internal/runtime"
)

// Details is what was made of a container's spec and image, for people who look at it.
func (r *Runtime) Details(ctx context.Context, id string) (runtime.Details, error) {
	var d runtime.Details
	if err := r.await(ctx); err != nil {
		return d, err
	}
	ctx = r.namespaced(ctx)
	record, err := r.client.ContainerService().Get(ctx, id)
	if err != nil {
		return d, detailsError(id, err)
	}
	var spec specs.Spec
	if record.Spec == nil {
		return d, fmt.Errorf("container %s has no spec", id)
	}
	if err := json.Unmarshal(record.Spec.GetValue(), &spec); err != nil {
		return d, fmt.Errorf("read the spec of container %s: %w", id, err)
	}
	d.Hostname = spec.Hostname
	if p := spec.Process; p != nil {
		d.Args, d.Env, d.Dir = p.Args, p.Env, p.Cwd
	}
	if l := spec.Linux; l != nil {
		d.MaskedPaths, d.ReadonlyPaths, d.Sysctls = l.MaskedPaths, l.ReadonlyPaths, l.Sysctl
		for _, ns := range l.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				d.NetNS = ns.Path
			}
		}
	}
	if len(d.Args) > 1 && d.Args[0] == initPath {
		d.Args = d.Args[2:]
	}
	for _, m := range spec.Mounts {
		switch m.Destination {
		case "/etc/resolv.conf":
			d.ResolvConf = m.Source
		case "/etc/hosts":
			d.Hosts = m.Source
		case "/etc/hostname":
			d.HostnameFile = m.Source
		}
	}
	d.Layers, err = r.layers(ctx, id)
	return d, err
}

func detailsError(id string, err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%w: %s", runtime.ErrNotFound, id)
	}
	return fmt.Errorf("look at container %s: %w", id, err)
}

// layers are the directories of a container's file system, in Docker's words.
func (r *Runtime) layers(ctx context.Context, id string) (map[string]string, error) {
	mounts, err := r.client.SnapshotService(snapshotter).Mounts(ctx, id)
	if err != nil {
		return nil, detailsError(id, err)
	}
	out := map[string]string{"MergedDir": filepath.Join(r.bundle(id), "rootfs")}
	for _, m := range mounts {
		if m.Type == "bind" {
			out["UpperDir"] = m.Source // an image without layers
		}
		for _, o := range m.Options {
			for option, name := range map[string]string{"lowerdir=": "LowerDir", "upperdir=": "UpperDir", "workdir=": "WorkDir"} {
				if dir, ok := strings.CutPrefix(o, option); ok {
					out[name] = dir
				}
			}
		}
	}
	return out, nil
}

// Size is how many bytes a container has written, and how many it and its image hold together.
func (r *Runtime) Size(ctx context.Context, id string) (written, whole int64, err error) {
	if err := r.await(ctx); err != nil {
		return 0, 0, err
	}
	ctx = r.namespaced(ctx)
	sn := r.client.SnapshotService(snapshotter)
	for key := id; key != ""; {
		usage, err := sn.Usage(ctx, key)
		if err != nil {
			return 0, 0, detailsError(id, err)
		}
		info, err := sn.Stat(ctx, key)
		if err != nil {
			return 0, 0, detailsError(id, err)
		}
		if key == id {
			written = usage.Size
		}
		whole += usage.Size
		key = info.Parent
	}
	return written, whole, nil
}
