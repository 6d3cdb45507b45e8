package testimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// debian names packages and what of them an image leaves out.
type debian struct {
	packages []string
	without  []string // directories and files, relative to the root
}

// key tells versions of the packages apart without downloading anything: it names their files with their hashes.
func (d debian) key(ctx context.Context) ([]byte, error) {
	uris := func() ([]byte, error) {
		return exec.CommandContext(ctx, "apt-get", append([]string{"--print-uris", "-qq", "download"}, d.packages...)...).Output()
	}
	out, err := uris()
	if err != nil {
		// A fresh machine has no package lists yet.
		if update, uerr := exec.CommandContext(ctx, "apt-get", "update", "-qq").CombinedOutput(); uerr != nil {
			return nil, fmt.Errorf("fetching Debian's package lists: %w: %s", uerr, update)
		}
		if out, err = uris(); err != nil {
			return nil, fmt.Errorf("asking apt for %s: %w", d.packages[0], err)
		}
	}
	return fmt.Append(out, d.without), nil
}

// files downloads the packages into a temporary directory and reads what is in them.
func (d debian) files(ctx context.Context) ([]File, error) {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("making an image of Debian's %s needs %s, so a Debian or Ubuntu machine", d.packages[0], tool)
		}
	}
	dir, err := os.MkdirTemp("", "debian-image")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	// apt would rather download as its own user, who may not write here.
	args := append([]string{"-qq", "-o", "APT::Sandbox::User=root", "download"}, d.packages...)
	if err := runIn(ctx, dir, "apt-get", args...); err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return nil, err
	}
	root := filepath.Join(dir, "root")
	for _, deb := range debs {
		if err := runIn(ctx, dir, "dpkg-deb", "-x", deb, root); err != nil {
			return nil, err
		}
	}
	return d.collect(root)
}

func runIn(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// ballast is what the packages bring that a server in a container never reads.
func ballast() []string {
	return []string{"usr/share", "etc", "var", "lib/systemd", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/audit",
		"usr/lib/x86_64-linux-gnu/engines-3", "usr/lib/x86_64-linux-gnu/ossl-modules", "usr/lib/locale"}
}

// collect reads the unpacked packages.
func (d debian) collect(root string) ([]File, error) {
	without := append(ballast(), d.without...)
	var files []File
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil || rel == "." {
			return err
		}
		if e.IsDir() {
			if slices.Contains(without, rel) {
				return fs.SkipDir
			}
			return nil // made where something lies in it
		}
		if slices.Contains(without, rel) {
			return nil
		}
		f, err := readFile(name, e)
		f.Path = rel
		files = append(files, f)
		return err
	})
	if err == nil && len(files) == 0 {
		err = errors.New("the packages were empty")
	}
	return files, err
}

func readFile(name string, d fs.DirEntry) (File, error) {
	info, err := d.Info()
	if err != nil {
		return File{}, err
	}
	f := File{Mode: info.Mode()}
	if info.Mode()&fs.ModeSymlink != 0 {
		f.Link, err = os.Readlink(name)
	} else {
		f.Data, err = os.ReadFile(name)
	}
	return f, err
}
