package images

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

const (
	// pullsAtOnce bounds the pulls of a node, layersAtOnce what one pull fetches at a time; both as Docker does.
	pullsAtOnce  = 4
	layersAtOnce = 3
	// maxAttempts is how often a pull that does not advance is tried; one that advances may fail more often.
	maxAttempts = 5
	maxDamaged  = 2 // with the same wrong bytes again the registry has no others
	maxDelay    = 10 * time.Second
)

// pull is the fetching of one image, for all who wait for it.
type pull struct {
	ref    reference.Named
	auth   registry.AuthConfig
	track  *tracker
	cancel context.CancelFunc
	done   chan struct{} // closed when err and fresh are valid

	waiters int // guarded by Store.mu
	err     error
	fresh   bool // something came from the registry
	target  ocispec.Descriptor
}

// Pull gets an image from its registry, unpacked, and returns what its name stands for then. A name with a digest is
// kept under the digest alone. All who ask for the same image at the same time wait for one pull, which ends
// when the last of them gives up; what it had fetched is kept for a day and the next pull goes on from there, unless the disk was
// full: then it is thrown away, for this node needs the room. No
// name stands for an image that is not whole. progress may be nil; it is called by one goroutine at a time.
//
// It fails with errdefs.ErrNotFound when the image is missing or the credentials do not suffice, with
// errdefs.ErrUnavailable when the registry cannot be reached or breaks off, errdefs.ErrDataLoss when what it sends is wrong.
func (s *Store) Pull(ctx context.Context, name string, auth registry.AuthConfig, progress func(Progress)) (Resolved, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return Resolved{}, fmt.Errorf("invalid reference format: %q: %w", name, errdefs.ErrInvalidArgument)
	}
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return Resolved{}, err
	}
	p := s.join(ctx, c, ref, auth)
	s.watch(ctx, c, p, progress)
	if err := s.leave(ctx, p); err != nil {
		return Resolved{}, err
	}
	if progress != nil {
		progress(Progress{Status: "Digest: " + p.target.Digest.String()})
		status := "Status: Image is up to date for "
		if p.fresh {
			status = "Status: Downloaded newer image for "
		}
		progress(Progress{Status: status + familiarRef(ref)})
	}
	return s.Resolve(ctx, ref.String())
}

// tagOf is what Docker shows in front of a pull.
func tagOf(ref reference.Named) string {
	switch r := ref.(type) {
	case reference.Digested:
		return r.Digest().String()
	case reference.Tagged:
		return r.Tag()
	}
	return ""
}

// join returns the pull of an image that is under way, or begins one.
func (s *Store) join(ctx context.Context, c *client.Client, ref reference.Named, auth registry.AuthConfig) *pull {
	key := pullKey{ref.String(), auth}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pulls[key]
	if p == nil {
		// It goes on when the first who asked goes away and others have come.
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		p = &pull{ref: ref, auth: auth, track: newTracker(), cancel: cancel, done: make(chan struct{})}
		s.pulls[key] = p
		go func() {
			defer close(p.done)
			p.err = s.run(ctx, c, p)
			cancel()
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.pulls[key] == p {
				delete(s.pulls, key)
			}
		}()
	}
	p.waiters++
	return p
}

// pullKey tells pulls apart: one with other credentials may end otherwise.
type pullKey struct {
	name string
	auth registry.AuthConfig
}

// watch returns when the pull or ctx has ended.
func (s *Store) watch(ctx context.Context, c *client.Client, p *pull, progress func(Progress)) {
	if progress == nil {
		select {
		case <-p.done:
		case <-ctx.Done():
		}
		return
	}
	w := &teller{tell: progress, last: map[string]Progress{}}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			w.report(p.track, p.track.look(ctx, c))
			return
		case <-ctx.Done():
			return
		case <-tick.C:
			w.report(p.track, p.track.look(ctx, c))
		}
	}
}

// leave gives up a pull, and ends it when nobody else waits for it. It returns the pull's error, or that of ctx.
func (s *Store) leave(ctx context.Context, p *pull) error {
	s.mu.Lock()
	p.waiters--
	last := p.waiters == 0
	if key := (pullKey{p.ref.String(), p.auth}); last && s.pulls[key] == p {
		delete(s.pulls, key)
	}
	s.mu.Unlock()
	if last {
		p.cancel()
		<-p.done
	}
	select {
	case <-p.done:
		if p.err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return p.err
	default:
		return context.Cause(ctx)
	}
}

// run pulls with patience: what a registry breaks off is asked for again, from where it broke.
func (s *Store) run(ctx context.Context, c *client.Client, p *pull) error {
	if err := s.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.slots.Release(1)
	held, release, err := hold(ctx, c, p.ref.String())
	if err != nil {
		return fmt.Errorf("protect the parts of image %s: %w", familiarRef(p.ref), err)
	}
	err = s.insist(held, c, p)
	return errors.Join(err, release(err))
}

