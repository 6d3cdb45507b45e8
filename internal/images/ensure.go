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

// Ensure makes a task's image usable on this node: name is the image of its spec, pinned the digest that the name meant
// when the service was made ("" when nobody knew), auth the service's credentials as JSON (a registry.AuthConfig; empty
// for none). An image that is here under its digest is used without asking anyone. The error is for the task's status.
func (s *Store) Ensure(ctx context.Context, name, pinned string, auth []byte) error {
	c, ctx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, "sha256:") && pinned == "" {
		_, err := s.Resolve(ctx, name) // an ID is no name that a registry knows
		return err
	}
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return fmt.Errorf("invalid reference format: %q: %w", name, errdefs.ErrInvalidArgument)
	}
	if d, ok := ref.(reference.Digested); ok && pinned == "" {
		pinned = d.Digest().String()
	}
	if pinned != "" {
		same, err := c.ImageService().List(ctx, "target.digest=="+pinned)
		if err != nil {
			return fmt.Errorf("look for image %s: %w", pinned, err)
		}
		if len(same) > 0 {
			return nil
		}
		ref, err = reference.ParseNormalizedNamed(reference.TrimNamed(ref).Name() + "@" + pinned)
		if err != nil {
			return fmt.Errorf("image %s with digest %q: %w", name, pinned, errdefs.ErrInvalidArgument)
		}
	} else if s.preferLocal {
		if _, err := s.Resolve(ctx, name); err == nil {
			return nil
		}
	}
	var credentials registry.AuthConfig
	if len(auth) > 0 {
		if err := json.Unmarshal(auth, &credentials); err != nil {
			return errors.New("the service's registry credentials cannot be read: give them again by \"docker service update --with-registry-auth\"")
		}
	}
	_, err = s.Pull(ctx, ref.String(), credentials, nil)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if pinned == "" {
		if _, here := s.Resolve(ctx, name); here == nil {
			return nil // nobody knows of a newer one
		}
	}
	shown := reference.FamiliarString(ref)
	if errdefs.IsNotFound(err) {
		return &registryError{text: fmt.Sprintf("No such image: %s (%v)", shown, err), kind: errdefs.ErrNotFound}
	}
	return fmt.Errorf("pull of %s failed: %w", shown, err)
}
