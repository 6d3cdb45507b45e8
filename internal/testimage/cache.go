package testimage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// A Cache keeps images made before in a directory, under names that change with their
// content. Several processes may use one directory at once.
type Cache struct {
	Dir string // of the tars; made when missing
	// Source is the root of this repository, where the test server is built.
	Source string
}

// Kinds are the images that a Cache can make.
func Kinds() []string { return []string{"tiny", "busybox", "nginx"} }

// Tar returns the path of the tar of an image, which it makes if it is not there yet.
// kind is "busybox", "nginx", "tiny", or "tiny:TAG" for a further version of it.
func (c Cache) Tar(ctx context.Context, kind string) (string, error) {
	path, err := c.tar(ctx, kind)
	if err != nil {
		return "", fmt.Errorf("making the %s image: %w", kind, err)
	}
	return path, nil
}

func (c Cache) tar(ctx context.Context, kind string) (string, error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", err
	}
	switch {
	case kind == "busybox":
		img, err := Busybox(ctx)
		if err != nil {
			return "", err
		}
		return c.save("busybox", img)
	case kind == "nginx":
		// Only nginx costs a download, so only it is looked up before it is made.
		key, err := nginxKey(ctx)
		if err != nil {
			return "", err
		}
		path := filepath.Join(c.Dir, "nginx-"+digest(key)[:12]+".tar")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		img, err := Nginx(ctx)
		if err != nil {
			return "", err
		}
		return path, c.write(path, img)
	case kind == "tiny" || strings.HasPrefix(kind, "tiny:"):
		server, err := c.testserver(ctx)
		if err != nil {
			return "", err
		}
		ref := kind
		if kind == "tiny" {
			ref = TinyRef
		}
		return c.save(strings.ReplaceAll(ref, ":", "-"), Tiny(ref, server))
	}
	return "", fmt.Errorf("there is no such kind; there are %s", strings.Join(Kinds(), ", "))
}

// testserver builds the static test server; Go's own cache makes this quick.
func (c Cache) testserver(ctx context.Context) ([]byte, error) {
	tmp, err := os.MkdirTemp("", "testserver")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "testserver")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w -buildid=", "-o", out, "./cmd/testserver")
	cmd.Dir = c.Source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the test server: %w: %s", err, text)
	}
	return os.ReadFile(out)
}

// save writes an image under a name with the hash of its layer.
func (c Cache) save(name string, img Image) (string, error) {
	layer, err := img.layer()
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.Dir, name+"-"+digest(append(layer, fmt.Sprint(img.Config)...))[:12]+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return path, c.write(path, img)
}

func (c Cache) write(path string, img Image) error {
	tmp, err := os.CreateTemp(c.Dir, ".making-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once it is renamed, as it should
	err = img.Save(tmp)
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
