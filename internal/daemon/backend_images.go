package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/skep-swarm/skep/internal/dockerapi"
	"github.com/skep-swarm/skep/internal/images"
)

// ListImages lists this node's images.
func (b *backend) ListImages(ctx context.Context) ([]dockerapi.Image, error) {
	all, err := b.images.All(ctx)
	if err != nil {
		return nil, sorted(err)
	}
	out := make([]dockerapi.Image, 0, len(all))
	for i := range all {
		out = append(out, apiImage(&all[i]))
	}
	return out, nil
}

func apiImage(i *images.Image) dockerapi.Image {
	out := dockerapi.Image{
		ID: i.ID, Digest: i.Digest, MediaType: i.MediaType, Names: i.Names, Created: i.Created, Size: i.Size, OS: i.OS, Architecture: i.Architecture,
		Variant: i.Variant, Author: i.Author, Comment: i.Comment, Labels: i.Labels, Layers: i.Layers, Config: i.Config,
	}
	for _, s := range i.History {
		out.History = append(out.History, dockerapi.ImageLayer{Created: s.Created, CreatedBy: s.CreatedBy, Comment: s.Comment})
	}
	return out
}

// LoadImages reads an archive.
func (b *backend) LoadImages(ctx context.Context, archive io.Reader, progress func(string)) ([]dockerapi.Image, error) {
	told := &loadProgress{tell: progress}
	if err := b.images.Load(ctx, archive, told); err != nil {
		return nil, sorted(err)
	}
	all, err := b.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(i dockerapi.Image) bool {
		return !slices.Contains(told.loaded, i.ID) && !slices.ContainsFunc(i.Names, func(n string) bool { return slices.Contains(told.loaded, n) })
	}), nil
}

// loadProgress takes the store's JSON lines apart: the text for the client, and what was loaded.
type loadProgress struct {
	tell   func(string)
	loaded []string // names and IDs
}

// Write takes whole lines.
func (p *loadProgress) Write(data []byte) (int, error) {
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		var m struct{ Stream string }
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			continue
		}
		line := strings.TrimSuffix(m.Stream, "\n")
		if id, ok := strings.CutPrefix(line, "Loaded image ID: "); ok {
			p.loaded = append(p.loaded, id)
		} else if name, ok := strings.CutPrefix(line, "Loaded image: "); ok {
			if ref, err := reference.ParseDockerRef(name); err == nil {
				p.loaded = append(p.loaded, ref.String())
			}
		}
		p.tell(m.Stream) // with its newline: clients print it as it is
	}
	return len(data), nil
}

// TagImage gives an image one more name.
func (b *backend) TagImage(ctx context.Context, id, name string) error {
	return sorted(b.images.Tag(ctx, id, name))
}

// UntagImage takes a name away.
func (b *backend) UntagImage(ctx context.Context, name string) error {
	_, err := b.images.Remove(ctx, name, true)
	return sorted(err)
}

// DeleteImage forgets an image and all its names.
func (b *backend) DeleteImage(ctx context.Context, id string) error {
	_, err := b.images.Remove(ctx, id, true)
	return sorted(err)
}
