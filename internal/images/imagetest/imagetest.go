// Package imagetest makes images for tests on the spot, as the archives that `docker save` writes, and is a registry
// that serves and takes them, breaks where a test wants it to, and tells what it was asked. Package testimage makes the
// few images of demo and stories; this one makes any that a unit test describes. It knows the formats and nothing of skep.
package imagetest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"
)

// Busybox is where Debian's busybox-static puts its program.
const Busybox = "/bin/busybox"

// File is one entry of an image's file system.
type File struct {
	Name    string // relative to the root
	Mode    int64
	Content []byte
	Link    string // target of a symbolic link
	Dir     bool
	UID     int
	GID     int
}

// Config is what a test chooses of an image's configuration.
type Config struct {
	Entrypoint []string            `json:",omitempty"`
	Cmd        []string            `json:",omitempty"`
	Env        []string            `json:",omitempty"`
	User       string              `json:",omitempty"`
	WorkingDir string              `json:",omitempty"`
	StopSignal string              `json:",omitempty"`
	Volumes    map[string]struct{} `json:",omitempty"`
	Labels     map[string]string   `json:",omitempty"`
}

// BusyboxFiles is a small system: busybox with its usual names, users root and daemon (uid 1), /tmp and /data.
func BusyboxFiles(tb testing.TB) []File {
	tb.Helper()
	program, err := os.ReadFile(Busybox)
	if err != nil {
		tb.Skipf("busybox-static is not installed: %v", err)
	}
	files := []File{
		{Name: "bin", Dir: true, Mode: 0o755}, {Name: "etc", Dir: true, Mode: 0o755}, {Name: "tmp", Dir: true, Mode: 0o1777},
		{Name: "bin/busybox", Mode: 0o755, Content: program},
		{Name: "etc/passwd", Mode: 0o644, Content: []byte("root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\napp:x:1000:1000::/home/app:/bin/sh\n")},
		{Name: "etc/group", Mode: 0o644, Content: []byte("root:x:0:\ndaemon:x:1:\napp:x:1000:\nextra:x:2000:app\n")},
		{Name: "data", Dir: true, Mode: 0o750, UID: 1000, GID: 1000},
		{Name: "data/seed", Mode: 0o640, Content: []byte("seed\n"), UID: 1000, GID: 1000},
		{Name: "noexec", Mode: 0o644, Content: []byte("text\n")},
	}
	for _, name := range []string{"sh", "sleep", "cat", "echo", "id", "env", "true", "false", "pwd", "hostname", "ls", "stat",
		"mount", "grep", "dd", "tail", "ulimit", "touch", "test", "kill", "seq", "yes", "head", "httpd", "wget", "nc", "ip", "df", "date"} {
		files = append(files, File{Name: "bin/" + name, Link: "busybox"})
	}
	return files
}

// Archive returns the archive of an image with the given names (none is allowed), files and configuration.
func Archive(tb testing.TB, names []string, files []File, config Config) []byte {
	tb.Helper()
	layer := tarball(tb, files)
	sum := sha256.Sum256(layer)
	body, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC), "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	id := sha256.Sum256(body)
	configName := hex.EncodeToString(id[:]) + ".json"
	manifest, err := json.Marshal([]any{map[string]any{"Config": configName, "RepoTags": names, "Layers": []string{"layer.tar"}}})
	if err != nil {
		tb.Fatal(err)
	}
	return tarball(tb, []File{
		{Name: configName, Mode: 0o644, Content: body},
		{Name: "layer.tar", Mode: 0o644, Content: layer},
		{Name: "manifest.json", Mode: 0o644, Content: manifest},
	})
}

func tarball(tb testing.TB, files []File) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range slices.Clone(files) {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Content)), Uid: f.UID, Gid: f.GID, Typeflag: tar.TypeReg}
		switch {
		case f.Dir:
			h.Typeflag, h.Name = tar.TypeDir, f.Name+"/"
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(f.Content); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}
