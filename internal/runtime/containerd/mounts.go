package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/continuity/fs"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/runtime"
)

// shmSize is the size of /dev/shm in every container, as Docker's default.
const shmSize = "size=67108864"

// systemMounts are the file systems of the kernel that every container sees.
func systemMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", shmSize}},
	}
}

// madeVolume is a volume that a container mounts; an anonymous one goes with it. The zero value is none.
type madeVolume struct {
	name      string
	anonymous bool
}

// mounts makes the volumes and checks the binds of a task, and returns all mounts of its container, parents first, with
// the volumes among them: those of the task's mounts in their order, then the image's. With an error it
// returns the volumes made so far.
func (r *Runtime) mounts(ctx context.Context, s *runtime.Spec, img *image) ([]specs.Mount, []madeVolume, error) {
	var user []specs.Mount
	var made []madeVolume
	taken := make(map[string]bool)
	for _, m := range s.Task.ContainerSpec.Mounts {
		if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
			return nil, made, runtime.Invalid("invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", m.Type, m.Target)
		}
		target := path.Clean(m.Target)
		if taken[target] {
			return nil, made, runtime.Invalid("Duplicate mount point: %s", m.Target)
		}
		taken[target] = true
		mounted, volume, err := r.userMount(ctx, s, img, m)
		if volume.name != "" {
			made = append(made, volume)
		}
		if err != nil {
			return nil, made, err
		}
		user = append(user, mounted)
	}
	for _, target := range declaredVolumes(img) {
		if taken[target] {
			continue
		}
		m := mount.Mount{Type: mount.TypeVolume, Target: target}
		mounted, volume, err := r.userMount(ctx, s, img, m)
		if volume.name != "" {
			made = append(made, volume)
		}
		if err != nil {
			return nil, made, err
		}
		user = append(user, mounted)
		taken[target] = true
	}
	for _, m := range s.Mounts {
		if taken[path.Clean(m.Target)] {
			return nil, made, runtime.Invalid("Duplicate mount point: %s", m.Target)
		}
	}
	user = append(user, fileMounts(s, taken)...)
	if wantsInit(s.Task.ContainerSpec) {
		program, err := filepath.EvalSymlinks(r.cfg.Shim)
		if err != nil {
			return nil, made, runtime.Invalid("this node has no init program for containers: %v", err)
		}
		user = append(user, specs.Mount{Destination: initPath, Type: "bind", Source: program, Options: []string{"bind", "ro", "rprivate"}})
	}
	slices.SortStableFunc(user, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	system := slices.DeleteFunc(systemMounts(), func(m specs.Mount) bool { return taken[m.Destination] })
	return append(system, user...), made, nil
}

// declaredVolumes are the paths for which an image asks for a volume, in order.
func declaredVolumes(img *image) []string {
	var out []string
	for v := range img.config.Volumes {
		if v = path.Clean(v); path.IsAbs(v) && v != "/" {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}

// fileMounts are the files the node provides. A user's own mount at the same place wins.
func fileMounts(s *runtime.Spec, taken map[string]bool) []specs.Mount {
	var out []specs.Mount
	for _, f := range []struct{ source, target string }{
		{s.ResolvConf, "/etc/resolv.conf"}, {s.HostsFile, "/etc/hosts"}, {s.HostnameFile, "/etc/hostname"},
	} {
		if f.source != "" && !taken[f.target] {
			out = append(out, specs.Mount{Destination: f.target, Type: "bind", Source: f.source, Options: []string{"rbind", "rprivate"}})
		}
	}
	for _, m := range s.Mounts {
		// Not noexec: a config may well be the script that a container runs.
		options := []string{"rbind", "rprivate", "nosuid", "nodev"}
		if m.ReadOnly {
			options = append(options, "ro")
		}
		out = append(out, specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: options})
	}
	return out
}

// userMount translates one mount of a task. It returns the volume also with an error that came after its making.
func (r *Runtime) userMount(ctx context.Context, s *runtime.Spec, img *image, m mount.Mount) (specs.Mount, madeVolume, error) {
	switch m.Type {
	case mount.TypeBind:
		mounted, err := bindMount(m)
		return mounted, madeVolume{}, err
	case mount.TypeTmpfs:
		return tmpfsMount(m), madeVolume{}, nil
	case mount.TypeVolume:
		return r.volumeMount(ctx, s, img, m)
	}
	return specs.Mount{}, madeVolume{}, runtime.Invalid("mount type %q is not supported on this node", m.Type)
}

func bindMount(m mount.Mount) (specs.Mount, error) {
	if !filepath.IsAbs(m.Source) {
		return specs.Mount{}, runtime.Invalid("invalid mount config for type \"bind\": invalid mount path: '%s' mount path must be absolute", m.Source)
	}
	bind := mount.BindOptions{}
	if m.BindOptions != nil {
		bind = *m.BindOptions
	}
	if _, err := os.Stat(m.Source); err != nil {
		if !errors.Is(err, iofs.ErrNotExist) {
			return specs.Mount{}, fmt.Errorf("look at bind source %s: %w", m.Source, err)
		}
		if !bind.CreateMountpoint {
			return specs.Mount{}, runtime.BindSourceMissing(m.Source)
		}
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			return specs.Mount{}, fmt.Errorf("make bind source %s: %w", m.Source, err)
		}
	}
	kind := "rbind"
	if bind.NonRecursive {
		kind = "bind"
	}
	propagation := string(mount.PropagationRPrivate)
	if bind.Propagation != "" {
		if !slices.Contains(mount.Propagations, bind.Propagation) {
			return specs.Mount{}, runtime.Invalid("invalid propagation mode %q", bind.Propagation)
		}
		propagation = string(bind.Propagation)
	}
	options := []string{kind, propagation}
	if m.ReadOnly {
		options = append(options, "ro")
		if bind.ReadOnlyForceRecursive {
			options = append(options, "rro")
		}
	}
	return specs.Mount{Destination: path.Clean(m.Target), Type: "bind", Source: m.Source, Options: options}, nil
}

