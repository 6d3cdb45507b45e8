package images

import (
	"context"
	"fmt"
	"strings"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// checked follows what a pull fetches, and says of which part an error is. A part that is wrong is thrown away, so that
// the next attempt does not go on from it.
func (s *Store) checked(c *client.Client, p *pull, next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if err := checkDescriptor(desc); err != nil {
			return nil, bad(p.ref, err)
		}
		children, err := next.Handle(ctx, desc)
		if err != nil {
			return nil, part(ctx, c.ContentStore(), p.ref, desc, err)
		}
		for i, child := range children {
			if i == 0 && images.IsManifestType(desc.MediaType) {
				child.MediaType = ocispec.MediaTypeImageConfig // the configuration comes first, whatever it calls itself
			}
			if err := checkDescriptor(child); err != nil {
				return nil, bad(p.ref, err)
			}
			// Who made an image does not say whom this node calls: its parts come from its registry.
			children[i].URLs = nil
		}
		p.track.meet(ctx, c.ContentStore(), desc, children)
		return children, nil
	})
}

// checkDescriptor refuses what a registry or an archive cannot mean.
func checkDescriptor(desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("%q is no digest: %w", desc.Digest, errdefs.ErrInvalidArgument)
	}
	if desc.Size < 0 {
		return fmt.Errorf("%s of %d bytes: %w", desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
	}
	return checkSize(desc.MediaType, desc.Size)
}

// bad words that a registry has something else than an image; it will not be another thing in a moment.
func bad(ref reference.Named, err error) error {
	return &registryError{text: fmt.Sprintf("image %s: %v", familiarRef(ref), err), kind: errdefs.ErrInvalidArgument}
}

// part words an error of fetching one blob.
func part(ctx context.Context, store content.Store, ref reference.Named, desc ocispec.Descriptor, err error) error {
	if ctx.Err() != nil {
		return err
	}
	what := "layer"
	switch {
	case images.IsManifestType(desc.MediaType), images.IsIndexType(desc.MediaType):
		what = "manifest"
	case images.IsConfigType(desc.MediaType):
		what = "configuration"
	}
	key := remotes.MakeRefKey(ctx, desc)
	status, _ := statusOf(err)
	text := err.Error()
	switch {
	case strings.Contains(text, "unexpected commit digest"), strings.Contains(text, "read past expected size"), strings.Contains(text, "read exceeds expected size"):
		if abort := store.Abort(ctx, key); abort != nil && !errdefs.IsNotFound(abort) {
			return fmt.Errorf("throw away a damaged %s: %w", what, abort)
		}
		return &registryError{text: fmt.Sprintf("%s %s of %s is damaged: filesystem layer verification failed for digest %s", what, shortID(desc.Digest), familiarRef(ref), desc.Digest),
			kind: errdefs.ErrDataLoss, again: true}
	case status == 416, strings.Contains(text, "short read"):
		have := int64(0)
		if st, err := store.Status(ctx, key); err == nil {
			have = st.Offset
		}
		return &registryError{text: fmt.Sprintf("%s %s of %s is cut short: the registry sent %d of %d bytes", what, shortID(desc.Digest), familiarRef(ref), have, desc.Size),
			kind: errdefs.ErrDataLoss, again: true}
	}
	err = explain(ctx, pulling, ref, err)
	if errdefs.IsNotFound(err) && what != "manifest" {
		return &registryError{text: fmt.Sprintf("%s %s of %s is missing in the registry: blob unknown", what, shortID(desc.Digest), familiarRef(ref)), kind: errdefs.ErrNotFound}
	}
	return err
}
