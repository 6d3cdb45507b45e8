package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
)

// Has reports whether a task's image can be used without asking a registry: name is the image of its spec, pinned the digest
// that the name meant when the service was made ("" when nobody knew).
func (s *Store) Has(ctx context.Context, name, pinned string) (bool, error) {
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return false, err
	}
	if strings.HasPrefix(name, "sha256:") && pinned == "" || pinned == "" && s.preferLocal {
		_, err := s.Resolve(ctx, name)
		return err == nil, nil // what is wrong with it, Ensure says
	}
	if ref, err := reference.ParseDockerRef(name); err == nil && pinned == "" {
		if d, ok := ref.(reference.Digested); ok {
			pinned = d.Digest().String()
		}
	}
	if pinned == "" {
		return false, nil // the registry may have a newer one
	}
	same, err := c.ImageService().List(ctx, "target.digest=="+pinned)
	if err != nil {
		return false, fmt.Errorf("look for image %s: %w", pinned, err)
	}
	return len(same) > 0, nil
}

// Ensure makes a task's image usable on this node: an image that Has knows is used as it is, others are pulled. auth are the service's
// credentials as JSON (a registry.AuthConfig; empty for none). An image whose digest nobody knew is asked for each
// time, and used as it is here when its registry does not give it. The error is for the task's status.
func (s *Store) Ensure(ctx context.Context, name, pinned string, auth []byte) error {
	if here, err := s.Has(ctx, name, pinned); here || err != nil {
		return err
	}
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return fmt.Errorf("invalid reference format: %q: %w", name, errdefs.ErrInvalidArgument)
	}
	if pinned != "" {
		ref, err = reference.ParseNormalizedNamed(reference.TrimNamed(ref).Name() + "@" + pinned)
		if err != nil {
			return fmt.Errorf("image %s with digest %q: %w", name, pinned, errdefs.ErrInvalidArgument)
		}
	}
	var credentials registry.AuthConfig
	if len(auth) > 0 {
		if err := json.Unmarshal(auth, &credentials); err != nil {
			return errors.New("the service's registry credentials cannot be read: give them again by \"docker service update --with-registry-auth\"")
		}
	}
	if !strings.HasPrefix(name, "sha256:") { // an ID is no name that a registry knows
		_, err = s.Pull(ctx, ref.String(), credentials, nil)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if pinned == "" {
			if _, here := s.Resolve(ctx, name); here == nil {
				return nil // nobody knows of a newer one
			}
		}
		err = fmt.Errorf("pull failed: %w", err)
	} else {
		err = errors.New("it is not on this node")
	}
	return &registryError{text: fmt.Sprintf("No such image: %s (%v)", reference.FamiliarString(ref), err), kind: errdefs.ErrNotFound}
}
