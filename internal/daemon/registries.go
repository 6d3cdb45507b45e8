package daemon

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/images"
	"github.com/skep-swarm/skep/internal/model"
)

// openImages makes the image store with the registries' settings.
func (h *host) openImages() error {
	registries, err := images.ParseRegistries(h.cfg.InsecureRegistries, h.cfg.RegistryMirrors)
	if err != nil {
		return fmt.Errorf("--insecure-registry, --registry-mirror: %w", err)
	}
	registries.CertDirs = []string{"/etc/skep/certs.d", "/etc/docker/certs.d"}
	registries.UserAgent = "skep/" + h.cfg.Version
	h.images = images.New(images.Config{Open: h.runtime.Client, InUse: h.imageUses, Registries: registries, PreferLocal: h.preferLocalImages()})
	return nil
}

// preferLocalImages is dockerd's setting by environment: an image that is here is used without asking a registry.
func (h *host) preferLocalImages() bool {
	return os.Getenv("DOCKER_SERVICE_PREFER_OFFLINE_IMAGE") == "1"
}

// PullImage gets an image from its registry.
func (b *backend) PullImage(ctx context.Context, req dockerapi.PullRequest, progress func(dockerapi.ImageProgress)) (dockerapi.Image, error) {
	if req.Platform != "" {
		p, err := platforms.Parse(req.Platform)
		if err != nil {
			return dockerapi.Image{}, model.Invalidf("invalid platform %q: %v", req.Platform, err)
		}
		if !platforms.Default().Match(p) {
			return dockerapi.Image{}, model.Invalidf("this node is %s: images for %s cannot be used here", platforms.DefaultString(), platforms.Format(p))
		}
	}
	got, err := b.images.Pull(ctx, req.Name, req.Auth, tellAPI(progress))
	if err != nil {
		return dockerapi.Image{}, sorted(err)
	}
	all, err := b.ListImages(ctx)
	if err != nil {
		return dockerapi.Image{}, err
	}
	for _, img := range all {
		if img.ID == got.ID.String() {
			return img, nil
		}
	}
	return dockerapi.Image{}, model.NotFoundf("No such image: %s", req.Name) // removed in the same moment
}

// PushImage sends an image to its registry.
func (b *backend) PushImage(ctx context.Context, name string, auth registry.AuthConfig, progress func(dockerapi.ImageProgress)) (dockerapi.RemoteImage, error) {
	desc, err := b.images.Push(ctx, name, auth, tellAPI(progress))
	if err != nil {
		return dockerapi.RemoteImage{}, sorted(err)
	}
	return dockerapi.RemoteImage{MediaType: desc.MediaType, Digest: desc.Digest.String(), Size: desc.Size}, nil
}

// RemoteImage asks a registry what a name means.
func (b *backend) RemoteImage(ctx context.Context, name string, auth registry.AuthConfig) (dockerapi.RemoteImage, error) {
	r, err := b.images.InspectRemote(ctx, name, auth)
	if err != nil {
		return dockerapi.RemoteImage{}, sorted(err)
	}
	out := dockerapi.RemoteImage{MediaType: r.Descriptor.MediaType, Digest: r.Descriptor.Digest.String(), Size: r.Descriptor.Size}
	for _, p := range r.Platforms {
		out.Platforms = append(out.Platforms, swarm.Platform{OS: p.OS, Architecture: p.Architecture})
	}
	return out, nil
}

// Login asks a registry whether credentials are right.
func (b *backend) Login(ctx context.Context, auth registry.AuthConfig) error {
	return sorted(b.images.Login(ctx, auth))
}

// SaveImages writes images as an archive.
func (b *backend) SaveImages(ctx context.Context, names []string, w io.Writer) error {
	return sorted(b.images.Save(ctx, names, w))
}

func tellAPI(progress func(dockerapi.ImageProgress)) func(images.Progress) {
	return func(p images.Progress) { progress(dockerapi.ImageProgress(p)) }
}
