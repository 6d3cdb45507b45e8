package dockerapi

import (
	"errors"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/skep-swarm/skep/internal/model"
)

// Docker's own Go client, newer than the API that is served, can read every answer: its types are
// stricter than the CLI's.
func TestGoClient(t *testing.T) {
	s, f := newSwarm(t)
	if w := call(s, "POST", "/images/load", "docker.io/library/web:v1"); w.Code != 200 {
		t.Fatal(w.Body)
	}
	create(t, s, `{"Name":"web","Mode":{"Replicated":{"Replicas":1}},"TaskTemplate":{"ContainerSpec":{"Image":"web:v1"}},
		"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8080},{"TargetPort":81,"PublishedPort":8081,"PublishMode":"host"}]}}`)
	c, err := client.New(client.WithHost(serveUnix(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx := t.Context()
	cid := containerID(f.snap.Cluster().Namer().TaskID(model.TaskID{Service: 1, Num: 1}))
	for name, read := range map[string]func() error{
		"info":     func() error { _, err := c.Info(ctx, client.InfoOptions{}); return err },
		"version":  func() error { _, err := c.ServerVersion(ctx, client.ServerVersionOptions{}); return err },
		"swarm":    func() error { _, err := c.SwarmInspect(ctx, client.SwarmInspectOptions{}); return err },
		"services": func() error { _, err := c.ServiceList(ctx, client.ServiceListOptions{Status: true}); return err },
		"service": func() error {
			_, err := c.ServiceInspect(ctx, "web", client.ServiceInspectOptions{InsertDefaults: true})
			return err
		},
		"tasks":      func() error { _, err := c.TaskList(ctx, client.TaskListOptions{}); return err },
		"nodes":      func() error { _, err := c.NodeList(ctx, client.NodeListOptions{}); return err },
		"networks":   func() error { _, err := c.NetworkList(ctx, client.NetworkListOptions{}); return err },
		"network":    func() error { _, err := c.NetworkInspect(ctx, "ingress", client.NetworkInspectOptions{}); return err },
		"containers": func() error { _, err := c.ContainerList(ctx, client.ContainerListOptions{All: true}); return err },
		"container":  func() error { _, err := c.ContainerInspect(ctx, cid, client.ContainerInspectOptions{}); return err },
		"images":     func() error { _, err := c.ImageList(ctx, client.ImageListOptions{}); return err },
		"image":      func() error { _, err := c.ImageInspect(ctx, "web:v1"); return err },
		"volumes":    func() error { _, err := c.VolumeList(ctx, client.VolumeListOptions{}); return err },
		"disk usage": func() error { _, err := c.DiskUsage(ctx, client.DiskUsageOptions{}); return err },
	} {
		if err := read(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if v := c.ClientVersion(); v != MaxAPIVersion {
		t.Errorf("the client speaks %s", v)
	}
	if _, err := c.ServiceInspect(ctx, "nope", client.ServiceInspectOptions{}); !errors.Is(err, cerrdefs.ErrNotFound) && !cerrdefs.IsNotFound(err) {
		t.Errorf("a missing service is %v to the client", err)
	}
}
