package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-swarm/skep/internal/runtime"
)

const (
	maxImageConfig = 4 << 20 // bytes of an image's configuration
	maxUserFile    = 1 << 20 // bytes of /etc/passwd or /etc/group that are looked at
	maxCached      = 64      // images whose facts are remembered
)

// image is what making a container needs to know of its image.
type image struct {
	manifest digest.Digest
	config   ocispec.ImageConfig
	chain    string // the snapshot of its unpacked layers
	health   *dockerspec.HealthcheckConfig

	users         sync.Once
	usersErr      error
	passwd, group []byte
}

// imageCache remembers images by the digest their name stood for. An image never changes under its digest.
type imageCache struct {
	client *client.Client

	mu     sync.Mutex
	byRoot map[digest.Digest]*image
	unpack sync.Mutex // one image is unpacked at a time: it is bound by the disk
	views  sync.Mutex // one view at a time, for keys are not unique and views are short
}

// viewPrefix begins the keys of snapshots by which images are looked at.
const viewPrefix = "skep-view-"

// find returns the unpacked image for a task's image name, pinned to a digest if one is given.
func (c *imageCache) find(ctx context.Context, name, pinned string) (*image, error) {
	record, err := c.lookup(ctx, name, pinned)
	if err != nil {
		if errdefs.IsNotFound(err) {
			return nil, runtime.ImageMissing(familiar(name), err)
		}
		return nil, err
	}
	c.mu.Lock()
	img := c.byRoot[record.Target.Digest]
	c.mu.Unlock()
	if img == nil {
		if img, err = c.read(ctx, record); err != nil {
			if errdefs.IsNotFound(err) {
				return nil, runtime.ImageMissing(familiar(name), err)
			}
			return nil, fmt.Errorf("read image %s: %w", familiar(name), err)
		}
		c.mu.Lock()
		if len(c.byRoot) >= maxCached {
			clear(c.byRoot)
		}
		c.byRoot[record.Target.Digest] = img
		c.mu.Unlock()
	}
	return img, c.ensureUnpacked(ctx, record, img)
}

// lookup finds the image record for a name. A pinned digest wins over what the name stands for now.
func (c *imageCache) lookup(ctx context.Context, name, pinned string) (images.Image, error) {
	if strings.HasPrefix(name, "sha256:") && pinned == "" {
		return c.byID(ctx, name)
	}
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return images.Image{}, runtime.Invalid("invalid image reference %q: %v", name, err)
	}
	if pinned == "" {
		if d, ok := ref.(reference.Digested); ok {
			pinned = d.Digest().String()
		}
	}
	store := c.client.ImageService()
	record, err := store.Get(ctx, ref.String())
	if err == nil && (pinned == "" || record.Target.Digest.String() == pinned) {
		return record, nil
	}
	if pinned == "" {
		return images.Image{}, err
	}
	same, err := store.List(ctx, "target.digest=="+pinned)
	if err != nil {
		return images.Image{}, fmt.Errorf("look for image %s: %w", pinned, err)
	}
	if len(same) == 0 {
		return images.Image{}, fmt.Errorf("image %s@%s: %w", name, pinned, errdefs.ErrNotFound)
	}
	return same[0], nil
}

// byID finds an image by its configuration's digest, which is the ID that Docker shows.
func (c *imageCache) byID(ctx context.Context, id string) (images.Image, error) {
	all, err := c.client.ImageService().List(ctx)
	if err != nil {
		return images.Image{}, fmt.Errorf("list images: %w", err)
	}
	for _, record := range all {
		desc, err := record.Config(ctx, c.client.ContentStore(), platforms.Default())
		if err == nil && desc.Digest.String() == id {
			return record, nil
		}
	}
	return images.Image{}, fmt.Errorf("image %s: %w", id, errdefs.ErrNotFound)
}

func (c *imageCache) read(ctx context.Context, record images.Image) (*image, error) {
	store := c.client.ContentStore()
	manifest, err := images.Manifest(ctx, store, record.Target, platforms.Default())
	if err != nil {
		return nil, err
	}
	if manifest.Config.Size > maxImageConfig {
		return nil, fmt.Errorf("image configuration of %d bytes is too large", manifest.Config.Size)
	}
	data, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		return nil, err
	}
	var config dockerspec.DockerOCIImage
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("decode the image configuration: %w", err)
	}
	return &image{
		manifest: record.Target.Digest,
		config:   config.Config.ImageConfig,
		health:   config.Config.Healthcheck,
		chain:    identity.ChainID(config.RootFS.DiffIDs).String(),
	}, nil
}

// ensureUnpacked makes the snapshot of the image's layers if it is not there.
func (c *imageCache) ensureUnpacked(ctx context.Context, record images.Image, img *image) error {
	if img.chain == "" {
		return nil // no layers: containers start from nothing
	}
	sn := c.client.SnapshotService(snapshotter)
	if _, err := sn.Stat(ctx, img.chain); err == nil {
		return nil
	} else if !errdefs.IsNotFound(err) {
		return fmt.Errorf("look for the unpacked image: %w", err)
	}
	c.unpack.Lock()
	defer c.unpack.Unlock()
	err := client.NewImage(c.client, record).Unpack(ctx, snapshotter)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("unpack image %s: %w", record.Name, err)
	}
	return nil
}

// view calls f with the image's root file system mounted read-only at a temporary place.
func (c *imageCache) view(ctx context.Context, img *image, key string, f func(root string) error) error {
	c.views.Lock()
	defer c.views.Unlock()
	sn := c.client.SnapshotService(snapshotter)
	key = viewPrefix + key
	opt := snapshots.WithLabels(map[string]string{gcRootLabel: "skep"})
	mounts, err := sn.View(ctx, key, img.chain, opt)
	if errdefs.IsAlreadyExists(err) {
		// It could not be removed: views of one key are not used twice at a time.
		if err := sn.Remove(ctx, key); err != nil {
			return fmt.Errorf("remove a stale view: %w", err)
		}
		mounts, err = sn.View(ctx, key, img.chain, opt)
	}
	if err != nil {
		return fmt.Errorf("view the image's files: %w", err)
	}
	err = mount.WithReadonlyTempMount(ctx, mounts, f)
	return errors.Join(err, sn.Remove(context.WithoutCancel(ctx), key))
}

// userFiles returns the image's /etc/passwd and /etc/group; empty when there is none.
func (c *imageCache) userFiles(ctx context.Context, img *image) (passwd, group []byte, err error) {
	if img.chain == "" {
		return nil, nil, nil
	}
	img.users.Do(func() {
		img.usersErr = c.view(ctx, img, "users-"+digest.FromString(img.chain).Encoded()[:16], func(root string) error {
			var err error
			if img.passwd, err = readIn(root, "/etc/passwd"); err != nil {
				return err
			}
			img.group, err = readIn(root, "/etc/group")
			return err
		})
	})
	if img.usersErr != nil {
		c.mu.Lock()
		clear(c.byRoot) // ask again next time
		c.mu.Unlock()
		return nil, nil, fmt.Errorf("read the image's users: %w", img.usersErr)
	}
	return img.passwd, img.group, nil
}

// readIn reads a file below root without leaving it by a symbolic link; nil when it does not exist.
func readIn(root, name string) ([]byte, error) {
	path, err := fs.RootPath(root, name)
	if err != nil {
		return nil, nil // a path that leads nowhere is a file that does not exist
	}
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, nil // the same
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxUserFile))
}

// familiar is the name as people write it, with its tag.
func familiar(name string) string {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(ref)
}
