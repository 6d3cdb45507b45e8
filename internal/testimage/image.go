// Package testimage makes container images out of nothing but this repository and
// Debian's packages, for the demo and the tests: no registry, no image builder. An
// image comes out as the tar that `docker save` writes, and the same input makes the
// same bytes, so that a second load changes nothing.
//
// It knows nothing of skep; it is for tests and test programs only.
package testimage

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A File is one file, directory or symbolic link of an image.
type File struct {
	Path string      // relative, slash-separated
	Mode fs.FileMode // type and permissions
	Data []byte      // content of a regular file
	Link string      // target of a symbolic link
	UID  int         // its owner
	GID  int
}

// Config is how an image's containers run by default.
type Config struct {
	Entrypoint   []string            `json:",omitempty"`
	Cmd          []string            `json:",omitempty"`
	Env          []string            `json:",omitempty"`
	WorkingDir   string              `json:",omitempty"`
	User         string              `json:",omitempty"`
	StopSignal   string              `json:",omitempty"`
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Labels       map[string]string   `json:",omitempty"`
	Healthcheck  *Healthcheck        `json:",omitempty"`
}

// Healthcheck is Docker's extension of an image's configuration: how to tell that a container is well.
type Healthcheck struct {
	Test          []string // "CMD" or "CMD-SHELL" first
	Interval      time.Duration
	Timeout       time.Duration
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       int
}

// An Image is one layer with a name.
type Image struct {
	Ref    string // name:tag
	Config Config
	Files  []File
}

// epoch is the one time that an image holds.
const epoch = "1970-01-01T00:00:00Z"

// Save writes the image as `docker save` does. Parent directories that Files does not
// name are made.
func (i Image) Save(w io.Writer) error {
	layer, err := i.layer()
	if err != nil {
		return err
	}
	diffID := digest(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      epoch,
		"config":       i.Config,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + diffID}},
		"history":      []any{map[string]any{"created": epoch, "created_by": "testimage " + i.Ref}},
	})
	if err != nil {
		return err
	}
	configName, layerName := digest(config)+".json", diffID+"/layer.tar"
	manifest, err := json.Marshal([]any{map[string]any{
		"Config": configName, "RepoTags": []string{i.Ref}, "Layers": []string{layerName},
	}})
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	for _, f := range []File{{Path: configName, Data: config}, {Path: layerName, Data: layer}, {Path: "manifest.json", Data: manifest}} {
		f.Mode = 0o644
		if err := writeFile(out, f); err != nil {
			return err
		}
	}
	return out.Close()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// layer is the tar of the image's files, in order of their names.
func (i Image) layer() ([]byte, error) {
	byPath := map[string]File{}
	for _, f := range i.Files {
		f.Path = path.Clean(strings.TrimPrefix(f.Path, "/"))
		if f.Path == "." || strings.HasPrefix(f.Path, "../") {
			return nil, fmt.Errorf("image %s: file path %q leads out of it", i.Ref, f.Path)
		}
		byPath[f.Path] = f
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if _, ok := byPath[dir]; !ok {
				byPath[dir] = File{Path: dir, Mode: fs.ModeDir | 0o755}
			}
		}
	}
	files := make([]File, 0, len(byPath))
	for _, f := range byPath {
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	for _, f := range files {
		if err := writeFile(out, f); err != nil {
			return nil, fmt.Errorf("image %s: %w", i.Ref, err)
		}
	}
	err := out.Close()
	return b.Bytes(), err
}

func writeFile(out *tar.Writer, f File) error {
	h := &tar.Header{Name: f.Path, Mode: int64(f.Mode.Perm()), Uid: f.UID, Gid: f.GID, Format: tar.FormatPAX}
	if f.Mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	switch {
	case f.Mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, f.Path+"/"
	case f.Mode&fs.ModeSymlink != 0:
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
	case f.Mode.IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Data))
	default:
		return fmt.Errorf("%s: a file of mode %v has no place in an image", f.Path, f.Mode)
	}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err := out.Write(f.Data)
	return err
}
