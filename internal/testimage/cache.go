package testimage

import (
	"cmp"
	"context"
	"encoding/json"
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
func Kinds() []string {
	return []string{"tiny", "checked", "busybox", "nginx", "demo-web", "demo-redis", "demo-nginx"}
}

// Tar returns the path of the tar of an image, which it makes if it is not there yet.
// kind is one of Kinds; "tiny:TAG", "checked:TAG" and "demo-web:TAG" are further versions.
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
	name, tag, _ := strings.Cut(kind, ":")
	switch {
	case kind == "busybox":
		img, err := Busybox(ctx)
		if err != nil {
			return "", err
		}
		return c.save(kind, img)
	case kind == "nginx":
		return c.packaged(ctx, kind, nginxPackages(), nginxConf, Nginx)
	case kind == "demo-nginx":
		return c.packaged(ctx, kind, nginxPackages(), nginxConf, DemoNginx)
	case kind == "demo-redis":
		return c.packaged(ctx, kind, redisPackages(), "", DemoRedis)
	case name == "tiny":
		server, err := c.program(ctx, "testserver")
		if err != nil {
			return "", err
		}
		tag = cmp.Or(tag, "1")
		return c.save("tiny-"+tag, Tiny("tiny:"+tag, server))
	case name == "checked":
		server, err := c.program(ctx, "testserver")
		if err != nil {
			return "", err
		}
		tag = cmp.Or(tag, "1")
		return c.save("checked-"+tag, Checked("checked:"+tag, server))
	case name == "demo-web":
		server, err := c.program(ctx, "demoweb")
		if err != nil {
			return "", err
		}
		tag = cmp.Or(tag, "1")
		return c.save("demo-web-"+tag, DemoWeb(tag, server))
	}
	return "", fmt.Errorf("there is no such kind; there are %s", strings.Join(Kinds(), ", "))
}

// packaged looks an image of Debian's packages up before it makes it, as that costs a download. The name
// changes with the packages, the further files and this program.
func (c Cache) packaged(ctx context.Context, name string, packages debian, more string, make func(context.Context) (Image, error)) (string, error) {
	key, err := packages.key(ctx)
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.Dir, name+"-"+digest(fmt.Append(key, more, recipe))[:12]+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	img, err := make(ctx)
	if err != nil {
		return "", err
	}
	return path, c.write(path, img)
}

// recipe is counted up when the same packages make another image than before.
const recipe = 3

// program builds a static program of this repository; Go's own cache makes this quick.
func (c Cache) program(ctx context.Context, name string) ([]byte, error) {
	tmp, err := os.MkdirTemp("", name)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w -buildid=", "-o", out, "./cmd/"+name)
	cmd.Dir = c.Source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building %s: %w: %s", name, err, text)
	}
	return os.ReadFile(out)
}

// save writes an image under a name with the hash of its layer.
func (c Cache) save(name string, img Image) (string, error) {
	layer, err := img.layer()
	if err != nil {
		return "", err
	}
	config, err := json.Marshal(img.Config)
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.Dir, name+"-"+digest(append(layer, config...))[:12]+".tar")
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
