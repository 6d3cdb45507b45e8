package images

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Image is one image of this node in full.
type Image struct {
	// ID is the digest of the configuration, Digest that of the manifest or index behind the names.
	ID, Digest, MediaType string
	// Names are canonical, with their tags.
	Names                     []string
	Created                   time.Time
	Size                      int64 // of content and unpacked layers, in bytes
	OS, Architecture, Variant string
	Author, Comment           string
	Labels                    map[string]string
	Layers                    []string // diff IDs, lowest first
	Config                    json.RawMessage
	History                   []Step // newest first
}

// Step is one step of an image's making.
type Step struct {
	Created            time.Time
	CreatedBy, Comment string
	Empty              bool // made no layer
}

// All returns every image, ordered by ID.
func (s *Store) All(ctx context.Context) ([]Image, error) {
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	list, err := entries(ctx, c)
	if err != nil {
		return nil, err
	}
	out := make([]Image, 0, len(list))
	for _, e := range list {
		img, err := e.describe()
		if err != nil {
			return nil, err
		}
		if img.Size, err = e.size(ctx, c); err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b Image) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out, nil
}

func (e *entry) describe() (Image, error) {
	conf, err := json.Marshal(e.config.Config)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", e.id, err)
	}
	img := Image{
		ID: e.id.String(), Digest: e.target.Digest.String(), MediaType: e.target.MediaType, OS: e.config.OS, Architecture: e.config.Architecture,
		Variant: e.config.Variant, Author: e.config.Author, Labels: e.config.Config.Labels, Config: conf,
	}
	if e.config.Created != nil {
		img.Created = *e.config.Created
	}
	for _, t := range e.named() {
		img.Names = append(img.Names, t.Name)
	}
	for _, d := range e.config.RootFS.DiffIDs {
		img.Layers = append(img.Layers, d.String())
	}
	for _, h := range slices.Backward(e.config.History) {
		step := Step{CreatedBy: h.CreatedBy, Comment: h.Comment, Empty: h.EmptyLayer}
		if h.Created != nil {
			step.Created = *h.Created
		}
		img.History = append(img.History, step)
	}
	return img, nil
}
