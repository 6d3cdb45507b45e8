package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skep-swarm/skep/internal/runtime"
)

// Root implements runtime.Controller.
func (c *controller) Root(ctx context.Context) (*os.File, func(), error) {
	u, err := c.find(ctx)
	if err != nil {
		return nil, nil, err
	}
	status, ok := u.describe()
	if !ok {
		return nil, nil, c.notFound()
	}
	if status.State == runtime.Running {
		dir, err := u.root(c.r.namespaced(ctx), status.PID)
		if err == nil {
			return dir, func() { _ = dir.Close() }, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, nil, fmt.Errorf("open the file system of container %s: %w", c.id[:12], err)
		}
		// It has ended meanwhile.
	}
	unmount, err := c.visitVolumes(ctx, status.Mounts)
	if err != nil {
		return nil, nil, err
	}
	dir, release, err := c.mountRoot(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, unmount())
	}
	return dir, func() {
		release()
		if err := unmount(); err != nil {
			c.r.cfg.Log.Warn("unmount the volumes of an ended container", "container", c.id, "err", err)
		}
	}, nil
}

// visitVolumes mounts the volumes of a container that ended, as a user of its own: what is written to the directory below a volume's
// device would be out of sight when the device is mounted again.
func (c *controller) visitVolumes(ctx context.Context, mounts []runtime.MountPoint) (unmount func() error, err error) {
	visitor := fmt.Sprintf("%s (copying, %d)", c.id, c.r.visits.Add(1))
	var mounted []string
	unmount = func() error {
		var errs []error
		for _, name := range mounted {
			errs = append(errs, c.r.cfg.Volumes.Unmount(context.WithoutCancel(ctx), visitor, name))
		}
		return errors.Join(errs...)
	}
	for _, m := range mounts {
		if m.Name == "" || c.r.cfg.Volumes == nil {
			continue
		}
		if _, err := c.r.cfg.Volumes.Mount(ctx, visitor, m.Name, nil, nil); err != nil {
			return nil, errors.Join(fmt.Errorf("mount volume %s of container %s: %w", m.Name, c.id[:12], err), unmount())
		}
		mounted = append(mounted, m.Name)
	}
	return unmount, nil
}

// root opens the root of the container's first process. The process is held first and asked for afterwards, so that the root is
// never that of another process which took over the number.
func (u *unit) root(ctx context.Context, pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, os.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if held, err := u.holds(ctx, pid); err != nil || !held {
		return nil, errors.Join(err, os.ErrNotExist)
	}
	dir, err := unix.Open(filepath.Join("/proc", strconv.Itoa(pid), "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.ErrNotExist
	}
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil {
		_ = unix.Close(dir)
		return nil, os.ErrNotExist
	}
	return os.NewFile(uintptr(dir), "/"), nil
}

// files is how a container's file system is mounted, and its spec, which says what is mounted in it.
func (c *controller) files(ctx context.Context) (mount.Mount, *specs.Spec, error) {
	ctx = c.r.namespaced(ctx)
	layers, err := c.r.client.SnapshotService(snapshotter).Mounts(ctx, c.id)
	if err != nil {
		return mount.Mount{}, nil, fmt.Errorf("find the file system of container %s: %w", c.id[:12], err)
	}
	if len(layers) != 1 {
		return mount.Mount{}, nil, fmt.Errorf("the file system of container %s is made of %d mounts, one is understood", c.id[:12], len(layers))
	}
	container, err := c.r.client.LoadContainer(ctx, c.id)
	if err != nil {
		return mount.Mount{}, nil, fmt.Errorf("find container %s: %w", c.id[:12], err)
	}
	spec, err := container.Spec(ctx)
	if err != nil {
		return mount.Mount{}, nil, fmt.Errorf("read the spec of container %s: %w", c.id[:12], err)
	}
	return layers[0], spec, nil
}

// Layers implements runtime.Controller.
func (c *controller) Layers(ctx context.Context) (runtime.Layers, error) {
	u, err := c.find(ctx)
	if err != nil {
		return runtime.Layers{}, err
	}
	if _, ok := u.describe(); !ok {
		return runtime.Layers{}, c.notFound()
	}
	overlay, spec, err := c.files(ctx)
	if err != nil {
		return runtime.Layers{}, err
	}
	var out runtime.Layers
	for _, m := range spec.Mounts {
		out.Mounted = append(out.Mounted, m.Destination)
	}
	if overlay.Type == "bind" {
		out.Upper = overlay.Source // an image without layers
		return out, nil
	}
	for _, o := range overlay.Options {
		switch key, value, _ := strings.Cut(o, "="); key {
		case "upperdir":
			out.Upper = value
		case "lowerdir":
			out.Lower = strings.Split(value, ":")
		}
	}
	if out.Upper == "" {
		return runtime.Layers{}, fmt.Errorf("the file system of container %s is no overlay", c.id[:12])
	}
	return out, nil
}

// mountRoot mounts the file system of a container that does not run, with its volumes and binds. The mounts are in a namespace
// of their own that one thread holds: nobody else sees them, and they go with the thread, also when this program is killed.
func (c *controller) mountRoot(ctx context.Context) (*os.File, func(), error) {
	overlay, spec, err := c.files(ctx)
	if err != nil {
		return nil, nil, err
	}
	parts := map[string]*part{}
	for _, p := range c.parts() {
		parts[p.At] = &p
	}
	at := filepath.Join(c.r.cfg.State, "root")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make a mount point: %w", err)
	}
	type opened struct {
		dir *os.File
		err error
	}
	result, release := make(chan opened), make(chan struct{})
	go func() {
		// Never unlocked: the thread has a namespace of its own and ends with this goroutine.
		goruntime.LockOSThread()
		dir, err := mountAlone(at, overlay, spec, parts)
		result <- opened{dir, err}
		if err == nil {
			<-release
			_ = dir.Close()
		}
	}()
	out := <-result
	if out.err != nil {
		return nil, nil, fmt.Errorf("mount the file system of container %s: %w", c.id[:12], out.err)
	}
	return out.dir, func() { close(release) }, nil
}

