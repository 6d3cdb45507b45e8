package skepapi

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// meaning is what a registry, or the swarm, says of an image's name.
type meaning struct {
	registry.DistributionInspect
	err error
}

// auth is the value of X-Registry-Auth for an image's registry, "" for none.
func (p *planner) auth(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return ""
	}
	return p.d.Auth[reference.Domain(named)]
}

// image is a service's image with the digest that its name means, as far as someone knows it. An image that the file has not changed
// stays what it was unless registries are always to be asked.
func (p *planner) image(spec *swarm.ServiceSpec, have *model.Service, auth string) (image string, warnings []string) {
	image = spec.TaskTemplate.ContainerSpec.Image
	var now string
	if have != nil && have.Spec().Labels[imageLabel] == spec.Labels[imageLabel] && have.Spec().TaskTemplate.ContainerSpec != nil {
		now = have.Spec().TaskTemplate.ContainerSpec.Image
	}
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil || strings.Contains(image, "@") || p.d.Resolve == "never" {
		return image, nil // admission has its say on names
	}
	if now != "" && p.d.Resolve == "changed" {
		return now, nil
	}
	res := p.ask(image, auth)
	if res.err != nil || res.Descriptor.Digest == "" {
		if now != "" {
			return now, nil // nobody can say otherwise
		}
		return image, []string{fmt.Sprintf("what image %s means could not be found out, so each node looks for itself: %v", image, res.err)}
	}
	pinned, err := reference.WithDigest(reference.TagNameOnly(named), res.Descriptor.Digest)
	if err != nil {
		return image, nil
	}
	spec.TaskTemplate.Placement = withPlatforms(spec.TaskTemplate.Placement, &res.DistributionInspect)
	return reference.FamiliarString(pinned), nil
}

// ask asks for an image once a plan.
func (p *planner) ask(image, auth string) meaning {
	if res, ok := p.asked[image]; ok {
		return res
	}
	header := http.Header{}
	if auth != "" {
		header.Set(registry.AuthHeader, auth)
	}
	var res meaning
	res.err = p.docker(p.ctx, http.MethodGet, "/distribution/"+escapePath(image)+"/json", header, nil, &res.DistributionInspect)
	p.asked[image] = res
	return res
}

// withPlatforms tells the scheduler what an image can run on, as Docker's client does.
func withPlatforms(p *swarm.Placement, res *registry.DistributionInspect) *swarm.Placement {
	if len(res.Platforms) == 0 {
		return p
	}
	var out swarm.Placement
	if p != nil {
		out = *p
	}
	out.Platforms = nil
	for _, pl := range res.Platforms {
		// Docker's clients leave the variants of arm to the node.
		arch := pl.Architecture
		if strings.ToLower(arch) == "arm" {
			arch = ""
		}
		out.Platforms = append(out.Platforms, swarm.Platform{Architecture: arch, OS: pl.OS})
	}
	return &out
}

func escapePath(image string) string {
	parts := strings.Split(image, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
