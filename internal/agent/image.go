package agent

import (
	"context"
	"errors"

	"github.com/skep-swarm/skep/internal/runtime"
	"github.com/skep-swarm/skep/internal/wire/pb"
	"google.golang.org/protobuf/proto"
)

// Images gets the images of tasks; *images.Store is one. Its methods may be called concurrently and repeated.
type Images interface {
	// Has reports whether a task's image can be used without asking anyone: name is that of its spec, digest what it was
	// pinned to, or "".
	Has(ctx context.Context, name, digest string) (bool, error)
	// Ensure gets it from its registry unless it is here. auth are credentials as JSON, or empty.
	Ensure(ctx context.Context, name, digest string, auth []byte) error
}

var errNoAuthYet = errors.New("waits for the credentials of the image's registry, which a manager has to send again")

// ensureImage makes the task's image usable. It takes no slot: most of its time is the network's.
func (c *controller) ensureImage(ctx context.Context, m *pb.Task, tpl *template) error {
	store := c.a.cfg.Images
	if store == nil || tpl.spec.ContainerSpec == nil {
		return nil
	}
	name, digest := tpl.spec.ContainerSpec.Image, tpl.msg.ImageDigest
	here, err := store.Has(ctx, name, digest)
	switch {
	case err != nil:
		return temporary{err}
	case here:
		return nil
	case m.WithRegistryAuth && len(m.RegistryAuth) == 0:
		return temporary{errNoAuthYet}
	}
	if err := store.Ensure(ctx, name, digest, m.RegistryAuth); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return &runtime.Error{Kind: runtime.KindImageMissing, Text: err.Error(), Err: err}
	}
	return nil
}

// forDisk is a task as it may be written down: without credentials.
func forDisk(m *pb.Task) *pb.Task {
	if len(m.RegistryAuth) == 0 {
		return m
	}
	m = proto.CloneOf(m)
	m.RegistryAuth = nil
	return m
}
