// Package embedded carries the shim program inside the daemon's binary and puts it on disk.
//
// The build makes the shim first and leaves it, compressed, in bin/ beside this file; a binary that was built without
// that step says so when the shim is needed. The daemon installs it below its data root before it starts any
// container. The file's name carries a hash of its content: an upgrade adds a file, and the shims that run keep theirs. A
// symbolic link of a fixed name leads to the newest, for containers remember their shim by path.
package embedded

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The pattern matches the directory, so that code compiles before the shim is built.
//
//go:embed all:bin
var files embed.FS

const (
	packed  = "bin/skep-shim.gz"
	link    = "containerd-shim-skep-v2"
	prefix  = link + "-"
	maxShim = 64 << 20 // bytes of the unpacked program
)

// ErrNotBuilt is returned by a binary that was built without its shim.
var ErrNotBuilt = errors.New("this binary was built without its container shim: build it by \"make build\"")

// Install writes the shim to dir, unless it is there, and returns the absolute path that stands for it over upgrades.
// Shims of other versions that no process runs are removed.
func Install(dir string) (string, error) {
	data, err := files.ReadFile(packed)
	if errors.Is(err, fs.ErrNotExist) {
		return "", ErrNotBuilt
	}
	if err != nil {
		return "", fmt.Errorf("read the embedded shim: %w", err)
	}
	return install(dir, data)
}

func install(dir string, data []byte) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the shim's directory: %w", err)
	}
	sum := sha256.Sum256(data)
	path := filepath.Join(dir, prefix+hex.EncodeToString(sum[:6]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the shim's directory: %w", err)
	}
	// A file of this name was renamed into place, so it is whole.
	if _, err := os.Stat(path); err != nil {
		if err := write(path, data); err != nil {
			return "", fmt.Errorf("install the shim: %w", err)
		}
	}
	stable := filepath.Join(dir, link)
	if target, err := os.Readlink(stable); err != nil || target != filepath.Base(path) {
		if err := relink(stable, filepath.Base(path)); err != nil {
			return "", fmt.Errorf("install the shim: %w", err)
		}
	}
	removeOthers(dir, filepath.Base(path))
	return stable, nil
}

// relink points a symbolic link elsewhere without a moment in which there is none.
func relink(path, target string) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func write(path string, data []byte) (err error) {
	unpacked, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".shim-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()
			_ = os.Remove(tmp.Name())
		}
	}()
	n, err := io.Copy(tmp, io.LimitReader(unpacked, maxShim+1))
	if err != nil {
		return err
	}
	if n > maxShim {
		return fmt.Errorf("the shim is larger than %d bytes", maxShim)
	}
	if err := tmp.Chmod(0o755); err != nil {
		return err
	}
	// A power loss must not leave a whole name with half a content.
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// removeOthers removes older shims. One that runs stays: its containers' removal will ask for it by path.
func removeOthers(dir, keep string) {
	inUse := running()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.Name() == keep || !strings.HasPrefix(e.Name(), prefix) || inUse[path] {
			continue
		}
		_ = os.Remove(path)
	}
}

// running returns the paths of all programs that run on this host.
func running() map[string]bool {
	out := make(map[string]bool)
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, l := range links {
		if path, err := os.Readlink(l); err == nil {
			out[path] = true
		}
	}
	return out
}
