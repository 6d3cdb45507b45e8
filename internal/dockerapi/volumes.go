package dockerapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"

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

func (s *Server) listVolumes(r *request) error {
	f, err := readFilters(r, "name", "label", "driver", "dangling")
	if err != nil {
		return err
	}
	dangling, asked, err := f.flag("dangling")
	if err != nil {
		return err
	}
	used := map[string]bool{}
	if asked {
		containers, err := s.backend.ListContainers(r.ctx())
		if err != nil {
			return fmt.Errorf("list containers: %w", err)
		}
		for _, c := range containers {
			for _, m := range c.Mounts {
				used[m.Name] = true
			}
		}
	}
	list, err := s.volumes(r.ctx())
	if err != nil {
		return err
	}
	out := volume.ListResponse{Volumes: []volume.Volume{}}
	for _, v := range list {
		if f.contains("name", v.Name) && f.labels("label", v.Labels) && f.exact("driver", v.Driver) && (!asked || dangling != used[v.Name]) {
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
		sum := sha256.Sum256(b[:])
		req.Name = hex.EncodeToString(sum[:])
	}
	switch {
	case req.ClusterVolumeSpec != nil:
		return model.Errorf(unimplemented, "cluster volumes are not available yet")
	case req.Driver != "" && req.Driver != "local":
		return notFoundf("create %s: plugin %q not found: the volume driver here is local", req.Name, req.Driver)
	case !volumeName.MatchString(req.Name) || len(req.Name) < 2:
		return model.Invalidf("create %s: %q includes invalid characters for a local volume name, only %q are allowed. If you intended to pass a host directory, use absolute path", req.Name, req.Name, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
	}
	v, err := s.backend.CreateVolume(r.ctx(), req)
	if err != nil {
		return err
	}
	return writeJSON(r, http.StatusCreated, v)
}

func (s *Server) removeVolume(r *request) error {
	name, force := r.vars["name"], r.bool("force")
	list, err := s.volumes(r.ctx())
	if err != nil {
		return err
	}
	if !force && !slices.ContainsFunc(list, func(v volume.Volume) bool { return v.Name == name }) {
		return notFoundf("get %s: no such volume", name)
	}
	containers, err := s.backend.ListContainers(r.ctx())
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, c := range containers {
		for _, m := range c.Mounts {
			if m.Name == name {
				return model.Conflictf("remove %s: volume is in use - [%s]", name, c.ID)
			}
		}
	}
	err = s.backend.RemoveVolume(r.ctx(), name, force)
	if force && model.KindOf(err) == model.NotFound {
		err = nil
	}
	if err != nil {
		return err
	}
	return writeEmpty(r, http.StatusNoContent)
}
