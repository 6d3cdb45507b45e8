package dockerapi

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"github.com/skep-swarm/skep/internal/model"
)

func (s *Server) ping(r *request) error {
	h := r.w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", "1") // there is no BuildKit here
	h.Set("Swarm", swarmHeader(s.backend.Local()))
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, err := r.w.Write([]byte("OK"))
	return err
}

func swarmHeader(l Local) string {
	switch {
	case l.State != swarm.LocalNodeStateActive:
		return string(l.State)
	case l.Manager:
		return "active/manager"
	}
	return "active/worker"
}

func (s *Server) getVersion(r *request) error {
	host, err := s.backend.SystemInfo(r.ctx())
	if err != nil {
		return fmt.Errorf("describe this host: %w", err)
	}
	details := map[string]string{
		"ApiVersion": MaxAPIVersion, "MinAPIVersion": MinAPIVersion, "Arch": runtime.GOARCH, "Os": runtime.GOOS, "GoVersion": runtime.Version(),
		"GitCommit": s.version.GitCommit, "BuildTime": "", "KernelVersion": host.KernelVersion, "Experimental": "false",
	}
	out := system.VersionResponse{
		Platform: system.PlatformInfo{Name: "skep " + s.version.Version}, Version: s.version.Version,
		APIVersion: MaxAPIVersion, MinAPIVersion: MinAPIVersion, Os: runtime.GOOS, Arch: runtime.GOARCH,
		Components: []system.ComponentVersion{{Name: "Engine", Version: s.version.Version, Details: details}},
		GitCommit:  s.version.GitCommit, GoVersion: runtime.Version(), KernelVersion: host.KernelVersion,
	}
	for _, c := range []system.ComponentVersion{{Name: "containerd", Version: host.ContainerdVersion}, {Name: "runc", Version: host.RuncVersion}} {
		if c.Version != "" {
			c.Details = map[string]string{"GitCommit": ""}
			out.Components = append(out.Components, c)
		}
	}
	return writeJSON(r, http.StatusOK, out)
}

func (s *Server) getInfo(r *request) error {
	h, err := s.backend.SystemInfo(r.ctx())
	if err != nil {
		return fmt.Errorf("describe this host: %w", err)
	}
	out := system.Info{
		ID: h.ID, Name: h.Name, Containers: h.ContainersRunning + h.ContainersStopped, ContainersRunning: h.ContainersRunning,
		ContainersStopped: h.ContainersStopped, Images: h.Images, Driver: h.Driver, DriverStatus: h.DriverStatus,
		Plugins:     system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "null", "overlay"}, Log: []string{"json-file"}},
		MemoryLimit: h.MemoryLimit, SwapLimit: h.SwapLimit, CPUCfsPeriod: h.CPUCfs, CPUCfsQuota: h.CPUCfs, CPUShares: h.CPUCfs, CPUSet: h.CPUSet,
		PidsLimit: h.PidsLimit, IPv4Forwarding: h.IPv4Forwarding, OomKillDisable: false, Debug: h.Debug,
		NGoroutines: runtime.NumGoroutine(), SystemTime: s.now().UTC().Format(time.RFC3339Nano), NEventsListener: s.events.listeners(),
		LoggingDriver: "json-file", CgroupDriver: h.CgroupDriver, CgroupVersion: h.CgroupVersion, KernelVersion: h.KernelVersion,
		OperatingSystem: h.OperatingSystem, OSVersion: h.OSVersion, OSType: h.OSType, Architecture: h.Architecture,
		IndexServerAddress: "https://index.docker.io/v1/", RegistryConfig: registryConfig(h), NCPU: h.NCPU, MemTotal: h.MemTotal,
		DockerRootDir: h.DataRoot, HTTPProxy: h.HTTPProxy, HTTPSProxy: h.HTTPSProxy, NoProxy: h.NoProxy, Labels: h.Labels,
		ServerVersion: s.version.Version, Runtimes: map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: "runc"}}},
		DefaultRuntime: "runc", LiveRestoreEnabled: true, ContainerdCommit: system.Commit{ID: h.ContainerdVersion},
		RuncCommit: system.Commit{ID: h.RuncVersion}, SecurityOptions: h.SecurityOptions, Warnings: h.Warnings,
		GenericResources: nil, CDISpecDirs: []string{},
	}
	if out.OSType == "" {
		out.OSType = runtime.GOOS
	}
	if out.Labels == nil {
		out.Labels = []string{}
	}
	out.Swarm = s.swarmInfo(r)
	return writeJSON(r, http.StatusOK, out)
}

func registryConfig(h SystemInfo) *registry.ServiceConfig {
	c := &registry.ServiceConfig{Mirrors: h.RegistryMirrors, IndexConfigs: map[string]*registry.IndexInfo{
		"docker.io": {Name: "docker.io", Mirrors: h.RegistryMirrors, Secure: true, Official: true},
	}}
	for _, name := range h.InsecureRegistries {
		c.IndexConfigs[name] = &registry.IndexInfo{Name: name, Mirrors: []string{}}
	}
	return c
}

