package images

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Remote is what a registry says of an image.
type Remote struct {
	Descriptor ocispec.Descriptor
	// Platforms are those that it can be had for; empty when it does not say.
	Platforms []ocispec.Platform
}

// InspectRemote asks a registry what a name means there. The caller bounds its time. Errors are as of Pull.
func (s *Store) InspectRemote(ctx context.Context, name string, auth registry.AuthConfig) (Remote, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return Remote{}, fmt.Errorf("invalid reference format: %q: %w", name, errdefs.ErrInvalidArgument)
	}
	resolver := s.registries.resolver(ctx, auth, nil)
	resolved, desc, err := resolver.Resolve(ctx, ref.String())
	if err != nil {
		return Remote{}, explain(ctx, pulling, ref, err)
	}
	fetcher, err := resolver.Fetcher(ctx, resolved)
	if err != nil {
		return Remote{}, explain(ctx, pulling, ref, err)
	}
	out := Remote{Descriptor: desc}
	if out.Platforms, err = remotePlatforms(ctx, fetcher, desc); err != nil {
		return Remote{}, explain(ctx, pulling, ref, err)
	}
	return out, nil
}

// remotePlatforms reads the platforms out of an index, or out of the one configuration.
func remotePlatforms(ctx context.Context, fetcher remotes.Fetcher, desc ocispec.Descriptor) ([]ocispec.Platform, error) {
	data, err := fetchSmall(ctx, fetcher, desc)
	if err != nil {
		return nil, err
	}
	var out []ocispec.Platform
	if images.IsIndexType(desc.MediaType) {
		var index ocispec.Index
		if err := json.Unmarshal(data, &index); err != nil {
			return nil, fmt.Errorf("decode the image's index: %w", err)
		}
		for _, m := range index.Manifests {
			// Attestations are for no platform.
			if m.Platform != nil && m.Platform.OS != "unknown" {
				out = append(out, platforms.Normalize(*m.Platform))
			}
		}
		return out, nil
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		return nil, fmt.Errorf("decode the image's manifest: %w", err)
	}
	if !images.IsConfigType(manifest.Config.MediaType) {
		return nil, nil
	}
	if data, err = fetchSmall(ctx, fetcher, manifest.Config); err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("decode the image's configuration: %w", err)
	}
	return []ocispec.Platform{platforms.Normalize(config.Platform)}, nil
}

// fetchSmall reads a blob into memory and checks its digest.
func fetchSmall(ctx context.Context, fetcher remotes.Fetcher, desc ocispec.Descriptor) ([]byte, error) {
	if err := checkDescriptor(desc); err != nil {
		return nil, err
	}
	desc.URLs = nil // as in a pull
	r, err := fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxConfig))
	if err != nil {
		return nil, err
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return nil, &registryError{text: fmt.Sprintf("the registry sent something else for digest %s", desc.Digest), kind: errdefs.ErrDataLoss}
	}
	return data, nil
}

// Login asks a registry whether it knows the credentials. Their server address names the registry; empty means Docker Hub.
// It fails with errdefs.ErrUnauthenticated when they are refused.
func (s *Store) Login(ctx context.Context, auth registry.AuthConfig) error {
	name := RegistryHost(auth.ServerAddress)
	hosts, err := s.registries.configure(ctx, name, auth)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if h.Capabilities.Has(docker.HostCapabilityPush | docker.HostCapabilityResolve) {
			return login(ctx, name, h)
		}
	}
	return fmt.Errorf("the settings of registry %s name no host to log in to: %w", name, errdefs.ErrInvalidArgument)
}

func login(ctx context.Context, name string, h docker.RegistryHost) error {
	url := h.Scheme + "://" + h.Host + h.Path + "/"
	var answers []*http.Response
	for range 3 { // unasked, with credentials, with a token that they bought
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return fmt.Errorf("address of registry %s: %w", name, errdefs.ErrInvalidArgument)
		}
		for k, v := range h.Header {
			req.Header[k] = v
		}
		if err := h.Authorizer.Authorize(ctx, req); err != nil {
			return loginRefused(ctx, url, name, err)
		}
		resp, err := h.Client.Do(req)
		if err != nil {
			return loginFailed(ctx, name, err)
		}
		resp.Body.Close()
		switch {
		case resp.StatusCode == http.StatusOK:
			return nil
		case resp.StatusCode != http.StatusUnauthorized:
			return &registryError{text: fmt.Sprintf("login attempt to %s failed with status: %s", url, resp.Status), kind: errdefs.ErrUnavailable}
		}
		answers = append(answers, resp)
		if err := h.Authorizer.AddResponses(ctx, answers); err != nil {
			return loginRefused(ctx, url, name, err)
		}
	}
	return loginRefused(ctx, url, name, nil)
}

// loginRefused words the refusal of credentials, or what kept the registry's token server from judging them.
func loginRefused(ctx context.Context, url, name string, err error) error {
	if status, _ := statusOf(err); err != nil && (status == 0 || status >= 500) && !errdefs.IsNotImplemented(err) {
		if worded := loginFailed(ctx, name, err); isDown(worded) || mayPass(worded) {
			return worded
		}
	}
	return &registryError{text: fmt.Sprintf("login attempt to %s failed with status: 401 Unauthorized", url), kind: errdefs.ErrUnauthenticated}
}

func loginFailed(ctx context.Context, name string, err error) error {
	ref, parse := reference.ParseNormalizedNamed(name + "/login")
	if parse != nil {
		return fmt.Errorf("registry %q is not a host name: %w", name, errdefs.ErrInvalidArgument)
	}
	return explain(ctx, pulling, ref, err)
}
