package dockerapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/state"
)

// familiar is an image's name as users write it: docker.io/library/nginx:1 is nginx:1.
func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}

// repoDigests are name@digest for each repository that an image has a tag in.
func repoDigests(img *Image) []string {
	out := []string{}
	for _, n := range img.Names {
		named, err := reference.ParseNormalizedNamed(n)
		if err != nil || img.Digest == "" {
			continue
		}
		if d := reference.FamiliarName(named) + "@" + img.Digest; !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

func repoTags(img *Image) []string {
	out := []string{}
	for _, n := range img.Names {
		// One that was pulled by its digest has a name without a tag, which is among the digests.
		if named, err := reference.ParseNormalizedNamed(n); err == nil && isTagged(named) {
			out = append(out, familiar(n))
		}
	}
	return out
}

// imageSummaryView is an image in a list. Clients before API 1.44 read its size also under another name.
type imageSummaryView struct {
	image.Summary
	VirtualSize int64 `json:",omitempty"`
}

func imageSummary(v apiVersion, img *Image, containers []Container) imageSummaryView {
	out := imageSummaryView{VirtualSize: virtualSize(v, img)}
	out.Summary = image.Summary{ID: img.ID, Labels: img.Labels, Size: img.Size, SharedSize: -1, RepoTags: repoTags(img), RepoDigests: repoDigests(img)}
	if !img.Created.IsZero() {
		out.Created = img.Created.Unix()
	}
	for _, c := range containers {
		if c.ImageID == img.ID {
			out.Containers++
		}
	}
	return out
}

// virtualSize is an image's size for clients who know it by this name, else 0.
func virtualSize(v apiVersion, img *Image) int64 {
	if v.before(44) {
		return img.Size
	}
	return 0
}

func (s *Server) listImages(r *request) error {
	f, err := readFilters(r, "dangling", "label", "reference", "before", "since")
	if err != nil {
		return err
	}
	dangling, asked, err := f.flag("dangling")
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
	var before, since time.Time
	for key, bound := range map[string]*time.Time{"before": &before, "since": &since} {
		for _, ref := range f[key] {
			img, err := findImage(images, ref)
			if err != nil {
				return err
			}
			*bound = img.Created
		}
	}
	out := []imageSummaryView{}
	for i := range images {
		img := images[i]
		if asked && dangling != (len(img.Names) == 0) || !f.labels("label", img.Labels) ||
			!before.IsZero() && !img.Created.Before(before) || !since.IsZero() && !img.Created.After(since) {
			continue
		}
		if f.has("reference") {
			if img.Names = referredTo(f["reference"], img.Names); len(img.Names) == 0 {
				continue
			}
		}
		out = append(out, imageSummary(r.version, &img, containers))
	}
	slices.SortStableFunc(out, func(a, b imageSummaryView) int { return int(b.Created - a.Created) })
	return writeJSON(r, http.StatusOK, out)
}

// referredTo are the names that one of the patterns is for: as users write them, with the tag or without. An image's other names are not
// listed, or "docker rmi" of what a search found would take them, too.
func referredTo(patterns, names []string) []string {
	var out []string
	for _, n := range names {
		named, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			continue
		}
		subjects := []string{reference.FamiliarString(named), reference.FamiliarName(named)}
		if slices.ContainsFunc(patterns, func(pattern string) bool {
			return slices.ContainsFunc(subjects, func(subject string) bool {
				ok, err := path.Match(pattern, subject)
				return err == nil && ok // a broken pattern matches nothing
			})
		}) {
			out = append(out, n)
		}
	}
	return out
}

// findImage looks an image up by ID, digest, name or prefix of its ID, in this order.
func findImage(images []Image, ref string) (*Image, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	named, nameErr := reference.ParseNormalizedNamed(ref)
	want := ""
	if nameErr == nil {
		want = reference.TagNameOnly(named).String()
		if d, ok := named.(reference.Digested); ok {
			want = d.Digest().String()
		}
	}
	for i := range images {
		img := &images[i]
		if strings.TrimPrefix(img.ID, "sha256:") == hex || slices.Contains(img.Names, want) || want != "" && want == img.Digest {
			return img, nil
		}
	}
	var found *Image
	for i := range images {
		if hex != "" && strings.HasPrefix(strings.TrimPrefix(images[i].ID, "sha256:"), hex) {
			if found != nil {
				return nil, model.Invalidf("multiple IDs found with provided prefix: %s", ref)
			}
			found = &images[i]
		}
	}
	switch {
	case found != nil:
		return found, nil
	case nameErr != nil:
		return nil, notFoundf("No such image: %s", ref)
	}
	return nil, notFoundf("No such image: %s", reference.FamiliarString(reference.TagNameOnly(named)))
}

func (s *Server) image(r *request) (*Image, error) {
	images, err := s.backend.ListImages(r.ctx())
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return findImage(images, r.vars["name"])
}

// imageView is Docker's image, with its configuration as it is in the image.
type imageView struct {
	image.InspectResponse
	VirtualSize int64 `json:",omitempty"`
	Config      json.RawMessage
}

func (s *Server) getImage(r *request) error {
	img, err := s.image(r)
	if err != nil {
		return err
	}
	out := imageView{InspectResponse: image.InspectResponse{
		ID: img.ID, RepoTags: repoTags(img), RepoDigests: repoDigests(img), Comment: img.Comment, Author: img.Author,
		Created: img.Created.UTC().Format(time.RFC3339Nano), Architecture: img.Architecture, Variant: img.Variant, Os: img.OS, Size: img.Size,
		RootFS: image.RootFS{Type: "layers", Layers: img.Layers},
	}, Config: img.Config, VirtualSize: virtualSize(r.version, img)}
	if out.Config == nil {
		out.Config = json.RawMessage("{}")
	}
	return writeJSON(r, http.StatusOK, out)
}

func (s *Server) getImageHistory(r *request) error {
	img, err := s.image(r)
	if err != nil {
		return err
	}
	out := []image.HistoryResponseItem{}
	for i, l := range img.History {
		item := image.HistoryResponseItem{ID: "<missing>", Comment: l.Comment, CreatedBy: l.CreatedBy, Size: l.Size, Created: l.Created.Unix()}
		if i == 0 {
			item.ID, item.Tags = img.ID, repoTags(img)
		}
		out = append(out, item)
	}
	return writeJSON(r, http.StatusOK, out)
}

func (s *Server) loadImages(r *request) error {
	out := newJSONStream(r)
	images, err := s.backend.LoadImages(r.ctx(), r.Body, func(line string) {
		out.write(map[string]string{"stream": line})
	})
	if err == nil {
		for i := range images {
			s.emitImage("load", &images[i], "")
		}
		err = s.recordImages(r.ctx(), images)
	}
	return out.end(err)
}

// recordImages writes into the swarm's image table what the names mean now, so that nodes agree on
// it without a registry.
func (s *Server) recordImages(ctx context.Context, images []Image) error {
	if notManager(s.backend.Local(), unavailable) != nil {
		return nil // the manager learns of it when it is asked to run one
	}
	var changes []model.Change
	for _, img := range images {
		for _, name := range img.Names {
			changes = append(changes, model.Change{PutImage: &model.Image{Name: name, Digest: img.Digest,
				Platforms: []swarm.Platform{{OS: img.OS, Architecture: img.Architecture}}}})
		}
	}
	if len(changes) == 0 {
		return nil
	}
	_, err := s.write(ctx, "images loaded", func(*state.Snapshot) (model.Txn, error) { return model.Txn{Changes: changes}, nil })
	if err != nil {
		return fmt.Errorf("record the images for the swarm: %w", err)
	}
	return nil
}

// forgetImages takes names out of the swarm's image table, if they mean the image there.
func (s *Server) forgetImages(ctx context.Context, names []string, digest string) error {
	if notManager(s.backend.Local(), unavailable) != nil {
		return nil
	}
	_, err := s.write(ctx, "images removed", func(snap *state.Snapshot) (model.Txn, error) {
		var txn model.Txn
		for _, n := range names {
			if known := snap.Image(n); known != nil && known.Digest == digest {
				txn.Changes = append(txn.Changes, model.Change{DeleteImage: n})
				txn.Guards = append(txn.Guards, model.Guard{Key: model.ImageKey(n), Group: model.GroupSpec, Version: known.Version})
			}
		}
		return txn, nil
	})
	if err != nil {
		return fmt.Errorf("take the image's names out of the swarm's table: %w", err)
	}
	return nil
}

func (s *Server) tagImage(r *request) error {
	img, err := s.image(r)
	if err != nil {
		return err
	}
	ref := r.query("repo")
	if tag := r.query("tag"); tag != "" {
		ref += ":" + tag
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return model.Invalidf("invalid reference format")
	}
	if _, ok := named.(reference.Digested); ok {
		return model.Invalidf("refusing to create a tag with a digest reference")
	}
	name := reference.TagNameOnly(named).String()
	if err := s.backend.TagImage(r.ctx(), img.ID, name); err != nil {
		return err
	}
	tagged := *img
	tagged.Names = []string{name}
	if err := s.recordImages(r.ctx(), []Image{tagged}); err != nil {
		return err
	}
	s.emitImage("tag", img, familiar(name))
	return writeEmpty(r, http.StatusCreated)
}

func (s *Server) removeImage(r *request) error {
	img, err := s.image(r)
	if err != nil {
		return err
	}
	containers, err := s.backend.ListContainers(r.ctx())
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	ref, force := r.vars["name"], r.bool("force")
	named, nameErr := reference.ParseNormalizedNamed(ref)
	byName := nameErr == nil && slices.Contains(img.Names, reference.TagNameOnly(named).String())
	if byName && len(img.Names) > 1 {
		name := reference.TagNameOnly(named).String()
		if err := s.backend.UntagImage(r.ctx(), name); err != nil {
			return err
		}
		if err := s.forgetImages(r.ctx(), []string{name}, img.Digest); err != nil {
			return err
		}
		s.emitImage("untag", img, familiar(name))
		return writeJSON(r, http.StatusOK, []image.DeleteResponse{{Untagged: familiar(name)}})
	}
	short := strings.TrimPrefix(img.ID, "sha256:")[:12]
	if len(img.Names) > 1 && !force {
		return model.Conflictf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short)
	}
	for _, c := range containers {
		if c.ImageID != img.ID {
			continue
		}
		if c.State == "running" {
			return model.Conflictf("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short, c.ID[:12])
		}
		if !force {
			return model.Conflictf("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short, c.ID[:12])
		}
	}
	if err := s.backend.DeleteImage(r.ctx(), img.ID); err != nil {
		return err
	}
	if err := s.forgetImages(r.ctx(), img.Names, img.Digest); err != nil {
		return err
	}
	out := []image.DeleteResponse{}
	for _, n := range img.Names {
		out = append(out, image.DeleteResponse{Untagged: familiar(n)})
		s.emitImage("untag", img, familiar(n))
	}
	s.emitImage("delete", img, "")
	return writeJSON(r, http.StatusOK, append(out, image.DeleteResponse{Deleted: img.ID}))
}
