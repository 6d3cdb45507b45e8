package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	iofs "io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/continuity/fs"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/mountinfo"
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

// mounts makes the volumes and checks the binds of a task, and returns all mounts of its container, parents first, with
// those that people asked for: the task's in their order, then the image's volumes. With an error it returns those
// made so far.
func (r *Runtime) mounts(ctx context.Context, s *runtime.Spec, img *image) ([]specs.Mount, []runtime.MountPoint, error) {
	var user []specs.Mount
	var made []runtime.MountPoint
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
		mounted, point, err := r.userMount(ctx, s, img, m)
		if err == nil || point.Name != "" {
			made = append(made, point)
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
		mounted, point, err := r.userMount(ctx, s, img, m)
		if err == nil || point.Name != "" {
			made = append(made, point)
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
func (r *Runtime) userMount(ctx context.Context, s *runtime.Spec, img *image, m mount.Mount) (specs.Mount, runtime.MountPoint, error) {
	point := runtime.MountPoint{Type: m.Type, Source: m.Source, Target: path.Clean(m.Target), ReadOnly: m.ReadOnly}
	var mounted specs.Mount
	var err error
	switch m.Type {
	case mount.TypeBind:
		mounted, err = bindMount(m)
		if err == nil {
			point.Propagation = mounted.Options[1]
		}
	case mount.TypeTmpfs:
		mounted, point.Source = tmpfsMount(m), ""
	case mount.TypeVolume:
		mounted, err = r.volumeMount(ctx, s, img, m, &point)
	default:
		err = runtime.Invalid("mount type %q is not supported on this node", m.Type)
	}
	return mounted, point, err
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

// anonymousLabel marks volumes without a name of the user's, as Docker does.
const anonymousLabel = "com.docker.volume.anonymous"

// volumeMount makes the volume, fills a new one with what the image has at its place, and mounts it. It notes the volume's name
// in point as soon as there is a volume.
func (r *Runtime) volumeMount(ctx context.Context, s *runtime.Spec, img *image, m mount.Mount, point *runtime.MountPoint) (specs.Mount, error) {
	var none specs.Mount
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
		if err := r.fillVolume(ctx, s, img, path.Clean(m.Target), dir); err != nil {
			return none, fmt.Errorf("copy the image's files to volume %s: %w", name, err)
		}
	}
	if options.Subpath != "" {
		if dir, err = subpath(dir, name, options.Subpath); err != nil {
			return none, err
		}
	}
	flags := []string{"rbind", "rprivate"}
	if m.ReadOnly {
		flags = append(flags, "ro")
	}
	return specs.Mount{Destination: path.Clean(m.Target), Type: "bind", Source: dir, Options: flags}, nil
}

// subpath is a place in a volume, which no symbolic link in it leads out of.
func subpath(dir, volume, rel string) (string, error) {
	at, err := fs.RootPath(dir, rel)
	if err == nil {
		_, err = os.Lstat(at)
	}
	if errors.Is(err, iofs.ErrNotExist) {
		return "", &runtime.Error{Kind: runtime.KindMount, Text: fmt.Sprintf("cannot access path %s: there is nothing of that name in volume %s", rel, volume), Err: err}
	}
	if err != nil {
		return "", fmt.Errorf("find %s in volume %s: %w", rel, volume, err)
	}
	return at, nil
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

// copyWhole fills an empty directory: whoever is interrupted while copying leaves it empty, to be filled by the next. The directory
// stays the same one, for other containers may have it mounted already: in one that is replaced they could make no file any more.
// Only what is mounted at the directory has to be filled piece by piece.
func copyWhole(dir, source string) error {
	if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
		if err == nil {
			err = fs.CopyDir(dir, source)
		}
		return err
	}
	part, err := os.MkdirTemp(filepath.Dir(dir), ".fill-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(part)
	if err := fs.CopyDir(part, source); err != nil {
		return err
	}
	entries, err := os.ReadDir(part)
	if err != nil {
		return err
	}
	if now, err := os.ReadDir(dir); err != nil || len(now) > 0 {
		return err // somebody wrote to it meanwhile: it is not new any more
	}
	for _, e := range entries {
		from, to := filepath.Join(part, e.Name()), filepath.Join(dir, e.Name())
		if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
	}
	var like unix.Stat_t
	if err := unix.Stat(part, &like); err != nil {
		return &os.PathError{Op: "stat", Path: part, Err: err}
	}
	return errors.Join(os.Chown(dir, int(like.Uid), int(like.Gid)), unix.Chmod(dir, like.Mode&0o7777))
}
