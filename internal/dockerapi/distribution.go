package dockerapi

import (
	"fmt"
	"net/http"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
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

// getDistribution says what an image's name means: the swarm's image table knows, or this node.
// Clients ask this before they create a service; any failure is only a warning to them.
func (s *Server) getDistribution(r *request) error {
	named, err := reference.ParseNormalizedNamed(r.vars["name"])
	if err != nil {
		return model.Invalidf("invalid reference format")
	}
	name := reference.TagNameOnly(named).String()
	if notManager(s.backend.Local(), unavailable) == nil {
		snap, err := s.state(r.ctx())
		if err != nil {
			return err
		}
		if img := snap.Image(name); img != nil {
			return writeJSON(r, http.StatusOK, newDistribution(img.Digest, img.Platforms))
		}
	}
	images, err := s.backend.ListImages(r.ctx())
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	if img, err := findImage(images, r.vars["name"]); err == nil && img.Digest != "" {
		return writeJSON(r, http.StatusOK, newDistribution(img.Digest, []swarm.Platform{{OS: img.OS, Architecture: img.Architecture}}))
	}
	return notFoundf("image %s is not in this swarm, and registries are not asked yet: load it with \"docker image load\"", reference.FamiliarString(reference.TagNameOnly(named)))
}

func newDistribution(digest string, platforms []swarm.Platform) distribution {
	d := distribution{Descriptor: descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digest}, Platforms: []ociPlatform{}}
	for _, p := range platforms {
		d.Platforms = append(d.Platforms, ociPlatform{Architecture: p.Architecture, OS: p.OS})
	}
	return d
}