// parts are those that the container mounts of volumes.
func (c *controller) parts() []part {
	u := c.r.unit(c.id, false)
	if u == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.rec == nil {
		return nil
	}
	return u.rec.Parts
}

// mountAlone gives the calling thread a mount namespace and mounts a container's file systems there. Parts of volumes, by their mount
// points, are found anew.
func mountAlone(at string, overlay mount.Mount, spec *specs.Spec, parts map[string]*part) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	var data []string
	flags := uintptr(unix.MS_NODEV)
	for _, o := range overlay.Options {
		switch o {
		case "bind":
			flags |= unix.MS_BIND
		case "rbind":
			flags |= unix.MS_BIND | unix.MS_REC
		case "ro":
			flags |= unix.MS_RDONLY
		case "rw":
		default:
			data = append(data, o)
		}
	}
	if err := unix.Mount(overlay.Source, at, overlay.Type, flags, strings.Join(data, ",")); err != nil {
		return nil, err
	}
	fd, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), "/")
	for _, m := range spec.Mounts {
		if m.Type != "bind" {
			continue
		}
		if err := bindInto(dir, m, parts[m.Source]); err != nil {
			_ = dir.Close()
			return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	if spec.Root != nil && spec.Root.Readonly {
		if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
			_ = dir.Close()
			return nil, err
		}
	}
	return dir, nil
}

// bindInto mounts a file or directory of the host where the container has it. A source or place that is gone, such as
// a secret, is left out.
func bindInto(root *os.File, m specs.Mount, p *part) error {
	source, err := openSource(m, p)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EXDEV) {
		return nil
	}
	if err != nil {
		return err
	}
	defer source.Close()
	fd, err := unix.Openat2(int(root.Fd()), strings.TrimLeft(m.Destination, "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil // the container made something else of it
	}
	defer unix.Close(fd)
	tree, err := copyMount(source, 0)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	err = unix.MoveMount(tree, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil || !slices.Contains(m.Options, "ro") {
		return err
	}
	// By the mount itself: at its name there may be another already.
	return unix.Mount("", "/proc/self/fd/"+strconv.Itoa(tree), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

// copyMount makes another mount of an open file or directory, and with recursive, unix.AT_RECURSIVE, of what is mounted below it. It is
// mounted nowhere yet.
func copyMount(f *os.File, recursive uint) (fd int, err error) {
	fd, err = unix.OpenTree(int(f.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|recursive)
	if err != nil {
		return -1, &os.PathError{Op: "copy the mount of", Path: f.Name(), Err: err}
	}
	return fd, nil
}

// openSource opens what is mounted.
func openSource(m specs.Mount, p *part) (*os.File, error) {
	if p != nil {
		return p.open()
	}
	fd, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: m.Source, Err: err}
	}
	return os.NewFile(uintptr(fd), m.Source), nil
}
