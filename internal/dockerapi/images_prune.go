package dockerapi

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/skep-swarm/skep/internal/model"
)

// pruneImages removes images without a name, with dangling=false all that no container was made from.
func (s *Server) pruneImages(r *request) error {
	f, err := readFilters(r, "dangling", "until", "label", "label!")
	if err != nil {
		return err
	}
	dangling, asked, err := f.flag("dangling")
	if err != nil {
		return err
	}
	onlyNameless := dangling || !asked
	until, err := s.pruneUntil(f)
	if err != nil {
		return err
	}
	images, err := s.backend.ListImages(r.ctx())
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	containers, err := s.backend.ListContainers(r.ctx())
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	out := image.PruneReport{ImagesDeleted: []image.DeleteResponse{}}
	for i := range images {
		img := &images[i]
		used := slices.ContainsFunc(containers, func(c Container) bool { return c.ImageID == img.ID })
		if used || onlyNameless && len(img.Names) > 0 || !until.IsZero() && !img.Created.Before(until) || !f.labels("label", img.Labels) ||
			f.has("label!") && f.labels("label!", img.Labels) {
			continue
		}
		if err := s.backend.DeleteImage(r.ctx(), img.ID); err != nil {
			if kind := model.KindOf(err); kind == model.Conflict || kind == model.NotFound {
				continue // a task began to use it, or someone was faster
			}
			return err
		}
		if err := s.forgetImages(r.ctx(), img.Names, img.Digest); err != nil {
			return err
		}
		for _, n := range img.Names {
			out.ImagesDeleted = append(out.ImagesDeleted, image.DeleteResponse{Untagged: familiar(n)})
		}
		out.ImagesDeleted = append(out.ImagesDeleted, image.DeleteResponse{Deleted: img.ID})
		out.SpaceReclaimed += uint64(max(0, img.Size))
		s.emitImage("delete", img, "")
	}
	return writeJSON(r, http.StatusOK, out)
}

// pruneUntil reads the until filter: a time, or how long ago.
func (s *Server) pruneUntil(f filters) (time.Time, error) {
	if !f.has("until") {
		return time.Time{}, nil
	}
	if len(f["until"]) > 1 {
		return time.Time{}, model.Invalidf("more than one until filter specified")
	}
	text := f["until"][0]
	if d, err := time.ParseDuration(text); err == nil {
		return s.now().Add(-d), nil
	}
	t, err := readTime(text)
	if err != nil {
		t, err = time.Parse(time.RFC3339, text)
	}
	if err != nil {
		return t, model.Invalidf("invalid until filter %q: give a time or how long ago, like 24h", text)
	}
	return t, nil
}
