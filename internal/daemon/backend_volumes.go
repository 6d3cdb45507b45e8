package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/volume"
	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/volumes"
)

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
	return volume.Volume{Name: v.Name, Driver: "local", Mountpoint: v.Mountpoint, Labels: v.Labels, Scope: "local", CreatedAt: v.CreatedAt.UTC().Format(time.RFC3339), Options: v.Options}
}

// CreateVolume makes a local volume; one of the name that exists is returned.
func (b *backend) CreateVolume(ctx context.Context, req volume.CreateRequest) (volume.Volume, error) {
	v, err := b.volumes.Create(ctx, req.Name, req.Labels, req.DriverOpts)
	if err != nil {
		return volume.Volume{}, sorted(fmt.Errorf("create %s: %w", req.Name, err))
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

// VolumeSize is what a volume holds, in bytes; -1 when it is not this host's to count.
func (b *backend) VolumeSize(ctx context.Context, name string) (int64, error) {
	n, err := b.volumes.Size(ctx, name)
	return n, sorted(err)
}

var _ dockerapi.Volumes = (*backend)(nil)
