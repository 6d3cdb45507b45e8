package testimage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Names of the images, with their tags.
const (
	TinyRef    = "tiny:1"
	BusyboxRef = "busybox:1"
	NginxRef   = "nginx:1"
)

// dirs that programs expect in every image.
func dirs() []File {
	return []File{
		{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/:/bin/sh\nweb:x:101:101:web:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nweb:x:101:\nnogroup:x:65534:\n")},
	}
}

// Tiny is the test server alone, as ref: a static program given by its content.
// Several versions of it, to update a service between, differ in ref only.
func Tiny(ref string, server []byte) Image {
	return Image{
		Ref: ref,
		Config: Config{
			Entrypoint:   []string{"/testserver"},
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			Env:          []string{"PATH=/", "VERSION=" + ref},
		},
		Files: append(dirs(), File{Path: "testserver", Mode: 0o755, Data: server}),
	}
}

// Checked is Tiny with a health check, so that it is met only while it listens.
func Checked(ref string, server []byte) Image {
	img := Tiny(ref, server)
	img.Config.Healthcheck = &Healthcheck{Test: []string{"CMD", "/testserver", "get", "http://127.0.0.1:8080/"},
		Interval: 5 * time.Second, Timeout: 5 * time.Second, Retries: 3, StartPeriod: 20 * time.Second, StartInterval: 50 * time.Millisecond}
	return img
}

// Busybox is a shell with the usual tools, from the static busybox of this machine.
func Busybox(ctx context.Context) (Image, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return Image{}, errors.New("busybox is not installed: apt-get install busybox-static")
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		return Image{}, err
	}
	applets, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return Image{}, fmt.Errorf("asking busybox for its applets: %w", err)
	}
	files := append(dirs(), File{Path: "bin/busybox", Mode: 0o755, Data: binary})
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			files = append(files, File{Path: "bin/" + name, Mode: fs.ModeSymlink | 0o777, Link: "busybox"})
		}
	}
	return Image{
		Ref:    BusyboxRef,
		Config: Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}},
		Files:  files,
	}, nil
}