func tmpfsMount(m mount.Mount) specs.Mount {
	options := []string{"noexec", "nosuid", "nodev", "rprivate"}
	if m.ReadOnly {
		options = append(options, "ro")
	}
	if t := m.TmpfsOptions; t != nil {
		if t.SizeBytes > 0 {
			options = append(options, "size="+strconv.FormatInt(t.SizeBytes, 10))
		}
		if t.Mode != 0 {
			options = append(options, "mode="+strconv.FormatUint(uint64(t.Mode), 8))
		}
		for _, o := range t.Options {
			if len(o) == 1 && o[0] == "exec" {
				options = slices.DeleteFunc(options, func(s string) bool { return s == "noexec" })
			}
			options = append(options, strings.Join(o, "="))
		}
	}
	return specs.Mount{Destination: path.Clean(m.Target), Type: "tmpfs", Source: "tmpfs", Options: options}
}

// volumeMount makes the volume, fills a new one with what the image has at its place, and mounts it.
func (r *Runtime) volumeMount(ctx context.Context, s *runtime.Spec, img *image, m mount.Mount) (specs.Mount, madeVolume, error) {
	var none specs.Mount
	if r.cfg.Volumes == nil {
		return none, madeVolume{}, runtime.Invalid("this node has no volumes")
	}
	options := mount.VolumeOptions{}
	if m.VolumeOptions != nil {
		options = *m.VolumeOptions
	}
	if d := options.DriverConfig; d != nil && d.Name != "" && d.Name != "local" {
		return none, madeVolume{}, &runtime.Error{Kind: runtime.KindMount, Text: fmt.Sprintf("error looking up volume plugin %s: plugin %q not found", d.Name, d.Name)}
	}
	volume := madeVolume{name: m.Source}
	if volume.name == "" {
		// Derived, so that preparing the same container again finds the same volume.
		sum := sha256.Sum256([]byte(s.ID + ":" + m.Target))
		volume = madeVolume{hex.EncodeToString(sum[:]), true}
	}
	dir, err := r.cfg.Volumes.Mountpoint(ctx, volume.name, options.Labels)
	if err != nil {
		return none, madeVolume{}, &runtime.Error{Kind: runtime.KindMount, Text: fmt.Sprintf("create volume %s: %v", volume.name, err), Err: err}
	}
	if !options.NoCopy {
		if err := r.fillVolume(ctx, s, img, path.Clean(m.Target), dir); err != nil {
			return none, volume, fmt.Errorf("copy the image's files to volume %s: %w", volume.name, err)
		}
	}
	if options.Subpath != "" {
		if dir, err = fs.RootPath(dir, options.Subpath); err != nil {
			return none, volume, fmt.Errorf("find %s in volume %s: %w", options.Subpath, volume.name, err)
		}
	}
	flags := []string{"rbind", "rprivate"}
	if m.ReadOnly {
		flags = append(flags, "ro")
	}
	return specs.Mount{Destination: path.Clean(m.Target), Type: "bind", Source: dir, Options: flags}, volume, nil
}

// fillVolume copies what the image has at target into an empty volume, owner and mode of the directory included, so
// that a program that expects its data directory finds it as its image made it.
func (r *Runtime) fillVolume(ctx context.Context, s *runtime.Spec, img *image, target, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 || img.chain == "" {
		return err
	}
	return r.images.view(ctx, img, "fill-"+s.ID[:16], func(root string) error {
		source, err := fs.RootPath(root, target)
		if err != nil {
			return nil //nolint:nilerr // the image has nothing there
		}
		info, err := os.Stat(source)
		if err != nil || !info.IsDir() {
			return nil //nolint:nilerr // the same
		}
		return copyWhole(dir, source)
	})
}

// copyWhole fills a directory at once: whoever is interrupted leaves it empty, to be filled by the next.
func copyWhole(dir, source string) error {
	part, err := os.MkdirTemp(filepath.Dir(dir), ".fill-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(part)
	if err := fs.CopyDir(part, source); err != nil {
		return err
	}
	// Not os.Rename, which refuses to replace a directory even if it is empty.
	if err := unix.Rename(part, dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return err // another task that filled it meanwhile was as good
	}
	return nil
}
