package dockerapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// How long a registry may take to say what a name means: less when there is another answer.
const (
	meaningTimeout = 15 * time.Second
	knownTimeout   = 3 * time.Second
)

// distribution is Docker's DistributionInspect.
type distribution struct {
	Descriptor descriptor
	Platforms  []ociPlatform
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

type ociPlatform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// getDistribution says what an image's name means. Clients ask this before they create a service, and pin the service to
// the digest; any failure is only a warning to them.
func (s *Server) getDistribution(r *request) error {
	named, err := reference.ParseNormalizedNamed(r.vars["name"])
	if err != nil {
		return model.Invalidf("invalid reference format")
	}
	auth, err := registryAuth(r)
	if err != nil {
		return err
	}
	img, err := s.meaning(r.ctx(), reference.TagNameOnly(named), auth)
	if err != nil {
		return err
	}
	out := distribution{Descriptor: descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: img.Size}, Platforms: []ociPlatform{}}
	for _, p := range img.Platforms {
		out.Platforms = append(out.Platforms, ociPlatform{Architecture: p.Architecture, OS: p.OS})
	}
	return writeJSON(r, http.StatusOK, out)
}

// meaning is what an image's name means: its registry knows, else the swarm's image table, else this node. A node that
// prefers what it has asks its registry last. The error is the registry's.
func (s *Server) meaning(ctx context.Context, named reference.Named, auth registry.AuthConfig) (RemoteImage, error) {
	known, err := s.known(ctx, named)
	if err != nil || known != nil && s.preferLocal {
		return deref(known), err
	}
	limit := meaningTimeout
	if known != nil {
		limit = knownTimeout
	}
	asking, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("registry %s did not answer within %v", reference.Domain(named), limit))
	defer cancel()
	img, err := s.backend.RemoteImage(asking, named.String(), auth)
	if err == nil {
		return img, nil
	}
	if known != nil {
		return *known, nil
	}
	if cause := context.Cause(asking); cause != nil && ctx.Err() == nil {
		err = model.Errorf(unavailable, "%v", cause)
	}
	return RemoteImage{}, err
}

func deref(img *RemoteImage) RemoteImage {
	if img == nil {
		return RemoteImage{}
	}
	return *img
}

// known is what a name means without its registry; nil when nobody knows.
func (s *Server) known(ctx context.Context, named reference.Named) (*RemoteImage, error) {
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	if notManager(s.backend.Local(), unavailable) == nil {
		snap, err := s.state(ctx)
		if err != nil {
			return nil, err
		}
		if img := snap.Image(named.String()); img != nil {
			return &RemoteImage{MediaType: mediaType, Digest: img.Digest, Platforms: img.Platforms}, nil
		}
	}
	images, err := s.backend.ListImages(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	img, err := findImage(images, named.String())
	if err != nil || img.Digest == "" {
		return nil, nil // nobody knows
	}
	return &RemoteImage{MediaType: img.MediaType, Digest: img.Digest, Platforms: []swarm.Platform{{OS: img.OS, Architecture: img.Architecture}}}, nil
}
