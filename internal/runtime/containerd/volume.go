package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/continuity/fs"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-swarm/skep/internal/runtime"
)

// anonymousLabel marks volumes without a name of the user's, as Docker does.
const anonymousLabel = "com.docker.volume.anonymous"

// volume makes a volume, fills a new one with what the image has at its place, and mounts it or a part of it. It notes the volume's name
// in point as soon as there is a volume.
func (set *mountSet) volume(ctx context.Context, m mount.Mount, point *runtime.MountPoint) (specs.Mount, error) {
	var none specs.Mount
	r, s := set.r, set.s
	if r.cfg.Volumes == nil {
		return none, runtime.Invalid("this node has no volumes")
	}
	options := mount.VolumeOptions{}
	if m.VolumeOptions != nil {
		options = *m.VolumeOptions
	}
	var driver map[string]string
	if d := options.DriverConfig; d != nil {
		if d.Name != "" && d.Name != "local" {
			return none, &runtime.Error{Kind: runtime.KindMount, Text: fmt.Sprintf("error looking up volume plugin %s: plugin %q not found", d.Name, d.Name)}
		}
		driver = d.Options
	}
	if options.Subpath != "" && !filepath.IsLocal(options.Subpath) {
		return none, runtime.Invalid("invalid mount config for type \"volume\": subpath must be a relative path within the volume")
	}
	name, labels := m.Source, options.Labels
	if name == "" {
		// Derived, so that preparing the same container again finds the same volume.
		sum := sha256.Sum256([]byte(s.ID + ":" + m.Target))
		name, point.Anonymous = hex.EncodeToString(sum[:]), true
		labels = map[string]string{anonymousLabel: ""}
		maps.Copy(labels, options.Labels)
	}
	dir, err := r.cfg.Volumes.Mount(ctx, s.ID, name, labels, driver)
	if err != nil {
		return none, &runtime.Error{Kind: runtime.KindMount, Text: fmt.Sprintf("create volume %s: %v", name, err), Err: err}
	}
	point.Name, point.Source = name, dir
	if !options.NoCopy {
		if err := r.fillVolume(ctx, s, set.img, path.Clean(m.Target), name, dir); err != nil {
			return none, fmt.Errorf("copy the image's files to volume %s: %w", name, err)
		}
	}
	if options.Subpath != "" {
		p := part{Volume: name, Dir: dir, Path: options.Subpath, At: r.partPoint(s.ID, len(set.parts))}
		f, err := p.open() // only to see that it is there: what it is then is seen when the container starts
		if err != nil {
			return none, err
		}
		_ = f.Close()
		set.parts = append(set.parts, p)
		dir = p.At
	}
	flags := []string{"rbind", "rprivate"}
	if m.ReadOnly {
		flags = append(flags, "ro")
	}
	return specs.Mount{Destination: path.Clean(m.Target), Type: "bind", Source: dir, Options: flags}, nil
}

// fillVolume copies what the image has at target into an empty volume, owner and mode of the directory included, so
// that a program that expects its data directory finds it as its image made it.
func (r *Runtime) fillVolume(ctx context.Context, s *runtime.Spec, img *image, target, name, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 || img.chain == "" {
		return err // an image's files need not be looked for
	}
	return r.images.view(ctx, img, "fill-"+s.ID[:16], func(root string) error {
		source, err := fs.RootPath(root, target)
		if err != nil {
			return nil // the image has nothing there
		}
		info, err := os.Stat(source)
		if err != nil || !info.IsDir() {
			return nil // the same
		}
		return r.cfg.Volumes.Fill(ctx, name, source)
	})
}
