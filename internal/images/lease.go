package images

import (
	"context"
	"fmt"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/opencontainers/go-digest"
)

const (
	// pullLabel names, on a lease, the image whose parts it keeps.
	pullLabel = "skep.pull"
	// leaseLife is how long the parts of a pull that failed are kept for the next one, and the bound of one pull.
	leaseLife = 24 * time.Hour
)

// hold protects what a pull fetches from the garbage collector, together with what an earlier pull of the same image left
// when it failed or the daemon was killed. release gives it back and is told how the pull ended: after a success the image's
// name protects all, after a failure the parts stay for the next pull. On a full disk they go at once.
func hold(ctx context.Context, c *client.Client, name string) (held context.Context, release func(error) error, err error) {
	m := c.LeasesService()
	label := digest.FromString(name).Encoded()[:32]
	earlier, err := m.List(ctx, fmt.Sprintf("labels.%q==%s", pullLabel, label))
	if err != nil {
		return nil, nil, fmt.Errorf("list leases: %w", err)
	}
	lease, err := m.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseLife), leases.WithLabels(map[string]string{pullLabel: label}))
	if err != nil {
		return nil, nil, fmt.Errorf("make a lease: %w", err)
	}
	for _, old := range earlier {
		if err := adopt(ctx, m, old, lease); err != nil {
			return nil, nil, err
		}
	}
	release = func(outcome error) error {
		ctx := context.WithoutCancel(ctx)
		switch {
		case outcome == nil:
		case isFull(outcome):
			return m.Delete(ctx, lease, leases.SynchronousDelete)
		default:
			if list, err := m.ListResources(ctx, lease); err != nil || len(list) > 0 {
				return err
			}
		}
		return m.Delete(ctx, lease)
	}
	return leases.WithLease(ctx, lease.ID), release, nil
}

// adopt moves to a lease what an old one keeps.
func adopt(ctx context.Context, m leases.Manager, old, lease leases.Lease) error {
	list, err := m.ListResources(ctx, old)
	if err != nil {
		return fmt.Errorf("list what lease %s keeps: %w", old.ID, err)
	}
	for _, r := range list {
		// One that is gone has nothing to keep.
		_ = m.AddResource(ctx, lease, r)
	}
	if err := m.Delete(ctx, old); err != nil {
		return fmt.Errorf("delete lease %s: %w", old.ID, err)
	}
	return nil
}
