package images

import (
	"context"
	"fmt"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// bounded is a content store for those who read manifests and configurations, which containerd does whole and whatever their
// size is: who made an image must not decide how much memory the daemon takes. A blob that is too large for either has only its
// beginning, which is enough to see what it is.
type bounded struct{ content.Store }

// metadata is c's content, for reading what images consist of.
func metadata(c *client.Client) content.Store { return bounded{c.ContentStore()} }

// ReaderAt implements content.Provider.
func (b bounded) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	r, err := b.Store.ReaderAt(ctx, desc)
	if err != nil || r.Size() <= maxConfig {
		return r, err
	}
	if err := checkSize(desc.MediaType, r.Size()); err != nil {
		_ = r.Close() // nothing was written
		return nil, err
	}
	return beginning{r}, nil
}

// checkSize refuses what has to be read whole and is too large for that.
func checkSize(mediaType string, size int64) error {
	if size <= maxConfig || !images.IsManifestType(mediaType) && !images.IsIndexType(mediaType) && !images.IsConfigType(mediaType) {
		return nil
	}
	return fmt.Errorf("%s of %d bytes is too large, at most %d are taken: %w", mediaType, size, maxConfig, errdefs.ErrInvalidArgument)
}

// beginning is the beginning of a blob.
type beginning struct{ content.ReaderAt }

// Size implements content.ReaderAt.
func (beginning) Size() int64 { return maxConfig }

// importer is a client with bounded content, for all that Import needs.
func importer(c *client.Client) (*client.Client, error) {
	out, err := client.New("", client.WithServices(client.WithContentStore(metadata(c)), client.WithImageStore(c.ImageService()),
		client.WithLeasesService(c.LeasesService())))
	if err != nil {
		return nil, fmt.Errorf("open the image store for an archive: %w", err)
	}
	return out, nil
}
