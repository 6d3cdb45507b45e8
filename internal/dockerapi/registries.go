package dockerapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/skep-swarm/skep/internal/model"
)

// Registries are asked through this node's image store. Credentials may be empty; they are never logged.
type Registries interface {
	// PullImage gets an image, or learns that the one here is what the registry has, and returns it.
	PullImage(ctx context.Context, req PullRequest, progress func(ImageProgress)) (Image, error)
	// PushImage sends the image with a name (fully qualified with its tag) to the name's registry.
	PushImage(ctx context.Context, name string, auth registry.AuthConfig, progress func(ImageProgress)) (RemoteImage, error)
	// RemoteImage asks a registry what a name means.
	RemoteImage(ctx context.Context, name string, auth registry.AuthConfig) (RemoteImage, error)
	// Login asks a registry whether credentials are right.
	Login(ctx context.Context, auth registry.AuthConfig) error
	// SaveImages writes images (names or IDs) as an archive that LoadImages reads.
	SaveImages(ctx context.Context, names []string, w io.Writer) error
}

// PullRequest is an image to pull, by its name with a tag or a digest, for a platform ("" for the node's own).
type PullRequest struct {
	Name, Platform string
	Auth           registry.AuthConfig
}

// ImageProgress is one thing that happens in a pull or a push, in Docker's words. Total is 0 when there is nothing to draw.
type ImageProgress struct {
	ID, Status     string
	Current, Total int64 // bytes
}

// RemoteImage is what a name means in a registry.
type RemoteImage struct {
	MediaType, Digest string
	Size              int64 // of the manifest or index, in bytes
	Platforms         []swarm.Platform
}

// maxAuth bounds the header with credentials, in bytes; tokens of cloud registries have a few thousand.
const maxAuth = 32 << 10

// registryAuth reads a request's credentials; without them it is empty.
func registryAuth(r *request) (registry.AuthConfig, error) {
	text := r.Header.Get(registry.AuthHeader)
	if len(text) > maxAuth {
		return registry.AuthConfig{}, model.Invalidf("invalid X-Registry-Auth header: longer than %d bytes", maxAuth)
	}
	auth, err := authconfig.Decode(text)
	if err != nil {
		return registry.AuthConfig{}, model.Invalidf("%v", err)
	}
	return *auth, nil
}

// progressLine is Docker's message for a step of a pull or push.
func progressLine(p ImageProgress) any {
	line := struct {
		Status   string            `json:"status"`
		Detail   *map[string]int64 `json:"progressDetail,omitempty"`
		Progress string            `json:"progress,omitempty"`
		ID       string            `json:"id,omitempty"`
	}{Status: p.Status, ID: p.ID}
	if p.ID != "" {
		line.Detail = &map[string]int64{}
	}
	if p.Total > 0 {
		line.Detail = &map[string]int64{"current": p.Current, "total": p.Total}
		line.Progress = bar(p.Current, p.Total)
	}
	return line
}

// bar draws how far something is, for clients that print the text as it comes.
func bar(current, total int64) string {
	const width = 50
	done := int(min(current, total) * width / total)
	return fmt.Sprintf("[%s>%s] %s/%s", strings.Repeat("=", done), strings.Repeat(" ", width-done), units.HumanSize(float64(current)), units.HumanSize(float64(total)))
}

func errorLine(err error) any {
	return map[string]any{"errorDetail": map[string]string{"message": err.Error()}, "error": err.Error()}
}

// pullName puts a request's image name together.
func pullName(r *request) (string, error) {
	name, tag := r.query("fromImage"), r.query("tag")
	if r.query("fromSrc") != "" || name == "" {
		return "", model.Errorf(unimplemented, "making images from a file system archive is not available: build elsewhere and use \"docker image load\"")
	}
	switch {
	case strings.HasPrefix(tag, "sha256:"):
		name += "@" + tag
	case tag != "":
		name += ":" + tag
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", model.Invalidf("invalid reference format")
	}
	if reference.IsNameOnly(named) {
		return "", model.Errorf(unimplemented, "pulling all tags of a repository is not available: name the tag")
	}
	return named.String(), nil
}

