package images

import (
	"context"
	"maps"
	"slices"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
)

// List returns all images, the newest first, as Docker's API shows them.
func (s *Store) List(ctx context.Context) ([]image.Summary, error) {
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	list, err := entries(ctx, c)
	if err != nil {
		return nil, err
	}
	uses, err := s.inUse(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]image.Summary, 0, len(list))
	for _, e := range list {
		size, err := e.size(ctx, c)
		if err != nil {
			return nil, err
		}
		sum := image.Summary{ID: e.id.String(), SharedSize: -1, Size: size, Labels: maps.Clone(e.config.Config.Labels)}
		if e.config.Created != nil {
			sum.Created = e.config.Created.Unix()
		}
		sum.RepoTags, sum.RepoDigests = e.names()
		for _, u := range uses {
			if e.has(u) {
				sum.Containers++
			}
		}
		out = append(out, sum)
	}
	slices.SortStableFunc(out, func(a, b image.Summary) int { return int(min(1, max(-1, b.Created-a.Created))) })
	return out, nil
}

// Inspect returns what Docker's API shows of one image.
func (s *Store) Inspect(ctx context.Context, name string) (image.InspectResponse, error) {
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return image.InspectResponse{}, err
	}
	e, err := find(ctx, c, name)
	if err != nil {
		return image.InspectResponse{}, err
	}
	return e.inspect(ctx, c)
}

func (e *entry) inspect(ctx context.Context, c *client.Client) (image.InspectResponse, error) {
	size, err := e.size(ctx, c)
	if err != nil {
		return image.InspectResponse{}, err
	}
	out := image.InspectResponse{
		ID: e.id.String(), Author: e.config.Author, Config: &e.config.Config, Architecture: e.config.Architecture,
		Variant: e.config.Variant, Os: e.config.OS, OsVersion: e.config.OSVersion, Size: size,
		RootFS: image.RootFS{Type: e.config.RootFS.Type},
	}
	target := e.target
	out.Descriptor = &target
	if e.config.Created != nil {
		out.Created = e.config.Created.Format(time.RFC3339Nano)
	}
	for _, h := range e.config.History {
		out.Comment = h.Comment
	}
	for _, d := range e.config.RootFS.DiffIDs {
		out.RootFS.Layers = append(out.RootFS.Layers, d.String())
	}
	for _, t := range e.named() {
		if t.UpdatedAt.After(out.Metadata.LastTagTime) {
			out.Metadata.LastTagTime = t.UpdatedAt
		}
	}
	out.RepoTags, out.RepoDigests = e.names()
	return out, nil
}

// names returns the image's tags and digests as people write them; empty, not nil, when there is none.
func (e *entry) names() (tags, digests []string) {
	tags, digests = []string{}, []string{}
	for _, t := range e.named() {
		ref, err := reference.ParseNormalizedNamed(t.Name)
		if err != nil {
			continue
		}
		if _, ok := ref.(reference.Tagged); ok {
			tags = append(tags, reference.FamiliarString(ref))
		}
		d := reference.FamiliarName(ref) + "@" + t.Target.Digest.String()
		if !slices.Contains(digests, d) {
			digests = append(digests, d)
		}
	}
	return tags, digests
}

// has reports whether a container was made from this image, by whatever name.
func (e *entry) has(u Use) bool {
	for _, t := range e.tags {
		if t.Target.Digest == u.Image {
			return true
		}
	}
	return false
}
