package dockerapi

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"
	"github.com/skep-swarm/skep/internal/model"
)

// volumes lists the node's volumes; a daemon that has none to offer has none.
func (s *Server) volumes(ctx context.Context) ([]volume.Volume, error) {
	list, err := s.backend.ListVolumes(ctx)
	if model.KindOf(err) == unimplemented {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	for i := range list {
		if list[i].Scope == "" {
			list[i].Scope = scopeLocal
		}
		if list[i].Driver == "" {
			list[i].Driver = "local"
		}
	}
	return list, nil
}

// volumeUsers are the containers of each volume.
func (s *Server) volumeUsers(ctx context.Context) (map[string][]string, error) {
	list, err := s.backend.ListContainers(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	used := map[string][]string{}
	for _, c := range list {
		for _, m := range c.Mounts {
			if m.Name != "" && !slices.Contains(used[m.Name], c.ID) {
				used[m.Name] = append(used[m.Name], c.ID)
			}
		}
	}
	return used, nil
}

func (s *Server) listVolumes(r *request) error {
	f, err := readFilters(r, "name", "label", "driver", "dangling")
	if err != nil {
		return err
	}
	dangling, asked, err := f.flag("dangling")
	if err != nil {
		return err
	}
	names, err := f.patterns("name")
	if err != nil {
		return err
	}
	var used map[string][]string
	if asked {
		if used, err = s.volumeUsers(r.ctx()); err != nil {
			return err
		}
	}
	list, err := s.volumes(r.ctx())
	if err != nil {
		return err
	}
	out := volume.ListResponse{Volumes: []volume.Volume{}, Warnings: nil}
	for _, v := range list {
		if names.match(v.Name) && f.labels("label", v.Labels) && f.exact("driver", v.Driver) && (!asked || dangling == (len(used[v.Name]) == 0)) {
			out.Volumes = append(out.Volumes, v)
		}
	}
	return writeJSON(r, http.StatusOK, out)
}

func (s *Server) getVolume(r *request) error {
	list, err := s.volumes(r.ctx())
	if err != nil {
		return err
	}
	for _, v := range list {
		if v.Name == r.vars["name"] {
			return writeJSON(r, http.StatusOK, v)
		}
	}
	return notFoundf("get %s: no such volume", r.vars["name"])
}

// anonymousVolume is the label of a volume that nobody gave a name.
const anonymousVolume = "com.docker.volume.anonymous"

func (s *Server) createVolume(r *request) error {
	var req volume.CreateRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if req.Name == "" {
		var b [32]byte
		if _, err := io.ReadFull(s.rand, b[:]); err != nil {
			return fmt.Errorf("make a name: %w", err)
		}
		req.Name = hex.EncodeToString(b[:])
		req.Labels = mergedLabels(req.Labels, map[string]string{anonymousVolume: ""})
	}
	switch {
	case req.ClusterVolumeSpec != nil:
		return model.Errorf(unimplemented, "cluster volumes are not available yet")
	case req.Driver != "" && req.Driver != "local":
		return notFoundf("create %s: error looking up volume plugin %s: plugin %q not found: the volume driver here is local", req.Name, req.Driver, req.Driver)
	case !volumeName.MatchString(req.Name) || len(req.Name) < 2:
		return model.Invalidf("create %s: %q includes invalid characters for a local volume name, only %q are allowed. If you intended to pass a host directory, use absolute path", req.Name, req.Name, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
	}
	before, err := s.volumes(r.ctx())
	if err != nil {
		return err
	}
	v, err := s.backend.CreateVolume(r.ctx(), req)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(before, func(b volume.Volume) bool { return b.Name == v.Name }) {
		s.emitVolume(events.ActionCreate, v.Name, nil)
	}
	return writeJSON(r, http.StatusCreated, v)
}

// emitVolume records what was done to a volume of this node.
func (s *Server) emitVolume(action events.Action, name string, attrs map[string]string) {
	s.emit(events.VolumeEventType, action, scopeLocal, name, mergedLabels(attrs, map[string]string{"driver": "local"}), s.now())
}

func (s *Server) removeVolume(r *request) error {
	name, force := r.vars["name"], r.bool("force")
	list, err := s.volumes(r.ctx())
	if err != nil {
		return err
	}
	known := slices.ContainsFunc(list, func(v volume.Volume) bool { return v.Name == name })
	if !force && !known {
		return notFoundf("get %s: no such volume", name)
	}
	used, err := s.volumeUsers(r.ctx())
	if err != nil {
		return err
	}
	if users := used[name]; len(users) > 0 {
		return model.Conflictf("remove %s: volume is in use - [%s]", name, strings.Join(users, ", "))
	}
	err = s.backend.RemoveVolume(r.ctx(), name, force)
	if force && model.KindOf(err) == model.NotFound {
		err = nil
	}
	if err != nil {
		return err
	}
	if known {
		s.emitVolume(events.ActionDestroy, name, nil)
	}
	return writeEmpty(r, http.StatusNoContent)
}

// pruneVolumes removes the volumes that no container uses: those that nobody named, or all of them, as clients before 1.42 expect.
func (s *Server) pruneVolumes(r *request) error {
	f, err := readFilters(r, "label", "label!", "all")
	if err != nil {
		return err
	}
	all, asked, err := f.flag("all")
	if err != nil {
		return err
	}
	if !asked && r.version.before(42) {
		all = true
	}
	list, err := s.volumes(r.ctx())
	if err != nil {
		return err
	}
	used, err := s.volumeUsers(r.ctx())
	if err != nil {
		return err
	}
	out := volume.PruneReport{VolumesDeleted: []string{}}
	for _, v := range list {
		_, anonymous := v.Labels[anonymousVolume]
		if len(used[v.Name]) > 0 || !all && !anonymous || !f.labels("label", v.Labels) || f.anyLabel("label!", v.Labels) {
			continue
		}
		size, err := s.backend.VolumeSize(r.ctx(), v.Name)
		if model.KindOf(err) == model.NotFound {
			continue // somebody else removed it
		}
		if err != nil {
			return fmt.Errorf("measure volume %s: %w", v.Name, err)
		}
		if err := s.backend.RemoveVolume(r.ctx(), v.Name, false); err != nil {
			if kind := model.KindOf(err); kind == model.Conflict || kind == model.NotFound {
				continue // a container took it meanwhile, or somebody else removed it
			}
			return err
		}
		out.SpaceReclaimed += uint64(max(size, 0))
		out.VolumesDeleted = append(out.VolumesDeleted, v.Name)
		s.emitVolume(events.ActionDestroy, v.Name, nil)
	}
	s.emit(events.VolumeEventType, events.ActionPrune, scopeLocal, "", map[string]string{"reclaimed": strconv.FormatUint(out.SpaceReclaimed, 10)}, s.now())
	return writeJSON(r, http.StatusOK, out)
}