func (s *Server) pullImage(r *request) error {
	name, err := pullName(r)
	if err != nil {
		return err
	}
	auth, err := registryAuth(r)
	if err != nil {
		return err
	}
	out := newJSONStream(r)
	img, err := s.backend.PullImage(r.ctx(), PullRequest{Name: name, Platform: r.query("platform"), Auth: auth}, func(p ImageProgress) { out.write(progressLine(p)) })
	if err == nil {
		s.emitImage("pull", &img, familiar(name))
	}
	return out.end(err)
}

func (s *Server) pushImage(r *request) error {
	auth, err := registryAuth(r)
	if err != nil {
		return err
	}
	names, err := s.pushNames(r)
	if err != nil {
		return err
	}
	out := newJSONStream(r)
	for _, name := range names {
		pushed, err := s.backend.PushImage(r.ctx(), name, auth, func(p ImageProgress) { out.write(progressLine(p)) })
		if err == nil {
			// From now on the name means this to all nodes, also while the registry is away.
			err = s.recordImages(r.ctx(), []Image{{Names: []string{name}, Digest: pushed.Digest}})
		}
		if err != nil {
			return out.end(err)
		}
		_, tag, _ := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], ":")
		out.write(map[string]any{"progressDetail": struct{}{}, "aux": map[string]any{"Tag": tag, "Digest": pushed.Digest, "Size": pushed.Size}})
	}
	return out.end(nil)
}

// pushNames are the names that a push means: one, or without a tag all of a repository.
func (s *Server) pushNames(r *request) ([]string, error) {
	text, tag := r.vars["name"], r.query("tag")
	if tag != "" {
		text += ":" + tag
	}
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return nil, model.Invalidf("invalid reference format")
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, model.Invalidf("cannot push a digest reference")
	}
	if !reference.IsNameOnly(named) {
		return []string{named.String()}, nil
	}
	images, err := s.backend.ListImages(r.ctx())
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []string
	for i := range images {
		for _, n := range images[i].Names {
			if other, err := reference.ParseNormalizedNamed(n); err == nil && isTagged(other) && other.Name() == named.Name() {
				out = append(out, n)
			}
		}
	}
	if len(out) == 0 {
		return nil, notFoundf("An image does not exist locally with the tag: %s", reference.FamiliarName(named))
	}
	return out, nil
}

func isTagged(named reference.Named) bool {
	_, digested := named.(reference.Digested)
	_, tagged := named.(reference.Tagged)
	return tagged && !digested
}

// loginTimeout bounds the question whether credentials are right.
const loginTimeout = 30 * time.Second

func (s *Server) login(r *request) error {
	var auth registry.AuthConfig
	if err := readJSON(r, &auth); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.ctx(), loginTimeout)
	defer cancel()
	if err := s.backend.Login(ctx, auth); err != nil {
		return err
	}
	return writeJSON(r, http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}

func (s *Server) saveImages(r *request) error {
	names := r.URL.Query()["names"]
	if name := r.vars["name"]; name != "" {
		names = []string{name}
	}
	if len(names) == 1 && strings.HasPrefix(names[0], "[") { // the form of old clients
		var list []string
		if err := json.Unmarshal([]byte(names[0]), &list); err == nil {
			names = list
		}
	}
	if len(names) == 0 {
		return model.Invalidf("no image was named: save them by ?names=NAME")
	}
	return s.backend.SaveImages(r.ctx(), names, &archiveWriter{r: r})
}

// archiveWriter begins the answer with the archive's first byte, so that what fails before has a status.
type archiveWriter struct {
	r       *request
	started bool
}

func (w *archiveWriter) Write(p []byte) (int, error) {
	if !w.started {
		w.started = true
		w.r.w.Header().Set("Content-Type", "application/x-tar")
	}
	return w.r.w.Write(p)
}
