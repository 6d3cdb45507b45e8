package containerd

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

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

// mountSet is what is mounted in a container.
type mountSet struct {
	r   *Runtime
	s   *runtime.Spec
	img *image
	// points are those that people asked for, parts what they mount of volumes.
	points []runtime.MountPoint
	parts  []part
}

// make makes the volumes and checks the binds of a task, and returns all mounts of its container, parents first. The points are the
// task's in their order, then the image's volumes; after an error, those made so far.
func (set *mountSet) make(ctx context.Context) ([]specs.Mount, error) {
	s, r := set.s, set.r
	var user []specs.Mount
	taken := make(map[string]bool)
	for _, m := range s.Task.ContainerSpec.Mounts {
		if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
			return nil, runtime.Invalid("invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", m.Type, m.Target)
		}
		target := path.Clean(m.Target)
		if taken[target] {
			return nil, runtime.Invalid("Duplicate mount point: %s", m.Target)
		}
		taken[target] = true
		mounted, err := set.add(ctx, m)
		if err != nil {
			return nil, err
		}
		user = append(user, mounted)
	}
	for _, target := range declaredVolumes(set.img) {
		if taken[target] {
			continue
		}
		mounted, err := set.add(ctx, mount.Mount{Type: mount.TypeVolume, Target: target})
		if err != nil {
			return nil, err
		}
		user = append(user, mounted)
		taken[target] = true
	}
	for _, m := range s.Mounts {
		if taken[path.Clean(m.Target)] {
			return nil, runtime.Invalid("Duplicate mount point: %s", m.Target)
		}
	}
	user = append(user, fileMounts(s, taken)...)
	if wantsInit(s.Task.ContainerSpec) {
		program, err := filepath.EvalSymlinks(r.cfg.Shim)
		if err != nil {
			return nil, runtime.Invalid("this node has no init program for containers: %v", err)
		}
		user = append(user, specs.Mount{Destination: initPath, Type: "bind", Source: program, Options: []string{"bind", "ro", "rprivate"}})
	}
	slices.SortStableFunc(user, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	system := slices.DeleteFunc(systemMounts(), func(m specs.Mount) bool { return taken[m.Destination] })
	return append(system, user...), nil
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

// add translates one mount of a task. The volume is among the points also after an error that came after its making.
func (set *mountSet) add(ctx context.Context, m mount.Mount) (specs.Mount, error) {
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
		mounted, err = set.volume(ctx, m, &point)
	default:
		err = runtime.Invalid("mount type %q is not supported on this node", m.Type)
	}
	if err == nil || point.Name != "" {
		set.points = append(set.points, point)
	}
	return mounted, err
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
