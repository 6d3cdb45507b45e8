package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push sends an image of this node to the registry that its name says, under that name, and returns what the name means
// there then. Of an image for several platforms whose parts are not all here, this platform's is sent.
func (s *Store) Push(ctx context.Context, name string, auth registry.AuthConfig, progress func(Progress)) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return none, fmt.Errorf("invalid reference format: %q: %w", name, errdefs.ErrInvalidArgument)
	}
	if _, ok := ref.(reference.Digested); ok {
		return none, fmt.Errorf("cannot push a digest reference: %w", errdefs.ErrInvalidArgument)
	}
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return none, err
	}
	record, err := c.ImageService().Get(ctx, ref.String())
	if errdefs.IsNotFound(err) {
		return none, &registryError{text: "An image does not exist locally with the tag: " + reference.FamiliarName(ref), kind: errdefs.ErrNotFound}
	}
	if err != nil {
		return none, fmt.Errorf("look for image %s: %w", familiarRef(ref), err)
	}
	store := metadata(c)
	target, err := sendable(ctx, store, record.Target)
	if err != nil {
		return none, fmt.Errorf("image %s is not whole on this node, pull or load it again: %w", familiarRef(ref), err)
	}
	progress(Progress{Status: "The push refers to repository [" + ref.Name() + "]"})
	up := newUploads(ctx, store, target)
	stop := up.watch(progress)
	for attempt, delay := 1, s.retry; ; attempt++ {
		err = explain(ctx, pushing, ref, c.Push(ctx, ref.String(), target,
			client.WithResolver(s.registries.resolver(ctx, auth, up.attempt())), client.WithMaxConcurrentUploadedLayers(layersAtOnce)))
		if err == nil || !mayPass(err) || isDown(err) || attempt >= maxAttempts || ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
		delay = min(2*delay, maxDelay)
	}
	stop()
	if err != nil {
		return none, err
	}
	progress(Progress{Status: fmt.Sprintf("%s: digest: %s size: %d", tagOf(ref), target.Digest, target.Size)})
	return target, nil
}

// sendable is an image's target when all of it is here, else the manifest for this platform.
func sendable(ctx context.Context, store content.Store, target ocispec.Descriptor) (ocispec.Descriptor, error) {
	if whole, err := isWhole(ctx, store, target); whole || err != nil {
		return target, err
	}
	if !images.IsIndexType(target.MediaType) {
		return target, errdefs.ErrNotFound
	}
	children, err := images.Children(ctx, store, target)
	if err != nil {
		return target, err
	}
	match := platforms.Default()
	best := target
	for _, d := range children {
		if d.Platform == nil || !match.Match(*d.Platform) {
			continue
		}
		whole, err := isWhole(ctx, store, d)
		if err != nil {
			return target, err
		}
		if whole && (best.Platform == nil || match.Less(*d.Platform, *best.Platform)) {
			best = d
		}
	}
	if best.Platform == nil {
		return target, errdefs.ErrNotFound
	}
	best.Platform = nil
	return best, nil
}

// isWhole reports whether all that a descriptor leads to is here.
func isWhole(ctx context.Context, store content.Store, desc ocispec.Descriptor) (bool, error) {
	if _, err := store.Info(ctx, desc.Digest); errdefs.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for content %s: %w", desc.Digest, err)
	}
	children, err := images.Children(ctx, store, desc)
	if err != nil {
		return false, err
	}
	for _, d := range children {
		if whole, err := isWhole(ctx, store, d); !whole || err != nil {
			return false, err
		}
	}
	return true, nil
}

// uploads follows the layers of a push.
type uploads struct {
	layers []ocispec.Descriptor

	mu      sync.Mutex
	tracker docker.StatusTracker // of the attempt under way
	begun   map[string]bool      // by reference: what an attempt before it began to send, and may be there by now
}

func newUploads(ctx context.Context, store content.Store, target ocispec.Descriptor) *uploads {
	u := &uploads{tracker: docker.NewInMemoryTracker(), begun: map[string]bool{}}
	manifest, err := images.Manifest(ctx, store, target, platforms.Default())
	if err == nil { // else there is nothing to draw
		u.layers = manifest.Layers
	}
	return u
}

// attempt begins anew: a tracker remembers what failed.
func (u *uploads) attempt() docker.StatusTracker {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, d := range u.layers {
		ref := remotes.MakeRefKey(context.Background(), d)
		if st, err := u.tracker.GetStatus(ref); err == nil && !st.Exists {
			u.begun[ref] = true
		}
	}
	u.tracker = docker.NewInMemoryTracker()
	return u.tracker
}

func (u *uploads) look(ctx context.Context) []Progress {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []Progress
	for _, d := range u.layers {
		p, ref := Progress{ID: shortID(d.Digest), Status: "Preparing"}, remotes.MakeRefKey(ctx, d)
		if st, err := u.tracker.GetStatus(ref); err == nil {
			switch {
			case st.Exists && !u.begun[ref]:
				p.Status = "Layer already exists"
			case st.MountedFrom != "":
				p.Status = "Mounted from " + st.MountedFrom
			case st.Committed:
				p.Status = "Pushed"
			default:
				p.Status, p.Current, p.Total = "Pushing", st.Offset, d.Size
			}
		}
		out = append(out, p)
	}
	return out
}

// watch tells of the uploads until the function that it returns is called, which tells of their end.
func (u *uploads) watch(progress func(Progress)) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	last := map[string]Progress{}
	tell := func() {
		for _, p := range u.look(context.Background()) {
			if before, ok := last[p.ID]; !ok || before != p {
				last[p.ID] = p
				progress(p)
			}
		}
	}
	go func() {
		defer close(ended)
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-end:
				tell()
				return
			case <-tick.C:
				tell()
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// Save writes images as an archive that `docker load` reads. Names may be names or IDs. Of each image this platform's part
// is written. When it fails after the first byte, the archive is cut short.
func (s *Store) Save(ctx context.Context, names []string, w io.Writer) error {
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("no image was named: %w", errdefs.ErrInvalidArgument)
	}
	opts := []archive.ExportOpt{archive.WithPlatform(platforms.Default())}
	for _, name := range names {
		e, err := find(ctx, c, name)
		if err != nil {
			return err
		}
		ref, err := reference.ParseDockerRef(name)
		_, digested := ref.(reference.Digested)
		if e.byID || err != nil || digested {
			opts = append(opts, archive.WithManifest(e.target))
			continue
		}
		opts = append(opts, archive.WithImage(c.ImageService(), ref.String()))
	}
	if err := c.Export(ctx, w, opts...); err != nil {
		if errors.Is(err, context.Canceled) {
			return err
		}
		return fmt.Errorf("save images: %w", err)
	}
	return nil
}
