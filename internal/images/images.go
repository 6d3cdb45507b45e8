// Package images is a node's image store: what `docker load`, `pull`, `push`, `images`, `inspect`, `tag` and `rmi` act on, and
// where the agent gets the images of tasks.
//
// It stands between its callers and containerd's content, image and snapshot stores, whose client it is given, and speaks
// to registries through containerd's resolver. It knows
// names as Docker normalises them, and IDs as Docker shows them (the digest of an image's configuration). It must not
// know about tasks or services; who uses an image it is told by a function.
package images

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

const (
	snapshotter = "overlayfs"
	// untagged is the repository under which images without a name are kept, for containerd keeps nothing nameless.
	untagged = "skep.invalid/untagged"
	// maxConfig bounds an image's configuration, in bytes.
	maxConfig = 4 << 20
	// maxLayers bounds an image's layers; the kernel puts no more upon one another.
	maxLayers = 500
	// minShortID is the least number of hex characters by which an image may be named.
	minShortID = 4
)

// Use is one container's use of an image.
type Use struct {
	Container string        // its ID
	Image     digest.Digest // of the manifest or index it was made from
	Running   bool
}

// Config is what a store needs; fields without a default in brackets are required.
type Config struct {
	// Open returns containerd's client; it may wait until there is one.
	Open func(context.Context) (*client.Client, error)
	// InUse lists who uses images.
	InUse func(context.Context) ([]Use, error)
	// Registries says how registries are reached.
	Registries Registries
	// PreferLocal makes Ensure use an image of the name, whatever it is, before it asks a registry.
	PreferLocal bool
	// RetryDelay is the wait before a pull that broke off is tried again; it doubles [500 ms].
	RetryDelay time.Duration
}

// Store gives access to one node's images. Its methods are safe for concurrent use.
type Store struct {
	open        func(context.Context) (*client.Client, error)
	inUse       func(context.Context) ([]Use, error)
	registries  Registries
	preferLocal bool
	retry       time.Duration
	slots       *semaphore.Weighted // of pulls

	mu    sync.Mutex
	pulls map[pullKey]*pull
}

// New returns a store.
func New(cfg Config) *Store {
	if cfg.RetryDelay <= 0 {
		cfg.RetryDelay = 500 * time.Millisecond
	}
	return &Store{open: cfg.Open, inUse: cfg.InUse, registries: cfg.Registries, preferLocal: cfg.PreferLocal, retry: cfg.RetryDelay,
		slots: semaphore.NewWeighted(pullsAtOnce), pulls: map[pullKey]*pull{}}
}

// Resolved is what an image's name stands for on this node.
type Resolved struct {
	// Name is the canonical name ("docker.io/library/nginx:latest").
	Name string
	// Digest is that of the manifest or index the name stands for, to pin it by.
	Digest digest.Digest
	// ID is the digest of the configuration, which is the ID that Docker shows.
	ID digest.Digest
	// Platform is what the image was built for.
	Platform ocispec.Platform
	// Config is the configuration of its containers.
	Config dockerspec.DockerOCIImageConfig
}

// Resolve returns what name stands for here. Name may be a name, a name with a digest, an ID or the beginning of one.
// It fails with errdefs.ErrNotFound or errdefs.ErrInvalidArgument.
func (s *Store) Resolve(ctx context.Context, name string) (Resolved, error) {
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return Resolved{}, err
	}
	e, err := find(ctx, c, name)
	if err != nil {
		return Resolved{}, err
	}
	canonical := e.tags[0].Name
	if ref, err := reference.ParseDockerRef(name); err == nil && !e.byID {
		canonical = ref.String()
	}
	return Resolved{Name: canonical, Digest: e.target.Digest, ID: e.id, Platform: e.config.Platform, Config: e.config.Config}, nil
}

// begin returns the client and a context in its namespace.
func (s *Store) begin(ctx context.Context) (*client.Client, context.Context, error) {
	c, err := s.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	return c, namespaces.WithNamespace(ctx, c.DefaultNamespace()), nil
}

// entry is one image: an ID and all names that stand for it.
type entry struct {
	id     digest.Digest
	target ocispec.Descriptor
	tags   []images.Image // ordered by name, never empty
	config dockerspec.DockerOCIImage
	byID   bool // it was asked for by its ID
}

// named returns the entry's real names.
func (e *entry) named() []images.Image {
	return slices.DeleteFunc(slices.Clone(e.tags), func(i images.Image) bool { return isUntagged(i.Name) })
}

func isUntagged(name string) bool { return strings.HasPrefix(name, untagged+"@") }

