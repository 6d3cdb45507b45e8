package images

import (
	"context"
	"fmt"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Tag gives the image that source stands for another name. It moves the name if it stands for another image, which
// then may be left without one.
func (s *Store) Tag(ctx context.Context, source, name string) error {
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return fmt.Errorf("invalid reference format: %q: %w", name, errdefs.ErrInvalidArgument)
	}
	if _, ok := ref.(reference.Digested); ok {
		return fmt.Errorf("refusing to create a tag with a digest reference: %w", errdefs.ErrInvalidArgument)
	}
	ref = reference.TagNameOnly(ref)
	e, err := find(ctx, c, source)
	if err != nil {
		return err
	}
	return nameTarget(ctx, c, ref.String(), e.target)
}

// nameTarget lets a canonical name with a tag stand for an image that is here.
func nameTarget(ctx context.Context, c *client.Client, name string, target ocispec.Descriptor) error {
	store := c.ImageService()
	if old, err := store.Get(ctx, name); err == nil && old.Target.Digest != target.Digest {
		if err := keepNameless(ctx, c, old); err != nil {
			return err
		}
	}
	record := images.Image{Name: name, Target: target}
	if _, err := store.Create(ctx, record); errdefs.IsAlreadyExists(err) {
		_, err = store.Update(ctx, record, "target")
		if err != nil {
			return fmt.Errorf("move tag %s: %w", familiar(record.Name), err)
		}
	} else if err != nil {
		return fmt.Errorf("tag image %s: %w", familiar(record.Name), err)
	}
	err := store.Delete(ctx, untagged+"@"+target.Digest.String())
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("tag image %s: %w", familiar(record.Name), err)
	}
	return nil
}

// keepNameless keeps an image that is about to lose a name, as Docker keeps it: without one.
func keepNameless(ctx context.Context, c *client.Client, record images.Image) error {
	same, err := c.ImageService().List(ctx, "target.digest=="+record.Target.Digest.String())
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	if len(same) > 1 {
		return nil
	}
	_, err = c.ImageService().Create(ctx, images.Image{Name: untagged + "@" + record.Target.Digest.String(), Target: record.Target})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("keep image %s without a name: %w", familiar(record.Name), err)
	}
	return nil
}

// Remove takes a name from an image, and with its last name the image. Named by its ID, it loses all its names, for
// which it must have one at most, or force. One that a container uses is refused with errdefs.ErrConflict, unless
// force is given and no such container runs.
func (s *Store) Remove(ctx context.Context, name string, force bool) ([]image.DeleteResponse, error) {
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	e, err := find(ctx, c, name)
	if err != nil {
		return nil, err
	}
	doomed := e.tags
	if !e.byID {
		ref, err := reference.ParseDockerRef(name)
		if err != nil {
			return nil, fmt.Errorf("invalid reference format: %q: %w", name, errdefs.ErrInvalidArgument)
		}
		doomed = matching(e.tags, ref)
	} else if len(e.named()) > 1 && !force {
		return nil, fmt.Errorf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories: %w",
			e.id.Encoded()[:12], errdefs.ErrConflict)
	}
	last := len(doomed) == len(e.tags)
	if last {
		if err := s.checkUnused(ctx, e, name, force); err != nil {
			return nil, err
		}
	}
	var out []image.DeleteResponse
	for _, record := range doomed {
		if err := c.ImageService().Delete(ctx, record.Name, images.SynchronousDelete()); err != nil && !errdefs.IsNotFound(err) {
			return out, fmt.Errorf("remove image %s: %w", familiar(record.Name), err)
		}
		if !isUntagged(record.Name) {
			out = append(out, image.DeleteResponse{Untagged: familiar(record.Name)})
		}
	}
	if last {
		out = append(out, image.DeleteResponse{Deleted: e.id.String()})
	}
	return out, nil
}

// matching returns the records that a name stands for.
func matching(tags []images.Image, ref reference.Named) []images.Image {
	var out []images.Image
	digested, _ := ref.(reference.Digested)
	for _, t := range tags {
		named, err := reference.ParseNormalizedNamed(t.Name)
		if t.Name == ref.String() || digested != nil && err == nil && named.Name() == ref.Name() && t.Target.Digest == digested.Digest() {
			out = append(out, t)
		}
	}
	return out
}

func (s *Store) checkUnused(ctx context.Context, e *entry, name string, force bool) error {
	uses, err := s.inUse(ctx)
	if err != nil {
		return err
	}
	for _, u := range uses {
		if !e.has(u) || force && !u.Running {
			continue
		}
		short := u.Container[:min(12, len(u.Container))]
		switch {
		case u.Running:
			return fmt.Errorf("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s: %w",
				shortName(e, name), short, errdefs.ErrConflict)
		case e.byID:
			return fmt.Errorf("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s: %w",
				e.id.Encoded()[:12], short, errdefs.ErrConflict)
		}
		return fmt.Errorf("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s: %w",
			name, short, e.id.Encoded()[:12], errdefs.ErrConflict)
	}
	return nil
}

func shortName(e *entry, name string) string {
	if e.byID {
		return e.id.Encoded()[:12]
	}
	return familiar(name)
}
