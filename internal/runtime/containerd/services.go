package containerd

import (
	"errors"
	"fmt"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins"
	srv "github.com/containerd/containerd/v2/plugins/services"
	"github.com/containerd/plugin"
)

// inMemory gives a client the services of a plugin graph in this process, where a remote one would dial.
func inMemory(ic *plugin.InitContext, opts []client.ServicesOpt) ([]client.ServicesOpt, error) {
	all, err := ic.GetByType(plugins.ServicePlugin)
	if err != nil {
		return nil, fmt.Errorf("find containerd's services: %w", err)
	}
	var missing []error
	add := func(name string, opt func(any) client.ServicesOpt) {
		if s, ok := all[name]; ok {
			opts = append(opts, opt(s))
			return
		}
		missing = append(missing, fmt.Errorf("containerd service %q is missing", name))
	}
	add(srv.ContentService, func(s any) client.ServicesOpt { return client.WithContentStore(s.(content.Store)) })
	add(srv.ImagesService, func(s any) client.ServicesOpt { return client.WithImageClient(s.(imagesapi.ImagesClient)) })
	add(srv.SnapshotsService, func(s any) client.ServicesOpt {
		return client.WithSnapshotters(s.(map[string]snapshots.Snapshotter))
	})
	add(srv.ContainersService, func(s any) client.ServicesOpt {
		return client.WithContainerClient(s.(containersapi.ContainersClient))
	})
	add(srv.TasksService, func(s any) client.ServicesOpt { return client.WithTaskClient(s.(tasks.TasksClient)) })
	add(srv.DiffService, func(s any) client.ServicesOpt { return client.WithDiffClient(s.(diff.DiffClient)) })
	add(srv.NamespacesService, func(s any) client.ServicesOpt {
		return client.WithNamespaceClient(s.(namespacesapi.NamespacesClient))
	})
	add(srv.IntrospectionService, func(s any) client.ServicesOpt {
		return client.WithIntrospectionService(s.(introspection.Service))
	})
	single := func(t plugin.Type, opt func(any) client.ServicesOpt) {
		s, err := ic.GetSingle(t)
		if err != nil {
			missing = append(missing, err)
			return
		}
		opts = append(opts, opt(s))
	}
	single(plugins.EventPlugin, func(s any) client.ServicesOpt { return client.WithEventService(s.(client.EventService)) })
	single(plugins.LeasePlugin, func(s any) client.ServicesOpt { return client.WithLeasesService(s.(leases.Manager)) })
	single(plugins.MountManagerPlugin, func(s any) client.ServicesOpt { return client.WithMountManager(s.(mount.Manager)) })
	return opts, errors.Join(missing...)
}