// entries reads all images. One whose content is damaged or for another platform is left out of the list, as it
// cannot be used.
func entries(ctx context.Context, c *client.Client) ([]*entry, error) {
	all, err := c.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	slices.SortFunc(all, func(a, b images.Image) int { return strings.Compare(a.Name, b.Name) })
	byID := make(map[digest.Digest]*entry)
	var list []*entry
	for _, record := range all {
		e, err := load(ctx, c, record)
		if err != nil {
			if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
				continue
			}
			return nil, err
		}
		if known := byID[e.id]; known != nil {
			known.tags = append(known.tags, record)
			continue
		}
		byID[e.id] = e
		list = append(list, e)
	}
	return list, nil
}

func load(ctx context.Context, c *client.Client, record images.Image) (*entry, error) {
	store := metadata(c)
	desc, err := record.Config(ctx, store, platforms.Default())
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", record.Name, err)
	}
	if err := checkDescriptor(desc); err != nil {
		return nil, fmt.Errorf("read image %s: configuration: %w", record.Name, err)
	}
	data, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", record.Name, err)
	}
	e := &entry{id: desc.Digest, target: record.Target, tags: []images.Image{record}}
	if err := json.Unmarshal(data, &e.config); err != nil {
		return nil, fmt.Errorf("decode the configuration of image %s: %w: %w", record.Name, err, errdefs.ErrInvalidArgument)
	}
	if n := len(e.config.RootFS.DiffIDs); n > maxLayers {
		return nil, fmt.Errorf("image %s has %d layers, at most %d can be used: %w", record.Name, n, maxLayers, errdefs.ErrInvalidArgument)
	}
	return e, nil
}

// find returns the image that name stands for: a name first, then an ID or the beginning of one.
func find(ctx context.Context, c *client.Client, name string) (*entry, error) {
	list, err := entries(ctx, c)
	if err != nil {
		return nil, err
	}
	hex := strings.TrimPrefix(name, "sha256:")
	asID := isHex(hex) && len(hex) >= minShortID
	ref, err := reference.ParseDockerRef(name)
	if err != nil && !asID {
		return nil, fmt.Errorf("invalid reference format: %q: %w", name, errdefs.ErrInvalidArgument)
	}
	if err == nil {
		if e := byName(list, ref); e != nil {
			return e, nil
		}
	}
	if asID {
		if e, err := byPrefix(list, hex); e != nil || err != nil {
			return e, err
		}
	}
	if err != nil {
		//lint:ignore ST1005 it is Docker's text
		return nil, fmt.Errorf("No such image: %s: %w", name, errdefs.ErrNotFound)
	}
	//lint:ignore ST1005 it is Docker's text
	return nil, fmt.Errorf("No such image: %s: %w", reference.FamiliarString(ref), errdefs.ErrNotFound)
}

// byName finds the image with a name, or with a digest whatever its name is, so that a pinned image is found under
// every tag.
func byName(list []*entry, ref reference.Named) *entry {
	digested, _ := ref.(reference.Digested)
	for _, e := range list {
		for _, t := range e.tags {
			if t.Name == ref.String() {
				return &entry{id: e.id, target: t.Target, tags: e.tags, config: e.config}
			}
		}
	}
	if digested == nil {
		return nil
	}
	for _, e := range list {
		for _, t := range e.tags {
			named, err := reference.ParseNormalizedNamed(t.Name)
			if err == nil && named.Name() == ref.Name() && t.Target.Digest == digested.Digest() {
				return &entry{id: e.id, target: t.Target, tags: e.tags, config: e.config}
			}
		}
	}
	return nil
}

// byPrefix finds the one image whose ID begins with hex.
func byPrefix(list []*entry, hex string) (*entry, error) {
	var found *entry
	for _, e := range list {
		if !strings.HasPrefix(e.id.Encoded(), hex) && e.target.Digest.Encoded() != hex {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("multiple images begin with %s: %w", hex, errdefs.ErrInvalidArgument)
		}
		found = e
	}
	if found != nil {
		found.byID = true
	}
	return found, nil
}

func isHex(s string) bool {
	return len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// layerKeys are the snapshots of the image's layers, the top one last.
func (e *entry) layerKeys() []string {
	var keys []string
	for _, id := range identity.ChainIDs(slices.Clone(e.config.RootFS.DiffIDs)) {
		keys = append(keys, id.String())
	}
	return keys
}

// size is what the image takes unpacked, or packed when it is not unpacked, in bytes.
func (e *entry) size(ctx context.Context, c *client.Client) (int64, error) {
	var total int64
	sn := c.SnapshotService(snapshotter)
	for _, key := range e.layerKeys() {
		usage, err := sn.Usage(ctx, key)
		if errdefs.IsNotFound(err) {
			n, err := client.NewImage(c, e.tags[0]).Size(ctx)
			if err != nil {
				return 0, fmt.Errorf("size of image %s: %w", e.tags[0].Name, err)
			}
			return n, nil
		}
		if err != nil {
			return 0, fmt.Errorf("size of image %s: %w", e.tags[0].Name, err)
		}
		total += usage.Size
	}
	return total, nil
}
