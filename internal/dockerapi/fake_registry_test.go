package dockerapi

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/registry"
	"github.com/skep-swarm/skep/internal/model"
)

// fakeRegistry is what the fake's registry has: digests by name, for those who know its password.
type fakeRegistry struct {
	images   map[string]string
	password string
	silent   bool     // it never answers
	asked    []string // by RemoteImage
}

func (g *fakeRegistry) find(name string, auth registry.AuthConfig) (string, error) {
	if g.password != "" && auth.Password != g.password {
		return "", model.NotFoundf("pull access denied for %s, repository does not exist or may require 'docker login'", name)
	}
	if d := g.images[name]; d != "" {
		return d, nil
	}
	return "", model.NotFoundf("manifest for %s not found: manifest unknown: manifest unknown", name)
}

func (f *fake) PullImage(_ context.Context, req PullRequest, progress func(ImageProgress)) (Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	digest, err := f.registry.find(req.Name, req.Auth)
	if err != nil {
		return Image{}, err
	}
	progress(ImageProgress{ID: "1", Status: "Pulling from x"})
	progress(ImageProgress{ID: "abc", Status: "Downloading", Current: 1, Total: 2})
	if digest == "breaks" {
		return Image{}, model.Errorf(model.Unavailable, "connection reset")
	}
	progress(ImageProgress{Status: "Status: Downloaded newer image for x"})
	img := Image{ID: digest, Digest: digest, Names: []string{req.Name}}
	f.images = append(f.images, img)
	return img, nil
}

func (f *fake) PushImage(_ context.Context, name string, auth registry.AuthConfig, progress func(ImageProgress)) (RemoteImage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.images, func(i Image) bool { return slices.Contains(i.Names, name) })
	if i < 0 {
		return RemoteImage{}, model.NotFoundf("An image does not exist locally with the tag: %s", name)
	}
	if f.registry.password != auth.Password {
		return RemoteImage{}, model.NotFoundf("push access denied for %s", name)
	}
	f.registry.images[name] = f.images[i].Digest
	progress(ImageProgress{Status: "The push refers to repository [" + name + "]"})
	return RemoteImage{Digest: f.images[i].Digest, Size: 500}, nil
}

func (f *fake) RemoteImage(ctx context.Context, name string, auth registry.AuthConfig) (RemoteImage, error) {
	f.mu.Lock()
	f.registry.asked = append(f.registry.asked, name)
	silent := f.registry.silent
	f.mu.Unlock()
	if silent {
		<-ctx.Done()
		return RemoteImage{}, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	digest, err := f.registry.find(name, auth)
	return RemoteImage{MediaType: "application/vnd.oci.image.index.v1+json", Digest: digest, Size: 400}, err
}

func (f *fake) Login(_ context.Context, auth registry.AuthConfig) error {
	if auth.Password != f.registry.password {
		return model.Errorf(model.Unauthorized, "login attempt to https://%s/v2/ failed with status: 401 Unauthorized", auth.ServerAddress)
	}
	return nil
}

func (f *fake) SaveImages(_ context.Context, names []string, w io.Writer) error {
	if names[0] == "none" {
		return model.NotFoundf("No such image: none:latest")
	}
	_, err := io.WriteString(w, strings.Join(names, ","))
	return err
}
