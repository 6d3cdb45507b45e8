// Package embedded carries the helper programs of skep inside its binary: the
// shim that parents a container and the keeper of logs, ports and names.
// Both must be small programs of their own, because they live on when the
// daemon ends or is replaced, and one shim runs for every container.
//
// The daemon writes them below its data root at start-up and hands their paths
// to the runtime and to the keeper's client. The package knows nothing of what
// the helpers do.
package embedded

import (
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

	"github.com/skep-swarm/skep/internal/durable"
)

//go:embed all:bin
var files embed.FS

const (
	shimName   = "skep-shim"
	keeperName = "skep-keeper"
	// hashLen is how many hex digits of the content's SHA-256 a file name
	// carries: enough to tell builds apart, short enough for `ps`.
	hashLen = 12
)

// ErrNotEmbedded says that this binary was built without its helpers.
var ErrNotEmbedded = errors.New("this binary was built without its helper programs (plain `go build`): build it with `make build`")

// Paths are the absolute paths of the helpers that Write has put on disk.
type Paths struct {
	Shim   string // the containerd shim
	Keeper string // the keeper
}

// Write puts the embedded helpers into dir, which it makes if it is missing, and
// returns their paths. A file's name carries the hash of its content, so that a
// helper that still runs from an older build is never written over, and a second
// call writes nothing. A file is renamed into place when it is complete, so a
// crash leaves none half-written under its final name.
//
// Several calls at once, also from several processes, are safe. The error is
// ErrNotEmbedded, wrapped, when the binary does not carry the helpers.
func Write(dir string) (Paths, error) {
	return write(files, dir)
}

func write(src fs.FS, dir string) (Paths, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Paths{}, fmt.Errorf("resolving the helpers' directory: %w", err)
	}
	// Only the daemon runs them, and containers' mounts may show the parent.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Paths{}, fmt.Errorf("making the helpers' directory: %w", err)
	}
	var p Paths
	for _, h := range []struct {
		name string
		path *string
	}{{shimName, &p.Shim}, {keeperName, &p.Keeper}} {
		if *h.path, err = writeOne(src, dir, h.name); err != nil {
			return Paths{}, err
		}
	}
	return p, nil
}

func writeOne(src fs.FS, dir, name string) (string, error) {
	sum, err := sumOf(src, name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name+"-"+sum[:hashLen])
	if complete(path, sum) {
		return path, nil
	}
	// Nothing waits for the disk: what a power loss leaves half-written is not complete at the next start.
	err = durable.Replace(path, 0o700, func(w io.Writer) error {
		h := sha256.New()
		if err := unpack(io.MultiWriter(w, h), src, name); err != nil {
			return err
		}
		if hex.EncodeToString(h.Sum(nil)) != sum {
			return errors.New("it is not what was embedded")
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("writing helper %s: %w", name, err)
	}
	return path, nil
}

// sumOf is the SHA-256 of a helper, in hex. It lies beside the packed helper, so that a start
// that finds everything on disk does not touch the megabytes inside its own binary.
func sumOf(src fs.FS, name string) (string, error) {
	text, err := fs.ReadFile(src, "bin/"+name+".sum")
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("helper %s: %w", name, ErrNotEmbedded)
	}
	if err != nil {
		return "", fmt.Errorf("reading embedded helper %s: %w", name, err)
	}
	sum := strings.TrimSpace(string(text))
	if _, err := hex.DecodeString(sum); err != nil || len(sum) != 2*sha256.Size {
		return "", fmt.Errorf("embedded helper %s: its sum %q is none: build again with `make build`", name, sum)
	}
	return sum, nil
}

func unpack(to io.Writer, src fs.FS, name string) error {
	packed, err := src.Open("bin/" + name + ".gz")
	if err != nil {
		return fmt.Errorf("reading it: %w", err)
	}
	defer packed.Close()
	zr, err := gzip.NewReader(packed)
	if err != nil {
		return fmt.Errorf("unpacking it: %w", err)
	}
	if _, err := io.Copy(to, zr); err != nil {
		return fmt.Errorf("unpacking it: %w", err)
	}
	return nil
}

// complete reports whether path already holds the content with that hash and
// may be executed.
func complete(path, sum string) bool {
	st, err := os.Lstat(path)
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o100 == 0 {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return err == nil && hex.EncodeToString(h.Sum(nil)) == sum
}