func (s *Store) insist(ctx context.Context, c *client.Client, p *pull) error {
	delay, had := s.retry, int64(0)
	for failures := 1; ; failures++ {
		err := s.attempt(ctx, c, p)
		if err == nil || ctx.Err() != nil || !mayPass(err) {
			return err
		}
		if p.target.Digest == "" && isDown(err) {
			return err // nobody answers: who asked shall know at once
		}
		if now := p.track.received(ctx, c.ContentStore()); now > had {
			failures, had, delay = 1, now, s.retry
		}
		if failures >= maxAttempts || failures >= maxDamaged && errdefs.IsDataLoss(err) {
			return err
		}
		p.track.note(Progress{Status: fmt.Sprintf("%v: trying again in %v", err, delay.Round(time.Millisecond))})
		select {
		case <-time.After(delay + rand.N(delay/4+1)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		delay = min(2*delay, maxDelay)
	}
}

// attempt asks what the name means, once in a pull, fetches that, and gives it its name.
func (s *Store) attempt(ctx context.Context, c *client.Client, p *pull) error {
	resolver := s.registries.resolver(ctx, p.auth, nil)
	if p.target.Digest == "" {
		_, desc, err := resolver.Resolve(ctx, p.ref.String())
		if err != nil {
			return explain(ctx, pulling, p.ref, err)
		}
		p.target = desc
		p.track.note(Progress{ID: tagOf(p.ref), Status: "Pulling from " + reference.Path(p.ref)})
	}
	pinned, err := reference.WithDigest(reference.TrimNamed(p.ref), p.target.Digest)
	if err != nil {
		return fmt.Errorf("the registry's digest %q: %w", p.target.Digest, err)
	}
	if s.whole(ctx, c, p) {
		return nil
	}
	before, err := c.ImageService().Get(ctx, pinned.String())
	known := err == nil
	record, err := c.Pull(ctx, pinned.String(),
		client.WithResolver(resolved{resolver, p.target}), client.WithPlatformMatcher(platforms.Default()),
		client.WithDownloadLimiter(semaphore.NewWeighted(layersAtOnce)),
		client.WithPullSnapshotter(snapshotter), client.WithPullUnpack,
		client.WithUnpackOpts([]client.UnpackOpt{client.WithUnpackFetchAllContent()}),
		client.WithImageHandlerWrapper(func(h images.Handler) images.Handler { return s.checked(c, p, h) }))
	if err != nil {
		return explain(ctx, pulling, p.ref, err)
	}
	p.fresh = true
	if _, err := load(ctx, c, record.Metadata()); err != nil {
		return errors.Join(s.wrongPlatform(ctx, c, p, record), c.ImageService().Delete(ctx, pinned.String()))
	}
	if _, ok := p.ref.(reference.Digested); ok {
		return nil
	}
	if err := nameTarget(ctx, c, p.ref.String(), record.Target()); err != nil {
		return err
	}
	if known && before.Target.Digest == p.target.Digest {
		return nil // someone pulled it by its digest before, and it keeps that name
	}
	if err := c.ImageService().Delete(ctx, pinned.String()); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("name image %s: %w", familiarRef(p.ref), err)
	}
	return nil
}

// resolved is a resolver that knows what the pull's name means.
type resolved struct {
	remotes.ResolverWithOptions
	target ocispec.Descriptor
}

// Resolve implements remotes.Resolver.
func (r resolved) Resolve(_ context.Context, name string) (string, ocispec.Descriptor, error) {
	return name, r.target, nil
}

// whole reports whether the name stands already for what the registry has, with all of its parts.
func (s *Store) whole(ctx context.Context, c *client.Client, p *pull) bool {
	record, err := c.ImageService().Get(ctx, p.ref.String())
	if err != nil || record.Target.Digest != p.target.Digest {
		return false
	}
	img := client.NewImageWithPlatform(c, record, platforms.Default())
	unpacked, err := img.IsUnpacked(ctx, snapshotter)
	if err != nil || !unpacked {
		return false
	}
	_, _, _, missing, err := images.Check(ctx, metadata(c), record.Target, platforms.Default())
	return err == nil && len(missing) == 0
}

func (s *Store) wrongPlatform(ctx context.Context, c *client.Client, p *pull, record client.Image) error {
	text := fmt.Sprintf("image %s is not for this node's platform %s", familiarRef(p.ref), platforms.DefaultString())
	if list, err := images.Platforms(ctx, metadata(c), record.Target()); err == nil && len(list) > 0 {
		text += " but for " + platforms.Format(list[0])
	}
	return &registryError{text: text, kind: errdefs.ErrNotFound}
}

// Waiting is how many wait for pulls now.
func (s *Store) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.pulls {
		n += p.waiters
	}
	return n
}
