package dockerapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/sys/user"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/rootfs"
	"github.com/skep-swarm/skep/internal/runtime"
	"golang.org/x/sys/unix"
)

const (
	statHeader = "X-Docker-Container-Path-Stat"
	// maxUserFile bounds what is read of a container's list of users, in bytes.
	maxUserFile = 1 << 20
)

// onFiles makes a handler of one that works on the files of a container, running or not, below a path that the client names.
func (s *Server) onFiles(h func(r *request, c *Container, root *rootfs.Root, path string) error) handler {
	return s.onContainer(func(r *request, c *Container) error {
		path := r.query("path")
		if path == "" {
			return model.Invalidf("bad parameter: 'path' cannot be empty")
		}
		if strings.ContainsRune(path, 0) {
			return model.Invalidf("bad parameter: 'path' has a zero byte in it")
		}
		ctl, err := s.backend.Control(c.ID)
		if err != nil {
			return err
		}
		dir, release, err := ctl.Root(r.ctx())
		if err != nil {
			return containerError(c, err)
		}
		defer release()
		root, err := rootfs.New(dir)
		if err != nil {
			return err
		}
		return fileError(r, path, h(r, c, root, path))
	})
}

// fileError words an error as Docker does, and gives it its status.
func fileError(r *request, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return notFoundf("Could not find the file %s in container %s", path, r.vars["id"])
	case errors.Is(err, rootfs.ErrInvalid), errors.Is(err, rootfs.ErrNotDirectory), errors.Is(err, rootfs.ErrReadOnly), errors.Is(err, rootfs.ErrReadOnlyMount):
		return model.Invalidf("%s", err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, fs.ErrExist):
		return model.Invalidf("%s", err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return model.Errorf(model.Exhausted, "%s", err)
	}
	return err
}

// statArchive looks at a path; the answer is in a header.
func (s *Server) statArchive(r *request, _ *Container, root *rootfs.Root, path string) error {
	if err := setStat(r, root, path); err != nil {
		return err
	}
	return writeEmpty(r, http.StatusOK)
}

func setStat(r *request, root *rootfs.Root, path string) error {
	st, err := root.Stat(path)
	if err != nil {
		return err
	}
	body, err := json.Marshal(container.PathStat{Name: st.Name, Size: st.Size, Mode: st.Mode, Mtime: st.ModTime, LinkTarget: st.LinkTarget})
	if err != nil {
		return fmt.Errorf("encode what is known of a file: %w", err)
	}
	r.w.Header().Set(statHeader, base64.StdEncoding.EncodeToString(body))
	return nil
}

// getArchive sends what a path names as a tar archive.
func (s *Server) getArchive(r *request, c *Container, root *rootfs.Root, path string) error {
	if err := setStat(r, root, path); err != nil {
		return err
	}
	r.w.Header().Set("Content-Type", "application/x-tar")
	s.emitContainer(c, events.ActionArchivePath, nil)
	return root.Archive(r.ctx(), path, r.w)
}

// putArchive writes a tar archive below a directory of the container.
func (s *Server) putArchive(r *request, c *Container, root *rootfs.Root, path string) error {
	var owner *rootfs.Owner
	if r.bool("copyUIDGID") {
		var err error
		if owner, err = s.containerOwner(c, root); err != nil {
			return err
		}
	}
	if err := root.Extract(r.ctx(), path, r.Body, owner); err != nil {
		return err
	}
	s.emitContainer(c, events.ActionExtractToDir, nil)
	return writeEmpty(r, http.StatusOK)
}

// containerOwner is the user whom a container runs as, by its own files; nil when it says nothing of one.
func (s *Server) containerOwner(c *Container, root *rootfs.Root) (*rootfs.Owner, error) {
	conf := containerConfig(c, &runtime.Details{})
	if conf.User == "" {
		return nil, nil
	}
	var files [2][]byte
	for i, name := range []string{"/etc/passwd", "/etc/group"} {
		var err error
		if files[i], err = root.ReadFile(name, maxUserFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	u, err := user.GetExecUser(conf.User, &user.ExecUser{}, bytes.NewReader(files[0]), bytes.NewReader(files[1]))
	if err != nil {
		return nil, model.Invalidf("%s", err)
	}
	return &rootfs.Owner{UID: u.Uid, GID: u.Gid}, nil
}

// containerChanges tells what a container has changed of its image's files.
func (s *Server) containerChanges(r *request, c *Container) error {
	ctl, err := s.backend.Control(c.ID)
	if err != nil {
		return err
	}
	layers, err := ctl.Layers(r.ctx())
	if err != nil {
		return containerError(c, err)
	}
	var dirs []*os.File
	defer func() {
		for _, d := range dirs {
			_ = d.Close()
		}
	}()
	for _, path := range append([]string{layers.Upper}, layers.Lower...) {
		d, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("open a layer of container %s: %w", c.ID, err)
		}
		dirs = append(dirs, d)
	}
	found, err := rootfs.Changes(r.ctx(), dirs[0], dirs[1:], layers.Mounted)
	if err != nil {
		return fileError(r, "/", err)
	}
	out := make([]container.FilesystemChange, len(found))
	for i, f := range found {
		out[i] = container.FilesystemChange{Kind: container.ChangeType(f.Kind), Path: f.Path}
	}
	return writeJSON(r, http.StatusOK, out)
}
