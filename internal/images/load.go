package images

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// MaxLoad bounds what one Load reads, uncompressed, in bytes.
const MaxLoad = 64 << 30

// errTooLarge ends a Load that would fill the disk.
var errTooLarge = fmt.Errorf("the archive is larger than %d bytes uncompressed: %w", int64(MaxLoad), errdefs.ErrInvalidArgument)

// Load reads images from an archive that `docker save` made or an OCI layout in a tar, compressed or not, unpacks them,
// and writes a line of JSON to progress for each: {"stream":"Loaded image: x\n"}. An archive that holds nothing for
// this platform, or is none, fails with errdefs.ErrInvalidArgument. What was loaded before a failure stays.
func (s *Store) Load(ctx context.Context, archive io.Reader, progress io.Writer) error {
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	plain, err := compression.DecompressStream(bufio.NewReaderSize(archive, 64<<10))
	if err != nil {
		return fmt.Errorf("decompress the archive: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer plain.Close()
	limited := &boundedReader{r: plain, left: MaxLoad}
	in, err := importer(c)
	if err != nil {
		return err
	}
	loaded, err := in.Import(ctx, limited,
		client.WithImageRefTranslator(canonicalName),
		client.WithDigestRef(func(d digest.Digest) string { return untagged + "@" + d.String() }),
		client.WithSkipDigestRef(func(name string) bool { return name != "" }),
		client.WithImportPlatform(platforms.Default()),
		client.WithSkipMissing())
	if err != nil {
		return fmt.Errorf("load images: %w", badArchive(err))
	}
	if len(loaded) == 0 {
		return fmt.Errorf("the archive holds no image: %w", errdefs.ErrInvalidArgument)
	}
	for _, record := range loaded {
		if err := finish(ctx, c, record, progress); err != nil {
			return err
		}
	}
	return nil
}

// finish unpacks a loaded image and reports it.
func finish(ctx context.Context, c *client.Client, record images.Image, progress io.Writer) error {
	e, err := load(ctx, c, record)
	if err != nil {
		_ = c.ImageService().Delete(ctx, record.Name)
		return badArchive(err)
	}
	if err := client.NewImage(c, record).Unpack(ctx, snapshotter); err != nil && !errdefs.IsAlreadyExists(err) {
		_ = c.ImageService().Delete(ctx, record.Name)
		return fmt.Errorf("unpack image %s: %w", record.Name, err)
	}
	line := "Loaded image ID: " + e.id.String()
	if !isUntagged(record.Name) {
		// A name takes the place of being nameless.
		_ = c.ImageService().Delete(ctx, untagged+"@"+record.Target.Digest.String())
		line = "Loaded image: " + familiar(record.Name)
	}
	if err := json.NewEncoder(progress).Encode(struct {
		Stream string `json:"stream"`
	}{line + "\n"}); err != nil {
		return fmt.Errorf("report progress: %w", err)
	}
	return nil
}

// badArchive marks what is wrong with an archive as the sender's mistake.
func badArchive(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errdefs.IsInvalidArgument(err):
		return err
	case errdefs.IsNotFound(err):
		return fmt.Errorf("the archive is not complete or not for platform %s: %w: %w", platforms.DefaultString(), err, errdefs.ErrInvalidArgument)
	}
	text := err.Error()
	for _, sign := range []string{"unrecognized image format", "invalid character", "unexpected EOF", "invalid tar header", "EOF", "manifest.json"} {
		if strings.Contains(text, sign) {
			return fmt.Errorf("this is no archive of images as docker save makes it, or not all of it: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return err
}

// canonicalName turns the name in an OCI layout into a canonical one; a bare tag, which the format allows, is none.
func canonicalName(name string) string {
	if !strings.ContainsAny(name, "/:") {
		return ""
	}
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return ""
	}
	return ref.String()
}

func familiar(name string) string {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(ref)
}

// boundedReader fails when more than left bytes were read.
type boundedReader struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}
