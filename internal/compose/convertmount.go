package compose

import (
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/mount"
)

func (c *converter) mounts(name string, m dict) []mount.Mount {
	out := make([]mount.Mount, 0, len(list(m, "volumes")))
	for i, v := range list(m, "volumes") {
		long, _ := v.(dict)
		mnt, err := c.mount(long)
		if err != nil {
			c.fail(name, []string{"volumes", fmt.Sprint(i)}, "volume %s: %v", str(long, "target"), err)
		}
		out = append(out, mnt)
	}
	has := func(target string) bool {
		return slices.ContainsFunc(out, func(x mount.Mount) bool { return x.Target == target })
	}
	for i, v := range list(m, "tmpfs") {
		mnt, unknown := tmpfsMount(text(v))
		if has(mnt.Target) {
			continue
		}
		for _, o := range unknown {
			c.l.warn(c.m.at("services", name, "tmpfs", fmt.Sprint(i)), name, "tmpfs", "option %s is ignored: a mount of a service has no such option", o)
		}
		out = append(out, mnt)
	}
	if size := m["shm_size"]; size != nil && !has("/dev/shm") {
		n, err := parseSize(size)
		if err != nil {
			c.fail(name, []string{"shm_size"}, "%q is no size: write for example 256M", text(size))
		}
		out = append(out, mount.Mount{Type: mount.TypeTmpfs, Target: "/dev/shm", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: n}})
	}
	return out
}

func (c *converter) mount(m dict) (mount.Mount, error) {
	kind := str(m, "type")
	source := str(m, "source")
	out := mount.Mount{
		Type: mount.Type(kind), Target: str(m, "target"), ReadOnly: flag(m, "read_only"), Source: source,
		Consistency: mount.Consistency(str(m, "consistency")),
	}
	if kind == "" {
		kind = "volume"
	}
	options := map[string]string{"volume": "volume", "bind": "bind", "npipe": "bind", "tmpfs": "tmpfs", "image": "image", "cluster": "cluster"}
	own, known := options[kind]
	if !known {
		return out, fmt.Errorf("type must be volume, bind, tmpfs, image, npipe or cluster, not %q", kind)
	}
	for _, o := range []string{"volume", "bind", "tmpfs", "image", "cluster"} {
		if o != own && m[o] != nil {
			return out, fmt.Errorf("%s options mean nothing for type %s: remove them", o, kind)
		}
	}
	switch {
	case kind == "tmpfs" && source != "":
		return out, fmt.Errorf("a tmpfs has no source: remove it")
	case kind != "tmpfs" && kind != "volume" && source == "":
		return out, fmt.Errorf("type %s needs a source", kind)
	}
	switch kind {
	case "volume":
		c.namedVolume(m, &out)
	case "cluster":
		out.ClusterOptions = &mount.ClusterOptions{}
		if !strings.HasPrefix(source, "group:") {
			out.Source = c.named("volumes", source)
		}
	case "bind", "npipe":
		out.BindOptions = bindOptions(sub(m, "bind"))
	case "tmpfs":
		if t := sub(m, "tmpfs"); t != nil {
			size, _ := number(t, "size")
			mode, _ := number(t, "mode")
			out.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: size, Mode: fs.FileMode(mode)}
		}
	case "image":
		if i := sub(m, "image"); i != nil {
			out.ImageOptions = &mount.ImageOptions{Subpath: str(i, "subpath")}
		}
	}
	return out, nil
}

func bindOptions(m dict) *mount.BindOptions {
	if m == nil {
		return nil
	}
	out := &mount.BindOptions{Propagation: mount.Propagation(str(m, "propagation")), CreateMountpoint: flag(m, "create_host_path")}
	switch str(m, "recursive") {
	case "disabled":
		out.NonRecursive = true
	case "writable":
		out.ReadOnlyNonRecursive = true
	case "readonly":
		out.ReadOnlyForceRecursive = true
	}
	return out
}

// named is the scoped name of a network, volume, secret or config of the file.
func (c *converter) named(section, key string) string {
	if n := str(sub(sub(c.m.value, section), key), "name"); n != "" {
		return n
	}
	return c.scope.name(key)
}

func (c *converter) namedVolume(m dict, out *mount.Mount) {
	if out.Source == "" {
		return // anonymous
	}
	v := sub(sub(c.m.value, "volumes"), out.Source)
	out.Source = c.named("volumes", out.Source)
	own := sub(m, "volume")
	out.VolumeOptions = &mount.VolumeOptions{NoCopy: flag(own, "nocopy"), Subpath: str(own, "subpath")}
	if flag(v, "external") {
		return
	}
	out.VolumeOptions.Labels = c.scope.labels(textMap(v, "labels"))
	if driver, opts := str(v, "driver"), textMap(v, "driver_opts"); driver != "" || opts != nil {
		out.VolumeOptions.DriverConfig = &mount.Driver{Name: driver, Options: opts}
	}
}

// volumes are the named volumes that services mount.
func (c *converter) volumes(services dict) []Volume {
	used := map[string]bool{}
	for _, s := range services {
		for _, v := range list(s.(dict), "volumes") {
			m, _ := v.(dict)
			if kind := str(m, "type"); kind == "volume" || kind == "" {
				used[str(m, "source")] = true
			}
		}
	}
	var out []Volume
	for key, v := range sub(c.m.value, "volumes") {
		m, _ := v.(dict)
		if !used[key] {
			continue
		}
		vol := Volume{Name: c.named("volumes", key), External: flag(m, "external")}
		if !vol.External {
			vol.Driver, vol.DriverOpts, vol.Labels = str(m, "driver"), textMap(m, "driver_opts"), c.scope.labels(textMap(m, "labels"))
		}
		out = append(out, vol)
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// tmpfsMount reads TARGET[:OPTION,…] and says which options it has no place for.
func tmpfsMount(spec string) (out mount.Mount, unknown []string) {
	target, options, _ := strings.Cut(spec, ":")
	out = mount.Mount{Type: mount.TypeTmpfs, Target: target}
	if options == "" {
		return out, nil
	}
	out.TmpfsOptions = &mount.TmpfsOptions{}
	for o := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "size":
			n, err := parseSize(value)
			if err != nil {
				unknown = append(unknown, o)
			}
			out.TmpfsOptions.SizeBytes = n
		case "mode":
			n, err := strconv.ParseUint(value, 8, 32)
			if err != nil {
				unknown = append(unknown, o)
			}
			out.TmpfsOptions.Mode = fs.FileMode(n)
		case "ro":
			out.ReadOnly = true
		case "rw", "":
		case "exec", "noexec":
			out.TmpfsOptions.Options = append(out.TmpfsOptions.Options, []string{key})
		default:
			unknown = append(unknown, o)
		}
	}
	return out, unknown
}
