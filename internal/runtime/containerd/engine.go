package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/metadata"
	runtimev2 "github.com/containerd/containerd/v2/core/runtime/v2"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/plugins"
	// The plugins of the graph register themselves when they are imported; there is no other way to have them.
	_ "github.com/containerd/containerd/api/types/runc/options"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/gc"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
	_ "github.com/containerd/containerd/v2/plugins/transfer"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

const (
	snapshotter = "overlayfs"
	// sandboxID is the one sandbox that all containers name. containerd connects a container that is in a sandbox to
	// the shim address it is given instead of starting a shim by running its program twice, and this is how the
	// shim is started by us, once.
	sandboxID = "skep"
	// taskPlugin is the folder containerd's task manager uses below root and state.
	taskPlugin = "io.containerd.runtime.v2.task"
)

// openEngine makes containerd's object graph in this process and a client on it.
func (r *Runtime) openEngine(ctx context.Context) (*client.Client, func() error, error) {
	for _, dir := range []string{r.cfg.Root, r.cfg.State, filepath.Join(r.cfg.State, "s")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, nil, fmt.Errorf("make containerd's directories: %w", err)
		}
	}
	set := plugin.NewPluginSet()
	closer := func() error { return closeAll(set) }
	var last *plugin.InitContext
	for _, reg := range registry.Graph(unwanted) {
		ic := plugin.NewContext(ctx, set, map[string]string{
			plugins.PropertyRootDir:      filepath.Join(r.cfg.Root, reg.URI()),
			plugins.PropertyStateDir:     filepath.Join(r.cfg.State, reg.URI()),
			plugins.PropertyGRPCAddress:  filepath.Join(r.cfg.State, "containerd.sock"), // never served: a name for shims
			plugins.PropertyTTRPCAddress: "",
		})
		ic.Config = r.pluginConfig(reg)
		last = ic
		p := reg.Init(ic)
		if err := set.Add(p); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("add containerd plugin %s: %w", reg.URI(), err), closer())
		}
		if err := p.Err(); err != nil && !plugin.IsSkipPlugin(err) {
			return nil, nil, errors.Join(fmt.Errorf("start containerd plugin %s: %w", reg.URI(), err), closer())
		}
	}
	if last == nil {
		return nil, nil, errors.New("containerd has no plugins")
	}
	if err := r.removeOrphans(ctx, set); err != nil {
		return nil, nil, errors.Join(err, closer())
	}
	c, err := r.engineClient(ctx, last)
	if err != nil {
		return nil, nil, errors.Join(err, closer())
	}
	return c, closer, nil
}

// removeOrphans removes the directories of snapshots that were being made when the last process was killed. The
// snapshotter gives their numbers again, and a new snapshot cannot take the place of such a directory.
func (r *Runtime) removeOrphans(ctx context.Context, set *plugin.Set) error {
	p := set.Get(plugins.SnapshotPlugin, snapshotter)
	if p == nil {
		return fmt.Errorf("containerd's snapshotter %s is missing", snapshotter)
	}
	instance, err := p.Instance()
	if err != nil {
		return fmt.Errorf("open containerd's snapshotter: %w", err)
	}
	c, ok := instance.(snapshots.Cleaner)
	if !ok {
		return fmt.Errorf("containerd's snapshotter %s cannot clean up", snapshotter)
	}
	err = c.Cleanup(ctx)
	if errdefs.IsNotFound(err) { // no snapshot was ever made: all directories are orphans
		err = os.RemoveAll(filepath.Join(r.cfg.Root, p.Registration.URI(), "snapshots"))
		if err == nil {
			err = os.Mkdir(filepath.Join(r.cfg.Root, p.Registration.URI(), "snapshots"), 0o700)
		}
	}
	if err != nil {
		return fmt.Errorf("clean up after the last process: %w", err)
	}
	return nil
}

// unwanted leaves out what a node of ours has no use for.
func unwanted(reg *plugin.Registration) bool {
	switch reg.Type {
	case plugins.GRPCPlugin, plugins.TTRPCPlugin, plugins.HTTPHandler:
		return true
	}
	return false
}

// pluginConfig returns a private copy of the plugin's configuration: registrations are shared by all instances.
func (r *Runtime) pluginConfig(reg plugin.Registration) any {
	if reg.Config == nil {
		return nil
	}
	v := reflect.New(reflect.TypeOf(reg.Config).Elem())
	v.Elem().Set(reflect.ValueOf(reg.Config).Elem())
	if shim, ok := v.Interface().(*runtimev2.ShimConfig); ok {
		shim.SocketDir = filepath.Join(r.cfg.State, "s")
	}
	if reg.Type == plugins.GCPlugin {
		// A removed container's files go with the next collection. The default waits for a hundred changes; this
		// collects a second after a removal, and once for all that are removed in that second.
		setInt(v.Elem(), "DeletionThreshold", 1)
		setInt(v.Elem(), "ScheduleDelay", int64(time.Second))
	}
	return v.Interface()
}

func (r *Runtime) engineClient(ctx context.Context, ic *plugin.InitContext) (*client.Client, error) {
	db, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, fmt.Errorf("find containerd's metadata: %w", err)
	}
	sandboxes := metadata.NewSandboxStore(db.(*metadata.DB))
	_, err = sandboxes.Create(ctx, sandbox.Sandbox{ID: sandboxID, Runtime: sandbox.RuntimeOpts{Name: r.cfg.Shim}, Sandboxer: "none"})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("make the sandbox record: %w", err)
	}
	opts := []client.ServicesOpt{client.WithSandboxStore(sandboxes)}
	if t, err := ic.GetSingle(plugins.TransferPlugin); err == nil {
		opts = append(opts, client.WithTransferService(t.(transfer.Transferrer)))
	}
	if opts, err = inMemory(ic, opts); err != nil {
		return nil, err
	}
	c, err := client.New("", client.WithDefaultNamespace(r.Namespace()), client.WithServices(opts...))
	if err != nil {
		return nil, fmt.Errorf("make the containerd client: %w", err)
	}
	return c, nil
}

// closeAll closes what the plugins opened, in reverse order, so that the databases are free for the next process.
func closeAll(set *plugin.Set) error {
	var errs []error
	all := set.GetAll()
	for i := len(all) - 1; i >= 0; i-- {
		instance, err := all[i].Instance()
		if err != nil {
			continue
		}
		if c, ok := instance.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// dialSystem connects to a containerd of the system.
func (r *Runtime) dialSystem(ctx context.Context) (*client.Client, func() error, error) {
	c, err := client.New(r.cfg.Address, client.WithDefaultNamespace(r.Namespace()), client.WithTimeout(10*time.Second))
	if err != nil {
		return nil, nil, fmt.Errorf("connect to containerd at %s: %w", r.cfg.Address, err)
	}
	if _, err := c.Version(ctx); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("ask containerd at %s for its version: %w", r.cfg.Address, err), c.Close())
	}
	for _, dir := range []string{r.cfg.Root, r.cfg.State} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("make the record directories: %w", err), c.Close())
		}
	}
	return c, c.Close, nil
}

// setInt sets a field of a configuration whose type containerd does not export; a field that is gone is left alone.
func setInt(config reflect.Value, field string, n int64) {
	if f := config.FieldByName(field); f.IsValid() && f.CanInt() {
		f.SetInt(n)
	}
}