// swarmInfo is the swarm's part of /info. What goes wrong is in its Error: /info always answers.
func (s *Server) swarmInfo(r *request) swarm.Info {
	l := s.backend.Local()
	out := swarm.Info{NodeID: l.NodeID, NodeAddr: l.Addr, LocalNodeState: l.State, Error: l.Error, RemoteManagers: l.RemoteManagers}
	if l.State != swarm.LocalNodeStateActive || !l.Manager {
		return out
	}
	snap, err := s.state(r.ctx())
	if err != nil {
		out.Error = err.Error()
		return out
	}
	out.ControlAvailable = true
	info, err := clusterInfo(snap.Cluster())
	if err != nil {
		out.Error = err.Error()
		return out
	}
	out.Cluster = &info
	for n := range snap.Nodes() {
		out.Nodes++
		if n.Spec.Role == swarm.NodeRoleManager {
			out.Managers++
		}
	}
	return out
}

// diskUsage has the shape of API versions before 1.52. What a client did not ask for is null.
type diskUsage struct {
	LayersSize  int64
	Images      []imageSummaryView
	Containers  []container.Summary
	Volumes     []volume.Volume
	BuildCache  []struct{}
	BuilderSize int64
}

func (s *Server) getDiskUsage(r *request) error {
	asked := r.URL.Query()["type"]
	for _, typ := range asked {
		if !slices.Contains([]string{"container", "image", "volume", "build-cache"}, typ) {
			return model.Invalidf("unknown object type: %s", typ)
		}
	}
	wants := func(typ string) bool { return len(asked) == 0 || slices.Contains(asked, typ) }
	var out diskUsage
	containers, err := s.backend.ListContainers(r.ctx())
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	if wants("image") {
		if err := s.imageUsage(r, &out, containers); err != nil {
			return err
		}
	}
	if wants("container") {
		out.Containers = []container.Summary{}
		for i := range containers {
			sum := s.containerSummary(&containers[i])
			if sum.SizeRw, sum.SizeRootFs, err = s.backend.ContainerSize(r.ctx(), containers[i].ID); err != nil && model.KindOf(err) != model.NotFound {
				return err
			}
			out.Containers = append(out.Containers, sum)
		}
	}
	if wants("volume") {
		if err := s.volumeUsage(r, &out); err != nil {
			return err
		}
	}
	if wants("build-cache") {
		out.BuildCache = []struct{}{}
	}
	return writeJSON(r, http.StatusOK, out)
}

func (s *Server) imageUsage(r *request, out *diskUsage, containers []Container) error {
	images, err := s.backend.ListImages(r.ctx())
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	out.Images = []imageSummaryView{}
	for i := range images {
		out.LayersSize += images[i].Size
		sum := imageSummary(r.version, &images[i], containers)
		if !sharesLayers(images, i) {
			sum.SharedSize = 0 // known, so that clients count it as used when a container uses it
		}
		out.Images = append(out.Images, sum)
	}
	return nil
}

func (s *Server) volumeUsage(r *request, out *diskUsage) error {
	volumes, err := s.volumes(r.ctx())
	if err != nil {
		return err
	}
	used, err := s.volumeUsers(r.ctx())
	if err != nil {
		return err
	}
	out.Volumes = []volume.Volume{}
	for _, v := range volumes {
		size, err := s.backend.VolumeSize(r.ctx(), v.Name)
		if err != nil {
			size = -1 // Docker's "not computed"
		}
		v.UsageData = &volume.UsageData{RefCount: int64(len(used[v.Name])), Size: size}
		out.Volumes = append(out.Volumes, v)
	}
	return nil
}

// sharesLayers reports whether another image has a layer of one's.
func sharesLayers(images []Image, i int) bool {
	return slices.ContainsFunc(images[i].Layers, func(layer string) bool {
		for j := range images {
			if j != i && images[j].ID != images[i].ID && slices.Contains(images[j].Layers, layer) {
				return true
			}
		}
		return false
	})
}

// pruneBuild is true to the letter: there is no build cache, so all of it is gone.
func (s *Server) pruneBuild(r *request) error {
	return writeJSON(r, http.StatusOK, struct {
		CachesDeleted  []string
		SpaceReclaimed uint64
	}{})
}

// pruneContainers removes nothing: those that ended are the history of tasks, which the swarm removes by itself. That is no error, or
// nothing else of docker system prune would be done.
func (s *Server) pruneContainers(r *request) error {
	f, err := readFilters(r, "until", "label", "label!")
	if err != nil {
		return err
	}
	if _, err := s.pruneUntil(f); err != nil {
		return err
	}
	s.emit(events.ContainerEventType, events.ActionPrune, scopeLocal, "", map[string]string{"reclaimed": "0"}, s.now())
	return writeJSON(r, http.StatusOK, container.PruneReport{ContainersDeleted: []string{}})
}

func (s *Server) emptyList(r *request) error {
	return writeJSON(r, http.StatusOK, []struct{}{})
}
